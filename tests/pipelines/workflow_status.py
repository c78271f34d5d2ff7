"""What Argo keeps of a run of a compiled pipeline in `status.nodes`, computed without a cluster.

Argo compresses a Workflow of more than 1 MiB, and KFP cannot read it then. A pipeline's tasks cost what KFP's compiler
and driver write for them and what Argo's controller repeats: this follows both, and fills in what only a run knows
(ids, times, addresses of artifacts) by values of the usual length.

Sources: kubeflow/pipelines 2.17.0, backend/src/v2/compiler/argocompiler/{argo,container,dag}.go (templates, inputs),
backend/src/v2/driver/{container,driver,k8s,resolve}.go (`pod-spec-patch`), backend/src/v2/metadata/client.go and
converter.go (artifacts); argoproj/argo-workflows v4.0.5, workflow/controller/{operator,dag}.go (nodes, Retry nodes),
pkg/apis/workflow/v1alpha1/workflow_types.go (NodeStatus). KFP's own workflow-controller-configmap gives every template
a retryStrategy: each node is a Retry node and its one try.
"""

import json
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

RUN, UID = "reason-reward-model-x7k2p", "0f8c6a52-6f0e-4a5e-9a0f-0c1d2e3f4a5b"
ROOT = f"s3://mlpipeline/v2/artifacts/reason-reward-model/{UID}"
SALT = "b4a1f2f0-3d9c-4f63-8a54-6f1f2f3c4d5e"
TIME = "2026-11-30T12:34:56Z"
# What the launcher adds to every artifact: the bucket's session, as kfp-launcher's providers give it.
SESSION = json.dumps(
    {
        "Provider": "s3",
        "Params": {
            "accessKeyKey": "accesskey",
            "disableSSL": "true",
            "endpoint": "seaweedfs.kubeflow:9000",
            "forcePathStyle": "true",
            "fromEnv": "false",
            "region": "us-east-1",
            "secretKeyKey": "secretkey",
            "secretName": "mlpipeline-minio-artifact",
        },
    },
    separators=(",", ":"),
)


def go_json(value: Any) -> str:
    """As encoding/json writes it: no blanks, sorted keys, and <, >, & as six characters each."""
    text = json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@dataclass
class Workflow:
    """A run of a compiled pipeline whose tasks have all succeeded.

    Args:
        spec, platform: the two documents of a compiled pipeline.
        arguments: of the run; the others have their defaults.
        output: what each task puts out as a parameter.
        metadata: what each task says of an artifact that it puts out, besides what KFP itself adds.
    """

    spec: Json
    platform: Json
    arguments: Json
    output: Any
    metadata: Json = field(default_factory=dict)
    nodes: dict[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        root = self.spec["root"]
        defaults = {
            name: each["defaultValue"]
            for name, each in root["inputDefinitions"]["parameters"].items()
            if "defaultValue" in each
        }
        values = {**defaults, **self.arguments}
        self._pair(RUN, "DAG", "entrypoint", "", [])
        runtime = {"gcsOutputDirectory": ROOT, "parameterValues": values}
        inputs = [
            parameter("component", go_json(root)),
            parameter("runtime-config", go_json(runtime), ""),
            parameter("task", "", ""),
            parameter("task-name", "", ""),
            parameter("parent-dag-id", "0", "0"),
            parameter("iteration-index", "-1", "-1"),
            parameter("driver-type", "ROOT_DAG", "DAG"),
        ]
        self._pair(f"{RUN}(0).root-driver", "Pod", "system-dag-driver", f"{RUN}(0)", inputs, self._dag_outputs())
        passed = [parameter("parent-dag-id", "1"), parameter("condition", "")]
        self._pair(f"{RUN}(0).root", "DAG", "root", f"{RUN}(0)", passed)
        self._dag(f"{RUN}(0).root(0)", root["dag"], values)

    def num_bytes(self, num_nodes: int | None = None) -> int:
        """Of `status.nodes` as JSON, or of the first so many nodes."""
        return len(go_json(dict([*self.nodes.items()][:num_nodes])).encode())

    def _dag(self, boundary: str, dag: Json, values: Json) -> None:
        for key, task in dag["tasks"].items():
            component = self.spec["components"][task["componentRef"]["name"]]
            if "dag" in component:
                self._sub_dag(boundary, key, task, component, values)
            else:
                self._task(boundary, key, task, component, values)

    def _sub_dag(self, boundary: str, key: str, task: Json, component: Json, values: Json) -> None:
        inputs = [
            parameter("component", go_json(component)),
            parameter("runtime-config", "", ""),
            parameter("task", go_json(task), ""),
            parameter("task-name", key, ""),
            parameter("parent-dag-id", "1", "0"),
            parameter("iteration-index", "-1", "-1"),
            parameter("driver-type", "DAG", "DAG"),
        ]
        self._pair(f"{boundary}.{key}-driver", "Pod", "system-dag-driver", boundary, inputs, self._dag_outputs())
        passed = [parameter("parent-dag-id", "17"), parameter("condition", "true")]
        self._pair(f"{boundary}.{key}", "DAG", task["componentRef"]["name"], boundary, passed)
        inner = {name: self._value(each, values) for name, each in task["inputs"].get("parameters", {}).items()}
        self._dag(f"{boundary}.{key}(0)", component["dag"], inner)

    def _task(self, boundary: str, key: str, task: Json, component: Json, values: Json) -> None:
        container = self.spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        executors = self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        kubernetes = executors.get(component["executorLabel"], {})
        patch = self._pod_spec_patch(key, task, component, container, kubernetes, values)
        inputs = [
            parameter("component", go_json(component)),
            parameter("task", go_json(task)),
            parameter("container", go_json(container)),
            parameter("task-name", key),
            parameter("parent-dag-id", "1"),
            parameter("iteration-index", "-1", "-1"),
            parameter("kubernetes-config", go_json(kubernetes), ""),
        ]
        outputs = [
            output("pod-spec-patch", patch, ""),
            output("cached-decision", "false", "false", is_default=True),
            output("condition", "true", "true"),
        ]
        driver = f"{boundary}.{key}-driver"
        self._pair(driver, "Pod", "system-container-driver", boundary, inputs, outputs)
        retry = _retry(task.get("retryPolicy"))
        prefix = "retry-" if retry else ""
        passed = [
            parameter("pod-spec-patch", patch),
            parameter("cached-decision", "false", "false"),
            *(parameter(name, value, "0") for name, value in retry.items()),
        ]
        self._pair(f"{boundary}.{key}", "DAG", f"{prefix}system-container-executor", boundary, passed)
        given = [parameter("pod-spec-patch", patch), *(parameter(name, value) for name, value in retry.items())]
        inner = f"{boundary}.{key}(0)"
        self._pair(f"{inner}.executor", "Pod", f"{prefix}system-container-impl", inner, given, [])

    def _pod_spec_patch(
        self, key: str, task: Json, component: Json, container: Json, kubernetes: Json, values: Json
    ) -> str:
        inputs = task.get("inputs", {})
        given = {name: self._value(each, values) for name, each in inputs.get("parameters", {}).items()}
        given = {name: _resolved(value, given) for name, value in given.items()}
        task_root = f"{ROOT}/{key}/{SALT}"
        outputs = component.get("outputDefinitions", {})
        artifacts = {name: {"type": each["artifactType"]} for name, each in outputs.get("artifacts", {}).items()}
        artifacts["executor-logs"] = {"type": {"schemaTitle": "system.Artifact"}}  # stock KFP has PUBLISH_LOGS=true
        executor_input = {
            "inputs": {
                "parameterValues": given,
                "artifacts": {name: {"artifacts": [self._input(name)]} for name in inputs.get("artifacts", {})},
            },
            "outputs": {
                "artifacts": {
                    name: {"artifacts": [{"name": name, "uri": f"{task_root}/{name}", "metadata": {}, **kind}]}
                    for name, kind in artifacts.items()
                },
                "parameters": {
                    name: {"outputFile": f"/tmp/kfp/outputs/{name}"} for name in outputs.get("parameters", {})
                },
                "outputFile": "/s3/" + task_root.removeprefix("s3://") + "/output_metadata.json",
            },
        }
        launcher = [
            *("/kfp-launcher/launch", "--pipeline_name", self.spec["pipelineInfo"]["name"], "--run_id", UID),
            *("--execution_id", "17", "--executor_input", go_json(executor_input)),
            *("--component_spec", go_json(component), "--pod_name", "$(KFP_POD_NAME)", "--pod_uid", "$(KFP_POD_UID)"),
            *("--ml_pipeline_server_address", "ml-pipeline.kubeflow", "--ml_pipeline_server_port", "8887"),
            *("--mlmd_server_address", "metadata-grpc-service.kubeflow.svc.cluster.local"),
            *("--mlmd_server_port", "8080", "--publish_logs", "true", "--publish_logs", "true", "--"),
        ]
        main: Json = {
            "name": "main",
            "image": _resolved(container["image"], given),
            "command": launcher,
            "args": [*container.get("command", ()), *container.get("args", ())],
            "resources": _resources(container.get("resources", {}), given),
        }
        pod: Json = {"containers": [main]}
        _extend(pod, kubernetes, values)
        return go_json(pod)

    def _input(self, name: str) -> Json:
        metadata = {"display_name": name, "store_session_info": SESSION, **self.metadata}
        return {"name": "17", "uri": f"{ROOT}/train-sft/{SALT}/{name}", "metadata": metadata}

    def _value(self, each: Json, values: Json) -> Any:
        if "componentInputParameter" in each:
            return values.get(each["componentInputParameter"])
        if "runtimeValue" in each:
            return each["runtimeValue"]["constant"]
        return self.output  # of an earlier task

    def _dag_outputs(self) -> list[Json]:
        return [
            {"name": "execution-id", "value": "17", "valueFrom": {"path": "/tmp/outputs/execution-id"}},
            output("iteration-count", "0", "0"),
            output("condition", "true", "true"),
        ]

    def _pair(
        self, name: str, kind: str, template: str, boundary: str, inputs: list[Json], outputs: list[Json] | None = None
    ) -> None:
        """A Retry node and its one try."""
        for is_try in (False, True):
            node_name = f"{name}(0)" if is_try else name
            node: Json = {
                "id": f"{RUN}-{len(self.nodes) + 1000000000}",
                "name": node_name,
                "displayName": node_name.removeprefix(boundary).lstrip("."),
                "type": kind if is_try else "Retry",
                "templateName": template,
                "templateScope": f"local/{RUN}",
                "phase": "Succeeded",
                "startedAt": TIME,
                "finishedAt": TIME,
                "progress": "1/1",
                "resourcesDuration": {"cpu": 12, "memory": 123},
                "children": [f"{RUN}-1000000000"],
            }
            if boundary:
                node["boundaryID"] = f"{RUN}-1000000000"
            if is_try:
                node["nodeFlag"] = {"retried": True}
            if inputs:
                node["inputs"] = {"parameters": inputs}
            if kind == "DAG":
                node["outboundNodes"] = [f"{RUN}-1000000000"]
            if outputs is not None:
                pod = f"{RUN}-{template}-1000000000"
                logs = {
                    "name": "main-logs",
                    "s3": {"key": f"private-artifacts/kubeflow/{RUN}/2026/11/30/{pod}/main.log"},
                }
                found = {"parameters": outputs} if outputs else {}
                node["outputs"] = {**found, "artifacts": [logs], "exitCode": "0"}
            if kind == "Pod" and is_try:
                node["hostNodeName"] = "node-1.cluster.local"
                node["taskResultSynced"] = True
            self.nodes[node["id"]] = node


def parameter(name: str, value: str, default: str | None = None) -> Json:
    """An input of a node."""
    return {"name": name, "value": value, **({} if default is None else {"default": default})}


def output(name: str, value: str, default: str, is_default: bool = False) -> Json:
    """An output of a driver's node."""
    where = {"path": f"/tmp/outputs/{name}", "default": default}
    return {"name": name, "value": value, "valueFrom": where, **({"default": default} if is_default else {})}


def _retry(policy: Json | None) -> dict[str, str]:
    if policy is None:
        return {}
    return {
        "retry-max-count": str(policy["maxRetryCount"]),
        "retry-backoff-duration": policy["backoffDuration"].removesuffix("s"),
        "retry-backoff-factor": f"{policy['backoffFactor']:g}",
        "retry-backoff-max-duration": policy["backoffMaxDuration"].removesuffix("s"),
    }


def _resolved(value: Any, given: Json) -> Any:
    """A value with the placeholders of input parameters filled in."""
    if not isinstance(value, str):
        return value
    for name, each in given.items():
        text = each if isinstance(each, str) else go_json(each)
        value = value.replace("{{$.inputs.parameters['" + name + "']}}", text)
    return value


def _resources(asked: Json, given: Json) -> Json:
    found: Json = {"limits": {}, "requests": {}}
    if "resourceMemoryLimit" in asked:
        found["limits"]["memory"] = _resolved(asked["resourceMemoryLimit"], given)
    if "resourceCpuRequest" in asked:
        found["requests"]["cpu"] = _resolved(asked["resourceCpuRequest"], given)
    if "accelerator" in asked:
        kind = _resolved(asked["accelerator"]["resourceType"], given)
        found["limits"][kind] = _resolved(asked["accelerator"]["resourceCount"], given)
    return found


def _extend(pod: Json, kubernetes: Json, values: Json) -> None:
    """What the driver adds from the platform's part: `extendPodSpecPatch`."""

    def named(each: Json, key: str = "secretName") -> str:
        parameter = each.get(f"{key}Parameter")
        if parameter is None:
            return str(each[key])
        constant = parameter.get("runtimeValue", {}).get("constant")
        return str(constant if constant is not None else values[parameter["componentInputParameter"]])

    main = pod["containers"][0]
    mounts, volumes, env = [], [], []
    if selector := kubernetes.get("nodeSelector"):
        source = selector.get("nodeSelectorJson", {})
        labels = values.get(source.get("componentInputParameter", ""), selector.get("labels"))
        pod.update({"nodeSelector": labels} if labels else {})
    for each in kubernetes.get("tolerations", ()):
        found = values.get(each["tolerationJson"]["componentInputParameter"]) if "tolerationJson" in each else [each]
        pod["tolerations"] = [*pod.get("tolerations", ()), *(found or ())]
    for each in kubernetes.get("secretAsVolume", ()):
        name = named(each)
        volumes.append({"name": name, "secret": {"secretName": name, "optional": each.get("optional", False)}})
        mounts.append({"name": name, "mountPath": each["mountPath"]})
    for each in kubernetes.get("secretAsEnv", ()):
        for pair in each["keyToEnv"]:
            ref = {"name": named(each), "key": pair["secretKey"], "optional": each.get("optional", False)}
            env.append({"name": pair["envVar"], "valueFrom": {"secretKeyRef": ref}})
    for each in kubernetes.get("imagePullSecret", ()):
        pod.setdefault("imagePullSecrets", []).append({"name": named(each)})
    for each in kubernetes.get("fieldPathAsEnv", ()):
        env.append({"name": each["name"], "valueFrom": {"fieldRef": {"fieldPath": each["fieldPath"]}}})
    if "activeDeadlineSeconds" in kubernetes:
        pod["activeDeadlineSeconds"] = int(kubernetes["activeDeadlineSeconds"])
    for each in kubernetes.get("emptyDirMounts", ()):
        kind = {"medium": each["medium"]} if "medium" in each else {}
        limit = {"sizeLimit": each["sizeLimit"]} if "sizeLimit" in each else {}
        volumes.append({"name": each["volumeName"], "emptyDir": {**kind, **limit}})
        mounts.append({"name": each["volumeName"], "mountPath": each["mountPath"]})
    if security := kubernetes.get("securityContext"):
        main["securityContext"] = {"runAsNonRoot": security["runAsNonRoot"], "capabilities": {"drop": ["ALL"]}}
    for key, found in (("volumeMounts", mounts), ("env", env)):
        if found:
            main[key] = found
    if volumes:
        pod["volumes"] = volumes
