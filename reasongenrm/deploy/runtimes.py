"""What the cluster's ServingRuntime can do, and whether a model and our settings fit it.

In goes the runtime that a manifest names, as the API server has it; out comes nothing, or what to change. Where this
finds nothing wrong, KServe itself tells of a runtime that is disabled or serves another format
(`health.service_troubles`).
"""

from collections.abc import Mapping
from typing import Any

from reasongenrm.config import DeployConfig
from reasongenrm.errors import ClusterError
from reasongenrm.kubernetes.cluster import Cluster
from reasongenrm.kubernetes.kinds import LLM_CONFIG, LLM_INFERENCE_SERVICE, SERVING_RUNTIME
from reasongenrm.store.artifacts import ArtifactRef, open_artifact

# where KServe puts the checkpoint. Source: KServe aaac4e294, pkg/constants DefaultModelLocalMountPath
_MODEL_DIR = "/mnt/models/"
_PARSER, _PLUGIN = "--reasoning-parser", "--reasoning-parser-plugin"  # of `vllm serve`


def check_runtime(cluster: Cluster, config: DeployConfig, manifest: Mapping[str, Any], model: ArtifactRef) -> None:
    """Refuse a manifest whose runtime is missing or cannot serve this model.

    Raises:
        ClusterError: with what was found; nothing was written.
        StoreError: the model is not in the store any more.
    """
    of_llm = manifest["kind"] == LLM_INFERENCE_SERVICE.kind
    kind, source = (LLM_CONFIG, "manifests/addons/llm") if of_llm else (SERVING_RUNTIME, "manifests/serving")
    name = _runtime_of(manifest)
    runtime = cluster.get(kind, config.namespace, name)
    where = f"{kind.kind} {config.namespace}/{name}"
    if runtime is None:
        found = [item["metadata"]["name"] for item in cluster.list(kind, config.namespace)]
        raise ClusterError(
            f"{where}: not there (found: {', '.join(found) or 'none'}). Apply {source}, or set deploy.runtime."
        )
    if of_llm:
        runtime = {"spec": manifest["spec"]["template"]}  # the arguments are the manifest's own
    if config.server == "vllm" and manifest["spec"].get("transformer") and not _has_reasoning_parser(runtime):
        raise ClusterError(
            f"{where}: starts vLLM without {_PARSER}, so the judge's server would find reason and verdict in one text. "
            "Apply manifests/serving of this version, or set deploy.judge.enabled to false."
        )
    plugin = _argument(runtime, _PLUGIN) or ""
    in_model = plugin.removeprefix(_MODEL_DIR)
    if in_model != plugin and in_model not in [entry.path for entry in open_artifact(model).files]:
        raise ClusterError(
            f"{where}: starts vLLM with {plugin}, but the model {model.uri} has no {in_model}: it was made by an older "
            f"version. Train it again, or serve it by a runtime without {_PLUGIN} (deploy.runtime), with "
            "deploy.judge.enabled false."
        )


def leaves_markup(cluster: Cluster, config: DeployConfig, manifest: Mapping[str, Any]) -> bool:
    """Whether the model of an InferenceService gives reason and answer in one text (see `EndpointEngine`)."""
    runtime = cluster.get(SERVING_RUNTIME, config.namespace, _runtime_of(manifest))
    return config.server == "vllm" and not _has_reasoning_parser(runtime)


def _runtime_of(manifest: Mapping[str, Any]) -> str:
    spec = manifest["spec"]
    name: str = spec["baseRefs"][0]["name"] if "baseRefs" in spec else spec["predictor"]["model"]["runtime"]
    return name


def _has_reasoning_parser(runtime: Mapping[str, Any] | None) -> bool:
    """Whether its vLLM gives reason and answer apart, as `message.reasoning` and `message.content`."""
    return runtime is not None and _argument(runtime, _PARSER) is not None


def _argument(runtime: Mapping[str, Any], name: str) -> str | None:
    """The value of an option on the containers' command lines, --name=value or --name value."""
    for container in runtime["spec"].get("containers", ()):
        line = [*container.get("command", ()), *container.get("args", ())]
        for word, following in zip(line, [*line[1:], ""], strict=True):
            if word == name:
                return str(following)
            if word.startswith(f"{name}="):
                return str(word.removeprefix(f"{name}="))
    return None
