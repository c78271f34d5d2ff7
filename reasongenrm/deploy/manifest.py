"""The InferenceService that serves a checkpoint, rendered.

In go settings, a model and the gate's decision; out comes the manifest in dicts. KServe's Standard mode, our own
namespaced ServingRuntime, the checkpoint straight from S3 or from an image, and the judge's server in front of it
(`transformer`). Pure.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from reasongenrm import __version__
from reasongenrm.config import DeployConfig
from reasongenrm.deploy.model_image import storage_uri
from reasongenrm.deploy.preflight import REVISION_DIGITS, check_settings
from reasongenrm.deploy.transformer import PREDICTOR_KEY, STOP_SECONDS, render_transformer
from reasongenrm.kubernetes.pod_parts import secret_variable
from reasongenrm.store.artifacts import ArtifactRef

MODEL_FORMAT = "huggingface"  # what the runtime says it can serve: a folder as `save_pretrained` writes it
FILE_NAME = "inferenceservice.yaml"

MODE, AUTOSCALER = "serving.kserve.io/deploymentMode", "serving.kserve.io/autoscalerClass"
VISIBILITY = "networking.kserve.io/visibility"  # a label
COMPONENT = "component"  # KServe's label: predictor or transformer
# Annotations. KServe copies an InferenceService's annotations to its pods.
OWN = "reasongenrm.io/"
VARIANT, DIGEST, DECISION = f"{OWN}variant", f"{OWN}model-digest", f"{OWN}decision"
ROLLOUT = f"{OWN}rollout"  # a hash of spec and model; on the Service `<name>`: of the judge that it leads to

WAITING_PER_REPLICA = "8"  # requests in vLLM's queue; with more, KEDA adds a replica

# While pods end, the judge's server gets this much before the model does: it answers what it is asked meanwhile.
MODEL_STAYS_SECONDS = STOP_SECONDS + 5
MODEL_STOPS_SECONDS = 30


def render_inference_service(config: DeployConfig, model: ArtifactRef, decision: ArtifactRef) -> dict[str, Any]:
    """The InferenceService (serving.kserve.io/v1beta1) that serves one checkpoint, called `<name>-<revision>`.

    Args:
        model: the checkpoint; its folder, or its image, becomes `storageUri`.
        decision: the gate's decision, recorded with the model's digest as an annotation; its winner says how the
            judge's server asks, its metrics hold the calibration, if there is one.

    Raises:
        ConfigError: settings that do not go together (see `preflight`), a `model_image` that is no repository.

    Source: KServe 0.21, config/crd/full.
    """
    check_settings(config)
    predictor: dict[str, Any] = {
        "serviceAccountName": config.service_account,
        "minReplicas": config.min_replicas,
        "maxReplicas": config.max_replicas,
        "terminationGracePeriodSeconds": MODEL_STAYS_SECONDS + MODEL_STOPS_SECONDS,
        "model": _model(config, model),
    }
    transformer = {"transformer": render_transformer(config, decision)} if config.judge.enabled else {}
    revision = revision_from([predictor, config.autoscaler, config.prometheus, model.digest, *transformer.values()])
    metadata = metadata_of(config, model, decision, revision)
    if config.autoscaler == "keda":
        predictor["autoScaling"] = {"metrics": [_queue(config, metadata["name"])]}
    if config.autoscaler != "hpa":
        predictor["annotations"] = {AUTOSCALER: config.autoscaler}
    predictor["labels"] = {"app.kubernetes.io/version": __version__}
    metadata["labels"][VISIBILITY] = "cluster-local"  # no Ingress or HTTPRoute of its own, whose host would change
    metadata["annotations"][MODE] = "Standard"  # KServe's shipped default is serverless
    if config.autoscaler == "none":
        metadata["annotations"][AUTOSCALER] = config.autoscaler
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {"predictor": predictor, **transformer},
    }


def revision_from(asked: list[Any]) -> str:
    """The rollout revision of what is asked for, 16 hex digits."""
    written = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(written.encode()).hexdigest()[:16]


def metadata_of(config: DeployConfig, model: ArtifactRef, decision: ArtifactRef, revision: str) -> dict[str, Any]:
    """Name, labels and annotations of the object that owns a judge's others."""
    return {
        "name": f"{config.name}-{revision[:REVISION_DIGITS]}",
        "namespace": config.namespace,
        "labels": {
            **own_labels(config.name),
            "app.kubernetes.io/part-of": "reasongenrm",
            "app.kubernetes.io/version": __version__,
        },
        "annotations": {
            VARIANT: str(decision.metrics["winner"]),
            DIGEST: model.digest,
            DECISION: decision.uri,
            ROLLOUT: revision,
        },
    }


def own_labels(name: str) -> dict[str, str]:
    """By which a name's Service and what is behind it are found."""
    return {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "reasongenrm"}


def _queue(config: DeployConfig, name: str) -> dict[str, Any]:
    """KEDA's trigger: the requests that wait in vLLM, of these pods alone."""
    waiting = f'sum(vllm:num_requests_waiting{{namespace="{config.namespace}",pod=~"{name}-predictor-.*"}})'
    metric = {"backend": "prometheus", "serverAddress": config.prometheus, "query": waiting}
    target = {"type": "Value", "value": WAITING_PER_REPLICA}  # KServe reads `value`; KEDA takes it for each replica
    return {"type": "External", "external": {"metric": metric, "target": target}}


def _model(config: DeployConfig, model: ArtifactRef) -> dict[str, Any]:
    # The name in requests stays; the runtime's own argument, which comes first, has the InferenceService's.
    served_as = "--served-model-name" if config.server == "vllm" else "--name"
    args = [f"--max-model-len={config.max_model_len}", f"{served_as}={config.name}"]
    if config.server == "vllm" and config.gpu_count > 1:
        args.append(f"--tensor-parallel-size={config.gpu_count}")
    rendered: dict[str, Any] = {
        "modelFormat": {"name": MODEL_FORMAT},
        "runtime": config.runtime,
        "storageUri": storage_uri(config, model),
        "args": args,
        "resources": resources_of(config),
        "lifecycle": {"preStop": {"sleep": {"seconds": MODEL_STAYS_SECONDS}}},
    }
    if config.judge_secret is not None:
        rendered["env"] = [secret_variable(config.judge_secret, PREDICTOR_KEY)]
    return rendered


def resources_of(config: DeployConfig) -> dict[str, Any]:
    """Of one replica of the model."""
    resources = {"cpu": config.cpu, "memory": config.memory}
    if config.gpu_count:
        resources[config.gpu_resource] = str(config.gpu_count)
    return {"requests": dict(resources), "limits": dict(resources)}


def revision_of(item: Mapping[str, Any]) -> str | None:
    """The rollout revision of a manifest, a pod or a pod template; None if we did not make it."""
    revision: str | None = item.get("metadata", {}).get("annotations", {}).get(ROLLOUT)
    return revision


def manifest_of(item: Mapping[str, Any]) -> dict[str, Any]:
    """An object without status and without what the server adds to its metadata."""
    kept = ("name", "namespace", "labels", "annotations")
    metadata = {key: item["metadata"][key] for key in kept if key in item["metadata"]}
    return copy.deepcopy(
        {"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": metadata, "spec": item["spec"]}
    )
