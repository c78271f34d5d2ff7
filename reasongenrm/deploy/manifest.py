"""The InferenceService that serves a checkpoint, rendered.

In go settings, a model and the gate's decision; out comes the manifest in dicts. KServe's Standard mode, our own
namespaced ServingRuntime, the checkpoint straight from S3 or from an image, and the judge's server in front of it
(`transformer`). Pure.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from reasongenrm import __version__
from reasongenrm.config import DeployConfig
from reasongenrm.deploy.model_image import storage_uri
from reasongenrm.deploy.preflight import check_settings
from reasongenrm.deploy.transformer import PREDICTOR_KEY, render_transformer
from reasongenrm.kubernetes.pod_parts import secret_variable
from reasongenrm.store.artifacts import ArtifactRef

MODEL_FORMAT = "huggingface"  # what the runtime says it can serve: a folder as `save_pretrained` writes it
FILE_NAME = "inferenceservice.yaml"

MODE, AUTOSCALER = "serving.kserve.io/deploymentMode", "serving.kserve.io/autoscalerClass"
# Annotations. KServe copies an InferenceService's annotations to its pods, so a change of any of them starts new pods.
OWN = "reasongenrm.io/"
VARIANT, DIGEST, DECISION = f"{OWN}variant", f"{OWN}model-digest", f"{OWN}decision"
REPLACED = f"{OWN}replaced"  # JSON: digest, decision and store object of what this one replaced
ROLLOUT = f"{OWN}rollout"  # a hash of spec and model: the pods that carry it are the pods of this manifest

_REVISION_DIGITS = 16


def render_inference_service(config: DeployConfig, model: ArtifactRef, decision: ArtifactRef) -> dict[str, Any]:
    """The InferenceService (serving.kserve.io/v1beta1) that serves one checkpoint.

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
        "deploymentStrategy": {"type": config.strategy},
        "model": _model(config, model),
    }
    own = {VARIANT: str(decision.metrics["winner"]), DIGEST: model.digest, DECISION: decision.uri}
    transformer = {"transformer": render_transformer(config, decision)} if config.judge.enabled else {}
    asked = json.dumps(
        [predictor, config.autoscaler, model.digest, *transformer.values()], sort_keys=True, separators=(",", ":")
    )
    own[ROLLOUT] = hashlib.sha256(asked.encode()).hexdigest()[:_REVISION_DIGITS]
    predictor["labels"] = {"app.kubernetes.io/version": __version__}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": config.name,
            "namespace": config.namespace,
            "labels": {
                "app.kubernetes.io/name": config.name,
                "app.kubernetes.io/part-of": "reasongenrm",
                "app.kubernetes.io/version": __version__,
                "app.kubernetes.io/managed-by": "reasongenrm",
            },
            "annotations": {
                MODE: "Standard",  # KServe's shipped default is serverless
                **({AUTOSCALER: config.autoscaler} if config.autoscaler != "hpa" else {}),
                **own,
            },
        },
        "spec": {"predictor": predictor, **transformer},
    }


def _model(config: DeployConfig, model: ArtifactRef) -> dict[str, Any]:
    args = [f"--max-model-len={config.max_model_len}"]
    if config.server == "vllm" and config.gpu_count > 1:
        args.append(f"--tensor-parallel-size={config.gpu_count}")
    resources = {"cpu": config.cpu, "memory": config.memory}
    if config.gpu_count:
        resources[config.gpu_resource] = str(config.gpu_count)
    rendered: dict[str, Any] = {
        "modelFormat": {"name": MODEL_FORMAT},
        "runtime": config.runtime,
        "storageUri": storage_uri(config, model),
        "args": args,
        "resources": {"requests": dict(resources), "limits": dict(resources)},
    }
    if config.judge_secret is not None:
        rendered["env"] = [secret_variable(config.judge_secret, PREDICTOR_KEY)]
    return rendered


def revision_of(item: Mapping[str, Any]) -> str | None:
    """The rollout revision of a manifest, a pod or a pod template; None if we did not make it."""
    revision: str | None = item.get("metadata", {}).get("annotations", {}).get(ROLLOUT)
    return revision
