"""Runs of a cluster and their tasks: what the KFP API says of the run, and its Workflow of the tasks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from graphlib import TopologicalSorter
from typing import Any, Literal

from reasongenrm.runs.workflow import TaskNodes, Workflow

ClusterRunState = Literal["pending", "running", "paused", "canceling", "succeeded", "skipped", "failed", "canceled"]
ENDED: frozenset[str] = frozenset({"succeeded", "skipped", "failed", "canceled"})
# RUNTIME_STATE_UNSPECIFIED is a run that KFP has given to Argo and Argo has not looked at yet.
_RUN_STATES: dict[str, ClusterRunState] = {
    "RUNTIME_STATE_UNSPECIFIED": "pending",
    "PENDING": "pending",
    "RUNNING": "running",
    "PAUSED": "paused",
    "CANCELING": "canceling",
    "SUCCEEDED": "succeeded",
    "SKIPPED": "skipped",
    "FAILED": "failed",
    "CANCELED": "canceled",
}
_OFFLOADED = (
    "Argo keeps the nodes of this run in a database of its own (offloadNodeStatusVersion), which nothing else can "
    "read: its tasks are not known here. See them in Argo, or switch persistence.nodeStatusOffLoad off in "
    "workflow-controller-configmap."
)


@dataclass(frozen=True)
class ClusterTask:
    """A task of a cluster run."""

    key: str  # what the pipeline's graph, and so every object in the cluster, calls it: "train-sft-2"
    name: str  # what the UI calls it: "train_sft (sft)"
    state: ClusterRunState
    started_at: datetime | None = None
    ended_at: datetime | None = None
    message: str = ""  # of Argo: why its pod waits, how it ended
    pods: tuple[str, ...] = ()  # that work or worked for it, one for each try; its driver's if it got no further


@dataclass(frozen=True)
class ClusterRun:
    """A run, as the server knows it now; a list leaves out what comes from the Workflow."""

    run_id: str
    name: str
    state: ClusterRunState
    started_at: datetime | None
    ended_at: datetime | None
    arguments: Mapping[str, Any]
    error: str | None = None
    namespace: str | None = None  # where its pods are
    tasks: tuple[ClusterTask, ...] = ()
    notice: str | None = None  # why there is less here than there should be

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.state in ENDED


def read_run(run: Any) -> ClusterRun:
    """A run as the API gives it, without its tasks.

    KFP has no state for a run that was cancelled: it ends as FAILED, and its history tells, if KFP's persistence agent
    saw the Workflow between the wish and the end (kubeflow/pipelines 2.17.0, backend/src/apiserver:
    resource/resource_manager.go, ReportWorkflowResource; storage/run_store.go, TerminateRun and UpdateRun).
    """
    state = _RUN_STATES[run.state or "RUNTIME_STATE_UNSPECIFIED"]
    history = [entry.state for entry in run.state_history or []]
    if state == "failed" and history[-2:-1] == ["CANCELING"]:
        state = "canceled"
    return ClusterRun(
        run_id=run.run_id,
        name=run.display_name or run.run_id,
        state=state,
        started_at=_when(run.created_at),
        ended_at=_when(run.finished_at),
        arguments=(run.runtime_config.parameters or {}) if run.runtime_config else {},
    )


def _when(time: datetime | None) -> datetime | None:
    """KFP writes 1970 for what has not happened yet."""
    return time if time is not None and time.year > 1970 else None


def with_tasks(run: ClusterRun, workflow: Workflow, spec: Any) -> ClusterRun:
    """The run with what its Workflow says: its tasks, in the order in which they started, and why it failed.

    What has not started comes last, in the order of the data flow.

    Args:
        spec: of the run's pipeline version (see `task_names`).
    """
    if run.state == "failed" and workflow.was_terminated:
        run = replace(run, state="canceled")
    run = replace(run, namespace=workflow.namespace, error=workflow.message or None if run.state == "failed" else None)
    if workflow.is_offloaded:
        return replace(run, notice=_OFFLOADED)
    tasks = [_task(key, name, workflow.nodes_of(key), run) for key, name in task_names(spec).items()]
    never = datetime.max
    tasks.sort(key=lambda task: task.started_at.replace(tzinfo=None) if task.started_at else never)
    return replace(run, tasks=tuple(tasks))


def _task(key: str, name: str, nodes: TaskNodes, run: ClusterRun) -> ClusterTask:
    state = _state(nodes, run)
    driver = nodes.driver if nodes.driver is not None and nodes.driver.has_failed else None
    whole, pods = (driver, nodes.driver_pods) if driver is not None else (nodes.task, nodes.pods)
    if whole is None or state == "skipped" or (state == "pending" and not pods):
        return ClusterTask(key, name, state)
    messages = [node.message for node in (*pods[-1:], whole) if node.message]
    return ClusterTask(
        key=key,
        name=name,
        state=state,
        started_at=whole.started_at,
        ended_at=whole.ended_at if state in ENDED else None,
        message=" ".join(messages[0].split()) if messages and state in ("pending", "running", "failed") else "",
        pods=tuple(node.pod for node in pods if node.pod),
    )


def _state(nodes: TaskNodes, run: ClusterRun) -> ClusterRunState:
    """A task's state; what a cancelled run stopped was cancelled if it had begun, and else it never ran."""
    driver_failed = nodes.driver is not None and nodes.driver.has_failed
    phase = nodes.task.phase if nodes.task is not None else ""
    if phase == "Succeeded":
        return "succeeded"
    if driver_failed or phase in ("Failed", "Error"):
        if run.state != "canceled" or not nodes.was_stopped:
            return "failed"
        return "canceled" if any(pod.has_run for pod in nodes.pods) else "skipped"
    if phase in ("Skipped", "Omitted") or (run.has_ended and not nodes.pods):
        return "skipped"
    if run.state == "canceled":
        return "canceled"
    return "pending" if not nodes.pods or nodes.pods[-1].phase == "Pending" else "running"


def task_names(spec: Any) -> dict[str, str]:
    """Task key -> what the UI calls the task, each behind those that it waits for, those below conditions last.

    Args:
        spec: a compiled pipeline as JSON; with a platform spec, as the server gives it, or alone.
    """
    spec = spec.get("pipeline_spec", spec)
    dags = [spec["root"]["dag"], *(part["dag"] for part in spec["components"].values() if "dag" in part)]
    tasks = {key: dag["tasks"][key] for dag in dags for key in _in_order(dag["tasks"])}
    executors = {name for name, part in spec["components"].items() if "executorLabel" in part}
    return {
        key: task["taskInfo"]["name"].replace("-", "_")
        for key, task in tasks.items()
        if task["componentRef"]["name"] in executors
    }


def _in_order(tasks: Mapping[str, Any]) -> Iterable[str]:
    return TopologicalSorter({key: task.get("dependentTasks", []) for key, task in tasks.items()}).static_order()
