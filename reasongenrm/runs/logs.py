"""The log of a cluster run's task: of its pods or archived, through KFP; followed, from Kubernetes."""

from collections.abc import Callable, Iterator

from reasongenrm.errors import ClusterError
from reasongenrm.kubernetes.cluster import Cluster, NotFoundError
from reasongenrm.runs.kfp import PipelineServer
from reasongenrm.runs.kfp_runs import ENDED, ClusterRun, ClusterTask

MAIN = "main"  # Argo's name of a pod's own container


def task_log(server: PipelineServer, run: ClusterRun, task: ClusterTask) -> Iterator[str]:
    """Lines of a task's log as it is now, of all its tries, oldest first.

    Raises:
        NotFoundError: the task has no log: it has not started, was left out, or its pods are gone and nothing was
            archived.
        ClusterError: the server refused, or nobody answers.
    """
    last: NotFoundError | None = None
    num_lines = 0
    for pod in task.pods:
        try:
            lines = server.log(run, pod).splitlines()
        except NotFoundError as error:
            last = error
            continue
        num_lines += len(lines)
        yield from lines
    if num_lines:
        return
    if last is None:
        waits = f" ({task.message})" if task.message else ""
        raise NotFoundError(f"run {run.name}: {task.name} has no log: it is {task.state}{waits}.")
    raise NotFoundError(
        f"run {run.name}: no log of {task.name}, it is {task.state}: its pods are gone or have not started, and KFP "
        f"has archived none (archiveLogs in Argo's workflow-controller-configmap switches that on). {last}"
    ) from last


def follow_task(
    server: PipelineServer, connect: Callable[[str], Cluster], run: ClusterRun, task: ClusterTask
) -> Iterator[str]:
    """Lines of a task's log as they come, of all its tries, until the task ends.

    Args:
        connect: opens the cluster; given the namespace where the run's pods are.

    Raises:
        NotFoundError: the task has ended already, and has no log (see `task_log`).
        ClusterError: the server or the cluster refused, or nobody answers.
    """
    if task.state in ENDED:
        yield from task_log(server, run, task)
        return
    seen: set[str] = set()
    cluster: Cluster | None = None
    for now in server.follow(run.run_id):
        if now.notice:
            raise ClusterError(f"run {run.name}: {now.notice}")
        task = next(found for found in now.tasks if found.key == task.key)
        for pod in task.pods:
            if pod not in seen:
                seen.add(pod)
                cluster = cluster or connect(now.namespace or "")
                yield from cluster.follow_log(cluster.namespace, pod, MAIN)
        if task.state in ENDED:
            return


def last_error(server: PipelineServer, run: ClusterRun, task: ClusterTask) -> str | None:
    """What a failed task said at last ("error: ...", see task.py), None if there is no log of it (yet)."""
    try:
        lines = list(task_log(server, run, task))
    except ClusterError:  # the run's own failure is what the reader came for
        return None
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else None
