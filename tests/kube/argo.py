"""An Argo Workflow for the tests, as KFP 2.17.0 has it made and Argo 4.0.5 runs it: names, phases, pods, compression.

Names and types of nodes: argoproj/argo-workflows v4.0.5, workflow/controller/dag.go (taskNodeName) and operator.go
(executeTemplate, initializeNode), over the templates of kubeflow/pipelines 2.17.0,
backend/src/v2/compiler/argocompiler/{dag,container}.go. Node ids and pods' names: workflow_types.go (NodeID),
workflow/util/pod_name.go. KFP's own workflow-controller-configmap lets every template be retried
(manifests/kustomize/third-party/argo/base/workflow-controller-configmap-patch.yaml: `templateDefaults.retryStrategy`).
Of a node's fields only those are here that someone reads, and `inputs`, which make it large.
"""

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

START, END = "2026-11-24T10:00:00Z", "2026-11-24T10:01:30Z"
MAX_BYTES = 1024 * 1024  # workflow/packer/packer.go (getMaxWorkflowSize), of the object as a whole
FULFILLED = {"Succeeded", "Skipped", "Omitted", "Failed", "Error"}


class FakeWorkflow:
    """One Workflow; a test moves it as Argo's controller would.

    Args:
        spec: of the pipeline: which task is below which condition, and which has a retry policy of its own.
        stock_retries: with KFP's own workflow-controller-configmap; False: without its templateDefaults.
        node_bytes: of the inputs and outputs that every node repeats.
    """

    def __init__(
        self, run_id: str, spec: Mapping[str, Any], *, stock_retries: bool = True, namespace: str = "kubeflow"
    ) -> None:
        self.stock_retries, self.node_bytes = stock_retries, 0
        self.name = f"{spec['pipelineInfo']['name']}-{run_id[:5]}"
        self.namespace = namespace
        self.run_id = run_id
        self.phase = self.message = ""
        self.deadline: int | None = None
        self.is_offloaded = False
        self.nodes: dict[str, dict[str, Any]] = {}
        self._above: dict[str, tuple[str, ...]] = {}  # task -> the DAGs that it is in, outermost first
        self._own_retries: set[str] = set()
        self._executors: dict[str, list[str]] = {}
        self._walk(spec, spec["root"]["dag"], ("root",))

    def _walk(self, spec: Mapping[str, Any], dag: Mapping[str, Any], above: tuple[str, ...]) -> None:
        for key, task in dag["tasks"].items():
            component = spec["components"][task["componentRef"]["name"]]
            if "dag" in component:
                self._walk(spec, component["dag"], (*above, key))
                continue
            self._above[key] = above
            if "retryPolicy" in task:
                self._own_retries.add(key)

    # What Argo does with it.

    def start(self) -> None:
        """The controller has looked at it for the first time."""
        self._dag(("root",))

    def set(self, task: str, phase: str, message: str = "", tries: int = 1) -> None:
        """Put a task into a phase; Pending: its pod waits for a node. Earlier tries have failed."""
        parent = self._dag(self._above[task])
        if phase in ("Skipped", "Omitted"):
            self._put(f"{parent}.{task}", "Skipped", "", phase, message)
            return
        self._level(parent, f"{task}-driver", "Pod", "system-container-driver", "Succeeded")
        own = "retry-" if task in self._own_retries else ""
        whole = "Running" if phase == "Pending" else phase
        dag = self._level(parent, task, "DAG", f"{own}system-container-executor", whole)
        retried = self.stock_retries or bool(own)
        self._level(dag, "executor", "Pod", f"{own}system-container-impl", phase, message, tries=tries, retried=retried)
        name = f"{dag}.executor"
        self._executors[task] = [f"{name}({number})" for number in range(tries)] if retried else [name]

    def fail_driver(self, task: str, message: str) -> None:
        """A task's driver fails, so the task itself is left out."""
        parent = self._dag(self._above[task])
        self._level(parent, f"{task}-driver", "Pod", "system-container-driver", "Failed", message)
        self._put(f"{parent}.{task}", "Skipped", "", "Omitted", "omitted: depends condition not met")

    def run_driver(self, task: str) -> None:
        """A task's driver runs; the task itself has no node yet."""
        self._level(self._dag(self._above[task]), f"{task}-driver", "Pod", "system-container-driver", "Running")

    def terminate(self) -> None:
        """What KFP does to it when a run is to end (backend/src/common/util/execution_spec.go, GetTerminatePatch)."""
        self.deadline = 0

    def stop(self) -> None:
        """What the controller makes of that: exec_control.go, operator.go (processNodeRetries), dag.go."""
        words = {"Pod": "Step exceeded its deadline", "DAG": "", "Skipped": ""}
        words["Retry"] = "retry exceeded workflow deadline 2026-11-24 10:00:00 +0000 UTC"
        for node in self.nodes.values():
            if node["phase"] not in FULFILLED:
                node.update(phase="Failed", message=words[node["type"]], finishedAt=END)
        root = self._dag(("root",))
        for task in [task for task, above in self._above.items() if above == ("root",)]:
            for key in (f"{task}-driver", task):
                if f"{self.name}-{_hash(f'{root}.{key}')}" not in self.nodes:
                    self._put(f"{root}.{key}", "Skipped", "", "Omitted", "omitted: depends condition not met")
        self.end("Failed", words["Retry"] if self.stock_retries else "")

    def end(self, phase: str, message: str = "") -> None:
        """It has come to an end."""
        self.phase, self.message = phase, message

    # What others see of it.

    def manifest(self) -> str:
        """The object as JSON; larger than 1 MiB it has its nodes compressed (workflow/packer/packer.go)."""
        body = self._body({"nodes": self.nodes})
        if self.is_offloaded:
            body = self._body({"offloadNodeStatusVersion": "fnv:3126205472"})
        elif len(json.dumps(body)) > MAX_BYTES:
            packed = gzip.compress(json.dumps(self.nodes).encode())
            body = self._body({"compressedNodes": base64.b64encode(packed).decode()})
        return json.dumps(body)

    def _body(self, nodes: Mapping[str, Any]) -> dict[str, Any]:
        spec: dict[str, Any] = {"entrypoint": "entrypoint"}
        if self.deadline is not None:
            spec["activeDeadlineSeconds"] = self.deadline
        status = {"phase": self.phase, "message": self.message, **nodes} if self.phase else {}
        labels = {"pipeline/runid": self.run_id}
        metadata = {"name": self.name, "namespace": self.namespace, "labels": labels}
        return {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": metadata,
            "spec": spec,
            "status": status,
        }

    def pods(self, task: str) -> list[str]:
        """The names of the pods that work or worked for a task, oldest first."""
        named = {node["name"]: node for node in self.nodes.values()}
        return [self.pod_name(named[name]) for name in self._executors.get(task, ())]

    def pod_name(self, node: Mapping[str, Any]) -> str:
        return f"{self.name}-{node['templateName']}-{_hash(node['name'])}"

    def pod(self, name: str) -> dict[str, Any]:
        """A pod as Kubernetes has it: labels and annotations of workflow/controller/workflowpod.go and of KFP."""
        node = next(node for node in self.nodes.values() if node["type"] == "Pod" and self.pod_name(node) == name)
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": {"workflows.argoproj.io/workflow": self.name, "pipeline/runid": self.run_id},
                "annotations": {
                    "workflows.argoproj.io/node-name": node["name"],
                    "workflows.argoproj.io/node-id": node["id"],
                },
            },
            "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "i:1"}]},
            "status": {"phase": "Running"},
        }

    # Nodes.

    def _dag(self, path: tuple[str, ...]) -> str:
        """The name of the node that the tasks of a DAG are below; it and those above it run, or begin to."""
        self.phase = self.phase or "Running"
        name = self._level(self.name, "", "DAG", "entrypoint", "Running")
        for key in path:
            self._level(name, f"{key}-driver", "Pod", "system-dag-driver", "Succeeded")
            name = self._level(name, key, "DAG", "root" if key == "root" else f"comp-{key}", "Running")
        return name

    def _level(
        self,
        parent: str,
        key: str,
        kind: str,
        template: str,
        phase: str,
        message: str = "",
        *,
        tries: int = 1,
        retried: bool | None = None,
    ) -> str:
        """One level: a node; where it may be retried, a Retry node and one for each try. Returns the newest's name."""
        name = f"{parent}.{key}" if key else parent
        if not (self.stock_retries if retried is None else retried):
            self._put(name, kind, template, phase, message)
            return name
        self._put(name, "Retry", template, "Running" if phase == "Pending" else phase, message if tries == 1 else "")
        for number in range(tries - 1):
            self._put(f"{name}({number})", kind, template, "Failed", "main: Error (exit code 1)")
        self._put(f"{name}({tries - 1})", kind, template, phase, message)
        return f"{name}({tries - 1})"

    def _put(self, name: str, kind: str, template: str, phase: str, message: str) -> None:
        node_id = self.name if name == self.name else f"{self.name}-{_hash(name)}"
        self.nodes[node_id] = {
            "id": node_id,
            "name": name,
            "displayName": name.rpartition(".")[2],
            "type": kind,
            "templateName": template,
            "phase": phase,
            "message": message,
            "startedAt": START,
            "finishedAt": END if phase in FULFILLED else None,
            "inputs": {"parameters": [{"name": "pod-spec-patch", "value": "x" * self.node_bytes}]},
            **({"hostNodeName": "node-1"} if kind == "Pod" and phase != "Pending" else {}),
        }


def _hash(text: str) -> int:
    """FNV-1a, 32 bits: Go's fnv.New32a()."""
    value = 2166136261
    for byte in text.encode():
        value = (value ^ byte) * 16777619 % 2**32
    return value
