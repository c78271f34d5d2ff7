"""The log of a cluster run's task: from KFP's archive once it has ended, from its pods while it runs."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from reasongenrm.errors import ClusterError
from reasongenrm.kubernetes.cluster import Cluster, NotFoundError
from reasongenrm.kubernetes.kinds import POD
from reasongenrm.runs.kfp import PipelineServer
from reasongenrm.runs.kfp_runs import ENDED, ClusterRun, ClusterTask

# kubeflow/pipelines, backend/src/common/util/consts.go at 2.17.0, and Argo's workflow/common/common.go
RUN_LABEL = "pipeline/runid"
NODE_NAME = "workflows.argoproj.io/node-name"
MAIN = "main"  # Argo's name of a pod's own container
# "WORKFLOW.root.train-sft-2.executor", "...executor(1)" for a second try: kubeflow/pipelines,
# backend/src/v2/compiler/argocompiler/container.go at 2.17.0
_EXECUTOR = re.compile(r"\.(?P<task>[^.]+)\.executor(\(\d+\))?$")


def task_log(
    server: PipelineServer, connect: Callable[[], Cluster], run: ClusterRun, task: ClusterTask, follow: bool = False
) -> Iterator[str]:
    """Lines of a task's log, of all its tries, oldest first.

    Args:
        server: knows the run and has its archived logs.
        connect: opens the cluster where the run's pods are; asked only if a pod is needed.
        follow: for a task that runs, go on until it ends.

    Raises:
        NotFoundError: the task has no log: it has not started, was left out, or its pods are gone and nothing was
            archived.
        ClusterError: the server or the cluster refused, or nobody answers.
    """
    if task.state in ("pending", "skipped"):
        raise NotFoundError(f"run {run.name}: {task.name} has no log: it is {task.state}.")
    if task.state in ENDED:
        archived = _archived(server, run, task)
        if archived:
            yield from archived
            return
    cluster = connect()
    pods = task_pods(cluster, run.run_id, task.key)
    if not pods:
        raise NotFoundError(
            f"run {run.name}: no log of {task.name}: it has no pod in namespace {cluster.namespace}, and KFP has "
            "archived none (archiveLogs in Argo's workflow-controller-configmap switches that on). Is it another "
            "--namespace?"
        )
    for pod in pods:
        name = pod["metadata"]["name"]
        if follow:
            yield from cluster.follow_log(cluster.namespace, name, MAIN)
        else:
            yield from server.log(run.run_id, name).splitlines()


def task_pods(cluster: Cluster, run_id: str, key: str) -> list[dict[str, Any]]:
    """The pods in which a task works or worked, one for each try, oldest first; not those that only prepare it."""
    pods = cluster.list(POD, cluster.namespace, labels=f"{RUN_LABEL}={run_id}")
    ours = [pod for pod in pods if task_of(pod) == key]
    return sorted(ours, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]))


def task_of(pod: dict[str, Any]) -> str | None:
    """Which task's work a pod does, None for a driver or a pod of something else."""
    found = _EXECUTOR.search(pod["metadata"].get("annotations", {}).get(NODE_NAME, ""))
    return found["task"] if found else None


def last_error(server: PipelineServer, run: ClusterRun, task: ClusterTask) -> str | None:
    """What a failed task said at last ("error: ...", see task.py), None if KFP has not archived it (yet)."""
    try:
        lines = _archived(server, run, task)
    except ClusterError:  # the run's own failure is what the reader came for
        return None
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else None


def _archived(server: PipelineServer, run: ClusterRun, task: ClusterTask) -> list[str]:
    lines = []
    for node in task.node_ids:
        try:
            lines += server.log(run.run_id, node).splitlines()
        except NotFoundError:
            continue  # a node without a log of its own, or logs are not archived
    return lines
