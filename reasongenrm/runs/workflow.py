"""The Argo Workflow behind a cluster run: its nodes, compressed or not, and which of them work for which task.

KFP's API server keeps the Workflow as Argo last wrote it. Its own list of a run's tasks is made from the nodes, and
stands still from the moment when Argo compresses them; so tasks are read from here.
"""

import base64
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from reasongenrm.errors import ClusterError

# "WORKFLOW(0).root(0).condition-1(0).train-sft(0).executor(1)": a level for each DAG on the way, and behind any of them
# "(N)", the number of a try, where that level may be retried. KFP's own workflow-controller-configmap lets every level;
# without it only a task with a retry policy of its own has one, at its executor.
# argoproj/argo-workflows v4.0.5, workflow/controller/dag.go (taskNodeName) and operator.go (executeTemplate);
# kubeflow/pipelines 2.17.0, backend/src/v2/compiler/argocompiler/dag.go and container.go.
_TRIES = r"(?:\([^()]*\))*"
_LEVEL = re.compile(rf"\.([^.()]+)({_TRIES})")
_NODE_NAME = re.compile(rf"{_TRIES}(?:\.[^.()]+{_TRIES})*")
_EXECUTOR, _DRIVER = "executor", "-driver"

# What Argo writes when it stops a node because the workflow is to end: argoproj/argo-workflows v4.0.5,
# workflow/controller/exec_control.go, operator.go (processNodeRetries) and workflowpod.go (createWorkflowPod).
_STOPPED = re.compile(
    r"Step exceeded its deadline|retry exceeded workflow deadline|workflow shutdown with strategy|Stopped with strategy"
)


@dataclass(frozen=True)
class WorkflowNode:
    """One node of a Workflow's status.

    Attributes:
        path: its levels below the workflow: ("root", "train-sft", "executor").
        tries: which try of each level it belongs to, the workflow's own first; "" where the level has none (yet).
        phase: Pending, Running, Succeeded, Skipped, Omitted, Failed or Error; "" before Argo has looked at it.
        pod: the name of its pod; None for a node that has none.
        has_run: whether a node of the cluster was found for its pod.
    """

    path: tuple[str, ...]
    tries: tuple[str, ...]
    phase: str
    message: str
    pod: str | None
    has_run: bool
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def has_failed(self) -> bool:
        """Whether it ended badly, by itself or because it was stopped."""
        return self.phase in ("Failed", "Error")


@dataclass(frozen=True)
class TaskNodes:
    """The nodes that work for one task of the pipeline.

    Attributes:
        task: as a whole; None until the task's driver has prepared it.
        driver: of its newest try; None before the task's turn.
        pods: its executors' pods, one for each try, oldest first.
        driver_pods: those of its driver.
        was_stopped: whether it was stopped because the run was to end.
    """

    task: WorkflowNode | None
    driver: WorkflowNode | None
    pods: tuple[WorkflowNode, ...]
    driver_pods: tuple[WorkflowNode, ...]
    was_stopped: bool


@dataclass(frozen=True)
class Workflow:
    """A Workflow as KFP keeps it.

    Attributes:
        namespace: where its pods are.
        was_terminated: whether someone has asked it to end.
        is_offloaded: its nodes are in a database of Argo's, where nothing else can read them; then `nodes` is empty.
    """

    name: str
    namespace: str
    message: str
    was_terminated: bool
    is_offloaded: bool
    nodes: tuple[WorkflowNode, ...]

    def nodes_of(self, task: str) -> TaskNodes:
        """The nodes of a task by its key, "train-sft-2", however deep it stands and however often it was tried."""
        ours = [node for node in self.nodes if task in node.path]
        driver = f"{task}{_DRIVER}"
        pods = sorted((node for node in ours if node.path[-1] == _EXECUTOR and node.pod), key=_place)
        drivers = [node for node in self.nodes if node.path[-1:] == (driver,)]
        return TaskNodes(
            task=_newest([node for node in ours if node.path[-1] == task]),
            driver=_newest(drivers),
            pods=tuple(pods),
            driver_pods=tuple(sorted((node for node in drivers if node.pod), key=_place)),
            was_stopped=any(_STOPPED.match(node.message) for node in (*ours, *drivers)),
        )


def read_workflow(manifest: str) -> Workflow:
    """Read a Workflow.

    Args:
        manifest: the object as JSON.

    Raises:
        ClusterError: its compressed nodes cannot be read.

    Source: argoproj/argo-workflows v4.0.5, workflow/packer/packer.go (DecompressWorkflow), util/file/fileutil.go:
    `compressedNodes` is base64 of gzip of the nodes as JSON, written when the whole object is larger than 1 MiB. A run
    is terminated by `activeDeadlineSeconds: 0` (kubeflow/pipelines 2.17.0, backend/src/common/util/execution_spec.go),
    which a retry of the run takes away again; `shutdown` is Argo's own way.
    """
    body = json.loads(manifest)
    metadata, spec, status = body["metadata"], body["spec"], body.get("status", {})
    nodes, packed = status.get("nodes") or {}, status.get("compressedNodes")
    if packed and not nodes:
        try:
            nodes = json.loads(gzip.decompress(base64.b64decode(packed)))
        except (ValueError, OSError, EOFError, zlib.error) as error:
            raise ClusterError(
                f"workflow {metadata['name']}: its status.compressedNodes cannot be read ({error}); expected base64 of "
                "gzip of JSON, as Argo Workflows 4.0 writes it. Look at the run in Argo: `argo get`."
            ) from error
    return Workflow(
        name=metadata["name"],
        namespace=metadata["namespace"],
        message=status.get("message", ""),
        was_terminated=spec.get("activeDeadlineSeconds") == 0 or bool(spec.get("shutdown")),
        is_offloaded=bool(status.get("offloadNodeStatusVersion")) and not nodes,
        nodes=tuple(_read_nodes(metadata, nodes)),
    )


def _read_nodes(metadata: Mapping[str, Any], nodes: Mapping[str, Any]) -> Iterator[WorkflowNode]:
    for node in nodes.values():
        below = node["name"].removeprefix(metadata["name"])
        if not _NODE_NAME.fullmatch(below):
            continue  # one of an iteration over things with parentheses in their names; our pipeline has none
        levels = _LEVEL.findall(below)
        yield WorkflowNode(
            path=tuple(level for level, _ in levels),
            tries=(below.partition(".")[0], *(tries for _, tries in levels)),
            phase=node.get("phase", ""),
            message=node.get("message", ""),
            pod=_pod_name(metadata, node) if node["type"] == "Pod" else None,
            has_run=bool(node.get("hostNodeName")),
            started_at=_when(node.get("startedAt")),
            ended_at=_when(node.get("finishedAt")),
        )


def _pod_name(metadata: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    """kubeflow/pipelines 2.17.0, backend/src/common/util/workflow.go (RetrievePodName)."""
    if metadata.get("annotations", {}).get("workflows.argoproj.io/pod-name-format") == "v1":
        return str(node["id"])
    return f"{metadata['name']}-{node['templateName']}-{node['id'].rpartition('-')[2]}"


def _when(time: str | None) -> datetime | None:
    return datetime.fromisoformat(time) if time else None


def _place(node: WorkflowNode) -> tuple[tuple[int, str], ...]:
    """Order of tries: the tenth comes behind the ninth."""
    return tuple((len(tries), tries) for tries in node.tries)


def _newest(nodes: list[WorkflowNode]) -> WorkflowNode | None:
    """Of several nodes for the same thing the newest; the one for all tries of it, where it may be retried."""
    return max(nodes, key=lambda node: (_place(node)[:-1], node.tries[-1] == "", _place(node)), default=None)
