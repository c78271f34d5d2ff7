"""The TrainJob of a stage: its name, its labels, and a spec for Kubeflow Trainer 2.3.

Image, volumes, /dev/shm and security context are the TrainingRuntime's (manifests/base); here stands what the run
decides.
"""

import os
from collections.abc import Mapping
from typing import Any

from reasongenrm import __version__
from reasongenrm.config import DPOConfig, SFTConfig, TrainConfig, TrainJobConfig
from reasongenrm.errors import ConfigError
from reasongenrm.kubernetes.pod_parts import secret_variable
from reasongenrm.store.artifacts import ArtifactRef, digest_bytes
from reasongenrm.store.stage import Stage
from reasongenrm.trainjob.node import NodeTask

KEY_LABEL = "reasongenrm.io/stage-key"
STORE_ANNOTATION = "reasongenrm.io/store"
LAUNCH_ANNOTATION = "reasongenrm.io/launch"  # of the process that created it
NODE = "node"  # replicated job and container: pkg/constants/constants.go of kubeflow/trainer at 8c0f5059b
_PATCH_MANAGER = "reasongenrm.io/launcher"  # Trainer wants a domain and a path
# JobSet adds "-node-0-NNN" for the host name and five random letters for the pod: 63 less those.
_MAX_NAME = 63 - len("-node-0-999-abcde")
_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")  # of the S3 Secret
_OPTIONAL_S3_KEYS = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_SESSION_TOKEN")


def trainjob_name(stage: Stage) -> str:
    """The same for every run of the same stage in the same store; a DNS label that leaves room for the pods'
    suffixes."""
    store = digest_bytes(stage.store.uri.encode()).removeprefix("sha256:")[:6]
    name = f"reasongenrm-{stage.name.replace('_', '-')}-{stage.key}-{store}"
    assert len(name) <= _MAX_NAME, f"{name} is too long"
    return name


def num_processes_per_node(config: TrainConfig) -> int:
    """One a GPU; without GPUs what `num_processes` says."""
    return config.trainjob.gpus_per_node or config.num_processes or 1


def render_trainjob(
    stage: Stage, config: TrainConfig, inputs: Mapping[str, ArtifactRef], namespace: str, launch: str
) -> dict[str, Any]:
    """The TrainJob (trainer.kubeflow.org/v1alpha1) that does a stage's work.

    Args:
        config: of the stage; `config.trainjob` says where and how large.
        inputs: the stage's artifacts by the names that they have in its key.
        launch: tells this launcher's TrainJob from that of another one.

    Raises:
        ConfigError: train_batch_size has not one example for every process.

    Source: kubeflow/trainer at 8c0f5059b: manifests/base/crds (fields), pkg/runtime/framework/plugins/torch (PET_*
        variables and which ones may not be set), plugins/jobset (what runtimePatches may name).
    """
    place, per_node = config.trainjob, num_processes_per_node(config)
    size = per_node * place.num_nodes
    if config.train_batch_size < size:
        raise ConfigError(
            f"{stage.name}: train_batch_size is {config.train_batch_size}; expected at least one example for each of "
            f"{per_node} processes x {place.num_nodes} nodes = {size}. Set it to {size} or more."
        )
    labels = {
        "app.kubernetes.io/part-of": "reasongenrm",
        "app.kubernetes.io/component": stage.name,
        "app.kubernetes.io/version": __version__,
        "app.kubernetes.io/managed-by": "reasongenrm",
        KEY_LABEL: stage.key,
    }
    if place.queue is not None:
        labels["kueue.x-k8s.io/queue-name"] = place.queue
    annotations = {STORE_ANNOTATION: stage.store.uri, LAUNCH_ANNOTATION: launch}
    named = {"name": trainjob_name(stage), "namespace": namespace}
    metadata: dict[str, Any] = {**named, "labels": labels, "annotations": annotations}
    if owner := owner_reference():
        metadata["ownerReferences"] = [owner]
    resources = {"cpu": place.cpu, "memory": place.memory}
    if place.gpus_per_node:
        resources[place.gpu_resource] = str(place.gpus_per_node)
    trainer: dict[str, Any] = {
        "numNodes": place.num_nodes,
        "numProcPerNode": per_node,
        "command": ["python", "-m", "reasongenrm.trainjob.node"],
        "args": [_node_task(stage, config, inputs).model_dump_json()],
        "env": [
            secret_variable(place.s3_secret, key, key in _OPTIONAL_S3_KEYS) for key in (*_S3_KEYS, *_OPTIONAL_S3_KEYS)
        ],
        "resourcesPerNode": {"requests": dict(resources), "limits": dict(resources)},
    }
    if place.image is not None:
        trainer["image"] = place.image
    spec: dict[str, Any] = {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": place.runtime},
        "trainer": trainer,
    }
    if place.node_selector or place.tolerations:
        spec["runtimePatches"] = [_patch(place)]
    return {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": metadata, "spec": spec}


def owner_reference() -> dict[str, Any] | None:
    """The step's own Pod; what it owns goes when it goes. None outside of a pod of KFP's, which tells it (kubeflow/
    pipelines, backend/src/v2/compiler/argocompiler/common.go at 2.17.0)."""
    name, uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
    return {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid} if name and uid else None


def _node_task(stage: Stage, config: TrainConfig, inputs: Mapping[str, ArtifactRef]) -> NodeTask:
    here = {"mode": "pod", "trainjob": TrainJobConfig(), "num_processes": num_processes_per_node(config)}
    section = config.model_copy(update=here)
    return NodeTask(
        key=stage.key,
        store_uri=stage.store.uri,
        variant=stage.config.get("variant"),
        sft=section if isinstance(section, SFTConfig) else None,
        dpo=section if isinstance(section, DPOConfig) else None,
        inputs=dict(inputs),
    )


def _patch(place: TrainJobConfig) -> dict[str, Any]:
    pod: dict[str, Any] = {}
    if place.node_selector:
        pod["nodeSelector"] = dict(place.node_selector)
    if place.tolerations:
        pod["tolerations"] = [toleration.model_dump(exclude_none=True) for toleration in place.tolerations]
    job = {"name": NODE, "template": {"spec": {"template": {"spec": pod}}}}
    return {"manager": _PATCH_MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}
