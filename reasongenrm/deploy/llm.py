"""The objects of `deploy.target: llminferenceservice`: the model by KServe's LLMInferenceService, our judge's server in
front of it.

In go settings, a model and the gate's decision; out come an LLMInferenceService, which owns the others, and the judge's
server as a Deployment and a Service. Clients reach it as any judge, by the Service `<name>`. Pure, as `manifest`.
"""

import copy
from typing import Any

from reasongenrm.config import DeployConfig
from reasongenrm.deploy.manifest import (
    COMPONENT,
    MODEL_STAYS_SECONDS,
    MODEL_STOPS_SECONDS,
    metadata_of,
    own_labels,
    resources_of,
    revision_from,
)
from reasongenrm.deploy.model_image import storage_uri
from reasongenrm.deploy.preflight import check_settings
from reasongenrm.deploy.transformer import PREDICTOR_KEY, render_transformer
from reasongenrm.kubernetes.pod_parts import secret_variable
from reasongenrm.store.artifacts import ArtifactRef

PORT = 8000  # KServe's, of the model's pods and of their Service


def render_llm(config: DeployConfig, model: ArtifactRef, decision: ArtifactRef) -> list[dict[str, Any]]:
    """An LLMInferenceService (serving.kserve.io/v1alpha2) called `<name>-<revision>`, and `<name>-<revision>-judge`.

    The LLMInferenceServiceConfig that `config.runtime` names has the image, the command, probes and volumes
    (manifests/addons/llm); KServe merges it over its own preset and this object over both. Without `spec.router` KServe
    makes no route, no gateway and no scheduler.

    Args:
        model, decision: as in `render_inference_service`.

    Raises:
        ConfigError: settings that do not go together (see `preflight`).

    Source: KServe aaac4e294, config/crd/full/llmisvc and pkg/controller/v1alpha2/llmisvc.
    """
    check_settings(config)
    arguments = [
        f"--port={PORT}",
        f"--served-model-name={config.name}",
        f"--max-model-len={config.max_model_len}",
        "--reasoning-parser-plugin=/mnt/models/reasongenrm_reasoning_parser.py",
        "--reasoning-parser=reasongenrm",
        *([f"--tensor-parallel-size={config.gpu_count}"] if config.gpu_count > 1 else []),
    ]
    container: dict[str, Any] = {
        "name": "main",
        "args": arguments,
        "resources": resources_of(config),
        # KServe's preset has such a hook of 15 s; another kind of hook would be merged with it into two.
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sleep", str(MODEL_STAYS_SECONDS)]}}},
    }
    if config.judge_secret is not None:
        container["env"] = [secret_variable(config.judge_secret, PREDICTOR_KEY)]
    spec = {
        "model": {"uri": storage_uri(config, model), "name": config.name},
        "replicas": config.min_replicas,
        "baseRefs": [{"name": config.runtime}],
        "labels": {COMPONENT: "predictor"},  # of the pods: as KServe's of an InferenceService, for policies
        "template": {
            "serviceAccountName": config.service_account,
            "terminationGracePeriodSeconds": MODEL_STAYS_SECONDS + MODEL_STOPS_SECONDS,
            "containers": [container],
        },
    }
    judge = render_transformer(config, decision)
    revision = revision_from([spec, model.digest, judge])
    metadata = metadata_of(config, model, decision, revision)
    server, pod = f"{metadata['name']}-judge", copy.deepcopy(judge)
    pod["containers"][0]["args"] += [
        f"--predictor_host={metadata['name']}-kserve-workload-svc.{config.namespace}:{PORT}",
        "--http_port=8080",
    ]
    replicas = pod.pop("minReplicas")
    del pod["maxReplicas"]
    labels = {**metadata["labels"], **pod.pop("labels"), COMPONENT: "transformer"}
    selector = {**own_labels(config.name), "app": server}
    mine = {"name": server, "namespace": config.namespace, "labels": labels}
    template = {"metadata": {"labels": labels | selector}, "spec": pod}
    return [
        {
            "apiVersion": "serving.kserve.io/v1alpha2",
            "kind": "LLMInferenceService",
            "metadata": metadata,
            "spec": spec,
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": mine,
            "spec": {"replicas": replicas, "selector": {"matchLabels": selector}, "template": template},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": mine,
            "spec": {
                "selector": selector,
                "ports": [{"name": "http1", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
            },
        },
    ]
