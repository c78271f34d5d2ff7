"""Runs of a cluster and their tasks, read from the KFP API's responses."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from graphlib import TopologicalSorter
from typing import Any, Literal, get_args

ClusterRunState = Literal[
    "pending", "running", "paused", "canceling", "succeeded", "skipped", "failed", "canceled", "unknown"
]
ENDED: frozenset[str] = frozenset({"succeeded", "skipped", "failed", "canceled"})
_STATES: dict[str, ClusterRunState] = {state.upper(): state for state in get_args(ClusterRunState)}


@dataclass(frozen=True)
class ClusterTask:
    """A task of a cluster run."""

    key: str  # what the pipeline's graph, and so every object in the cluster, calls it: "train-sft-2"
    name: str  # what the UI calls it: "train_sft (sft)"
    state: ClusterRunState
    started_at: datetime | None = None
    ended_at: datetime | None = None
    node_ids: tuple[str, ...] = ()  # of the nodes below it in the workflow, by which KFP finds its archived logs


@dataclass(frozen=True)
class ClusterRun:
    """A run, as the server knows it now; `tasks` is empty in a list."""

    run_id: str
    name: str
    state: ClusterRunState
    started_at: datetime | None
    ended_at: datetime | None
    error: str | None
    arguments: Mapping[str, Any]
    tasks: tuple[ClusterTask, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.state in ENDED


def read_run(run: Any) -> ClusterRun:
    """A run as the API gives it, without its tasks."""
    return ClusterRun(
        run_id=run.run_id,
        name=run.display_name or run.run_id,
        state=_STATES.get(run.state or "", "unknown"),
        started_at=_when(run.created_at),
        ended_at=_when(run.finished_at),
        error=run.error.message if run.error and run.error.message else None,
        arguments=(run.runtime_config.parameters or {}) if run.runtime_config else {},
    )


def _when(time: datetime | None) -> datetime | None:
    """KFP writes 1970 for what has not happened yet."""
    return time if time is not None and time.year > 1970 else None


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


def read_tasks(run: Any, spec: Any, run_state: ClusterRunState) -> tuple[ClusterTask, ...]:
    """The run's tasks, in the order in which they started; what has not comes last, in the order of the data flow.

    KFP lists the nodes of the workflow: for task T there is a node T, one T-driver that prepares it, and below T the
    executor.
    """
    found = (run.run_details.task_details if run.run_details else None) or []
    details = {detail.display_name: detail for detail in found}
    names = task_names(spec).items()
    tasks = [_task(key, name, details.get(key), details.get(f"{key}-driver"), run_state) for key, name in names]
    never = datetime.max
    return tuple(sorted(tasks, key=lambda task: task.started_at.replace(tzinfo=None) if task.started_at else never))


def _task(key: str, name: str, detail: Any, driver: Any, run_state: ClusterRunState) -> ClusterTask:
    state = _STATES.get(detail.state or "", "unknown") if detail else "unknown"
    if driver is not None and driver.state == "FAILED":
        state = "failed"
    if state == "unknown":  # nothing of it yet, or left out
        state = "skipped" if run_state in ENDED else "pending"
    nodes = [child.pod_name for child in (detail.child_tasks if detail else None) or [] if child.pod_name]
    return ClusterTask(
        key=key,
        name=name,
        state=state,
        started_at=_when(detail.start_time) if detail else None,
        ended_at=_when(detail.end_time) if detail and state in ENDED else None,
        node_ids=tuple(nodes),
    )
