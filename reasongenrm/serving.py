"""deploy_kserve: the InferenceService that a cluster gets for the winner, rendered as YAML.

In go the decision of the gate and the models it chose from; out comes `inferenceservice.yaml`. KServe's Standard mode, our
own namespaced ServingRuntime (vLLM), the checkpoint straight from S3. Nothing here talks to a cluster.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from reasongenrm import __version__
from reasongenrm.config import DeployConfig
from reasongenrm.errors import ConfigError, InputError

if TYPE_CHECKING:
    from reasongenrm.store import ArtifactRef, Store

RUNTIME = "reasongenrm-vllm"  # the ServingRuntime, in the InferenceService's own namespace
MODEL_FORMAT = "huggingface"  # what the runtime says it can serve: a folder as `save_pretrained` writes it
FILE_NAME = "inferenceservice.yaml"

# Kubernetes quantities as people write them. The CRD's schema takes any text ("8GiB" passes), the API server does not.
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")


def render_inference_service(config: DeployConfig, model: "ArtifactRef", decision: "ArtifactRef") -> dict[str, Any]:
    """The InferenceService (serving.kserve.io/v1beta1) that serves one checkpoint.

    Args:
        config: name, place, resources and replicas.
        model: the checkpoint; its folder becomes `storageUri`, which must end with "/" for S3.
        decision: the gate's decision, recorded beside the model's digest as an annotation.

    Returns:
        The manifest as plain dicts and lists.

    Raises:
        ConfigError: a quantity that Kubernetes cannot read, or min_replicas above max_replicas, which KServe's webhook
            would refuse.

    Source: KServe 0.21, config/crd/full and its validating webhook; what that refuses besides (a non-empty model.name,
        PYTHONPATH, storageUri beside storageUris, other autoscaler classes) is never rendered.
    """
    for key, quantity in (("cpu", config.cpu), ("memory", config.memory)):
        if not _QUANTITY.fullmatch(quantity):
            raise ConfigError(
                f"deploy.{key} is '{quantity}': expected a Kubernetes quantity such as 4, 500m, 32Gi. Change the config."
            )
    if config.min_replicas > config.max_replicas:
        raise ConfigError(
            f"deploy: min_replicas {config.min_replicas} is above max_replicas {config.max_replicas}; KServe refuses that. "
            "Raise max_replicas or lower min_replicas."
        )
    resources = {"cpu": config.cpu, "memory": config.memory}
    if config.gpu_count:
        resources[config.gpu_resource] = str(config.gpu_count)
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
                "serving.kserve.io/deploymentMode": "Standard",  # KServe's shipped default is serverless
                "reasongenrm.io/variant": str(decision.metrics["winner"]),
                "reasongenrm.io/model-digest": model.digest,
                "reasongenrm.io/decision": decision.uri,
            },
        },
        "spec": {
            "predictor": {
                "serviceAccountName": config.service_account,
                "minReplicas": config.min_replicas,
                "maxReplicas": config.max_replicas,
                "deploymentStrategy": {"type": "Recreate"},  # a rolling update waits for ever where every GPU is taken
                "model": {
                    "modelFormat": {"name": MODEL_FORMAT},
                    "runtime": RUNTIME,
                    "storageUri": model.uri.rstrip("/") + "/",
                    "args": [f"--max-model-len={config.max_model_len}"],
                    "resources": {"requests": dict(resources), "limits": dict(resources)},
                },
            }
        },
    }


def deploy_kserve(
    store: "Store", config: DeployConfig, decision: "ArtifactRef", models: Mapping[str, "ArtifactRef"]
) -> "ArtifactRef":
    """Render the InferenceService of the winner into the store.

    Args:
        decision: of select_winner; `metrics["winner"]` names the variant, `metrics["passed"]` says whether to deploy it.
        models: variant -> checkpoint; holds the winner.

    Returns:
        The artifact with `inferenceservice.yaml`; metrics: variant, model_uri.

    Raises:
        InputError: the gate did not pass, or there is no model of the winner.
        ConfigError: see `render_inference_service`.
    """
    from reasongenrm.stage import Stage

    winner = str(decision.metrics["winner"])
    if not decision.metrics["passed"]:
        raise InputError(
            f"deploy_kserve: the gate did not pass ({decision.uri}); expected a decision that did. "
            "Read its decision.md; nothing is deployed."
        )
    if winner not in models:
        raise InputError(
            f"deploy_kserve: the winner is '{winner}', but only these models are here: {', '.join(sorted(models))}. "
            "Hand over the winner's model."
        )
    model = models[winner]
    with Stage(store, "deploy_kserve", config, {"decision": decision, "model": model}) as stage:
        if stage.done:
            return stage.done
        manifest = render_inference_service(config, model, decision)
        text = f"# The judge '{winner}': kubectl apply -f {FILE_NAME}\n" + yaml.safe_dump(manifest, sort_keys=False)
        stage.add_bytes(FILE_NAME, text.encode())
        return stage.finish({"num_in": 1, "num_out": 1}, {"variant": winner, "model_uri": model.uri})
