"""The pods of a TrainJob: why one does not start, what node 0 logs, how one ended.

JobSet names and labels them; a restart of the whole set makes new pods, whose log is followed after that of the old
ones.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from reasongenrm.config import TrainJobConfig
from reasongenrm.errors import ClusterError, TrainingError
from reasongenrm.kubernetes.cluster import Cluster, ForbiddenError, NotFoundError
from reasongenrm.kubernetes.health import CANNOT_START, condition, container_states
from reasongenrm.kubernetes.kinds import EVENT, POD
from reasongenrm.trainjob.spec import NODE

# Labels: sigs.k8s.io/jobset api/jobset/v1alpha2, and Kubernetes' batch/v1 for the index.
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
TAIL_LINES = 30
LAST_LINES_SECONDS = 30.0  # for the rest of a log after its pod has ended
Say = Callable[[str], None]


class TrainPods:
    """What is known of the pods of one TrainJob.

    Args:
        uid: of the TrainJob; its events are looked up by it.
        say: writes a line into the step's log.
    """

    def __init__(self, cluster: Cluster, namespace: str, name: str, uid: str, config: TrainJobConfig, say: Say) -> None:
        self._cluster, self._namespace, self._name, self._uid = cluster, namespace, name, uid
        self._config, self._say = config, say
        self._failing_since: dict[str, float] = {}
        self._waiting_since = time.monotonic()
        self._followed: dict[str, threading.Thread] = {}
        self._stopped = threading.Event()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    def check(self) -> None:
        """Follow the log of every pod of node 0 that has started; report what waits, fail on what cannot start.

        Raises:
            TrainingError: a container could not be started for `failing_pod_seconds`.
        """
        pods = self._list()
        self._follow_node_0(pods)
        for pod in pods:
            self._check_container(pod)
        waiting = [why for pod in pods if (why := _why_pending(pod))]
        if pods and not waiting:
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since >= self._config.report_seconds:
            self._waiting_since = time.monotonic()
            self._say("still waiting: " + ("; ".join(waiting) or f"no pod has been made yet. {self.events()}".rstrip()))

    def finish_logs(self) -> None:
        """Write what is left of the log of node 0, for no longer than LAST_LINES_SECONDS."""
        self._follow_node_0(self._list())
        deadline = time.monotonic() + LAST_LINES_SECONDS
        for thread in self._followed.values():
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        """Write no more lines."""
        self._stopped.set()

    def why_failed(self) -> str:
        """The pod that failed first, how, and the end of its log."""
        failed = [pod for pod in self._list() if _has_failed(pod)]
        if not failed:
            return "no failed pod is left to ask." + _quoted("Node 0 wrote last", list(self.tail))
        pod = min(failed, key=lambda pod: str(_ended(pod).get("finishedAt", "~")))
        name = pod["metadata"]["name"]
        try:
            lines = self._cluster.log_tail(self._namespace, name, NODE, TAIL_LINES)
        except ClusterError as error:
            lines = [f"(its log cannot be read: {error})"]
        return f"pod {name} (node {_index(pod)}) {_ending(pod)}" + _quoted("The end of its log", lines)

    def events(self) -> str:
        """The newest warning about the TrainJob itself, if there is one and it may be read."""
        try:
            found = self._cluster.list(EVENT, self._namespace, fields=f"involvedObject.uid={self._uid}")
        except ForbiddenError:
            return ""
        warnings = [event for event in found if event.get("type") == "Warning"]
        if not warnings:
            return ""
        newest = max(warnings, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
        return f"{newest.get('reason')}: {newest.get('message') or newest.get('note')}"

    def _list(self) -> list[dict[str, Any]]:
        return self._cluster.list(POD, self._namespace, labels=f"{JOBSET_LABEL}={self._name}")

    def _check_container(self, pod: Mapping[str, Any]) -> None:
        uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
        waiting = [state.get("waiting", {}) for state in container_states(pod).values()]
        found = [state for state in waiting if state.get("reason") in CANNOT_START]
        if not found:
            self._failing_since.pop(uid, None)
            return
        what = f"{found[0]['reason']}: {found[0].get('message', 'no message')}"
        if uid not in self._failing_since:
            self._failing_since[uid] = time.monotonic()
            self._say(f"pod {name} does not start: {what}")
        if time.monotonic() - self._failing_since[uid] >= self._config.failing_pod_seconds:
            raise TrainingError(
                f"TrainJob {self._namespace}/{self._name}: pod {name} cannot start: {what}. Fix what it names (the "
                "image of the TrainingRuntime, the Secret of trainjob.s3_secret) and run again; "
                "trainjob.failing_pod_seconds says how long this is waited for."
            )

    def _follow_node_0(self, pods: list[dict[str, Any]]) -> None:
        for pod in pods:
            uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
            if _index(pod) == "0" and _has_started(pod) and uid not in self._followed:
                thread = threading.Thread(target=self._write_log, args=(name,), name=f"log of {name}", daemon=True)
                self._followed[uid] = thread
                thread.start()

    def _write_log(self, pod: str) -> None:
        self._say(f"log of pod {pod} (node 0):")
        try:
            for line in self._cluster.follow_log(self._namespace, pod, NODE):
                if self._stopped.is_set():
                    return
                self.tail.append(line)
                print(line, flush=True)  # noqa: T201 - the step's log
        except NotFoundError:
            return
        except ClusterError as error:
            if not self._stopped.is_set():
                self._say(f"the log is not followed any more; the training goes on. {error}")


def _index(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"].get("labels", {}).get(INDEX_LABEL, "0"))


def _has_started(pod: Mapping[str, Any]) -> bool:
    state = container_states(pod).get(NODE, {})
    return "running" in state or "terminated" in state


def _why_pending(pod: Mapping[str, Any]) -> str:
    """Why a pod has no node yet, or its container does not run; "" if it has started."""
    status = pod.get("status", {})
    if _has_started(pod) or status.get("phase", "Pending") != "Pending":
        return ""
    name = pod["metadata"]["name"]
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return f"pod {name} is {scheduled.get('reason', 'not scheduled')}: {scheduled.get('message', 'no message')}"
    states = container_states(pod).values()
    waiting: Mapping[str, Any] = next((state["waiting"] for state in states if "waiting" in state), {})
    message = f": {waiting['message']}" if "message" in waiting else ""
    return f"pod {name} is {waiting.get('reason', 'pending')}{message}"


def _ended(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """How the container of the training ended; empty if it did not, or its state is lost."""
    ended: Mapping[str, Any] = container_states(pod).get(NODE, {}).get("terminated", {})
    return ended


def _has_failed(pod: Mapping[str, Any]) -> bool:
    return pod.get("status", {}).get("phase") == "Failed" or bool(_ended(pod).get("exitCode"))


def _ending(pod: Mapping[str, Any]) -> str:
    ended, status = _ended(pod), pod.get("status", {})
    if not ended:  # evicted, preempted, its machine lost
        return f"failed: {status.get('reason', 'no reason')}: {status.get('message', 'no message')}."
    hint = " Raise trainjob.memory, or set a smaller max_batch_tokens." if ended.get("reason") == "OOMKilled" else ""
    return f"ended with exit code {ended.get('exitCode')} ({ended.get('reason', 'no reason')}).{hint}"


def _quoted(title: str, lines: list[str]) -> str:
    return f" {title}:\n" + "\n".join(f"    {line}" for line in lines or ["(nothing)"]) + "\n"
