"""What is looked at before a cluster is touched: settings that cannot work together, a checkpoint that is not whole.

Source: KServe aaac4e294 (0.21), pkg/apis/serving/v1beta1/inference_service_validation.go and component.go.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from reasongenrm.config import DeployConfig
from reasongenrm.errors import ConfigError, StoreError
from reasongenrm.http_client import without_login
from reasongenrm.store.artifacts import ArtifactRef, Store, open_artifact

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123, a namespace
# Kubernetes quantities as people write them. The CRD's schema takes any text ("8GiB" passes), the API server does not.
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_HOST = re.compile(
    r"[a-z0-9][-_a-z0-9]{0,62}(\.[a-z0-9][-_a-z0-9]{0,62})*|[0-9a-f:.]*:[0-9a-f:.]*"
)  # a name, an address
REVISION_DIGITS = 8  # of the rollout revision in a name: `<name>-<revision>`
_LABEL_CHARS = 63  # of a Service's name and of one label of a host's name


def check_settings(config: DeployConfig) -> None:
    """Refuse settings that cannot work, or that would have no effect with the others.

    Raises:
        ConfigError: all of them in one message.
    """
    mistakes = [*_settings(config)]
    if mistakes:
        raise ConfigError(f"deploy: {'; '.join(mistakes)}. Change the config.")


def check_checkpoint(service: Mapping[str, Any], model: ArtifactRef) -> None:
    """Refuse a checkpoint that a pod could not load: it costs a listing, a failed start of pods minutes.

    Args:
        service: its InferenceService or LLMInferenceService; one that mounts an image does without the store's files.

    Raises:
        StoreError: there is no manifest, another one, or a file is not there in its size.
    """
    spec = service["spec"]
    uri = spec["model"]["uri"] if "model" in spec else spec["predictor"]["model"]["storageUri"]
    if not uri.startswith("s3://"):
        return
    manifest, store = open_artifact(model), Store(model.uri)
    sizes = store.sizes()
    for entry in manifest.files:
        if sizes.get(entry.path) != entry.size:
            found = f"{sizes[entry.path]:,} bytes" if entry.path in sizes else "not there"
            raise StoreError(
                f"{model.uri}/{entry.path}: {found}; the manifest says {entry.size:,} bytes. The checkpoint cannot be "
                "served, and nothing was touched. Delete this folder and train again."
            )


def _settings(config: DeployConfig) -> Iterator[str]:
    judge = config.judge
    quantities = {"cpu": config.cpu, "memory": config.memory, "judge.cpu": judge.cpu, "judge.memory": judge.memory}
    if config.target == "llminferenceservice":
        yield from _llm_settings(config)
    for key, quantity in quantities.items():
        if not _QUANTITY.fullmatch(quantity):
            yield f"deploy.{key} is '{quantity}': expected a Kubernetes quantity such as 4, 500m, 32Gi"
    if judge.enabled and judge.image is None:
        yield "judge.image is not set: name the cpu image, which has the judge's server, or set judge.enabled to false"
    if not _LABEL.fullmatch(config.namespace):
        yield f"namespace is '{config.namespace}': expected lower-case letters, digits and '-', at most {_LABEL_CHARS}"
    if config.min_replicas > config.max_replicas:
        yield (
            f"min_replicas {config.min_replicas} is above max_replicas {config.max_replicas}: raise max_replicas or "
            "lower min_replicas"
        )
    if (config.autoscaler == "keda") != (config.prometheus is not None):
        yield (
            f"autoscaler is '{config.autoscaler}' and prometheus '{config.prometheus}': keda needs the address of a "
            "Prometheus, and nothing else has a use for it"
        )
    if config.autoscaler == "keda" and config.server != "vllm":
        yield f"autoscaler is keda, which looks at vLLM's queue, but server is {config.server}: set it to hpa or none"
    if config.autoscaler == "none" and config.max_replicas != config.min_replicas:
        yield (
            f"max_replicas is {config.max_replicas}, which has no effect with autoscaler none: set it to min_replicas "
            f"({config.min_replicas})"
        )
    if config.server == "transformers" and config.gpu_count > 1:
        yield f"gpu_count is {config.gpu_count}, but server transformers uses one GPU at most: set it to 0 or 1"
    if config.golden_endpoint is not None and not config.apply:
        yield "golden_endpoint is set, which has no effect with apply false: leave it out"
    addresses = {key: getattr(config, key) for key in ("golden_endpoint", "model_registry", "prometheus")}
    for key, url in addresses.items():
        if url is not None and not _is_root(url):
            yield f"{key} is '{without_login(url)}': expected http(s)://host or http(s)://host:port"
    # The longest name that KServe makes of ours, with the digits of the rollout revision: a host, or a Service.
    part = "transformer" if judge.enabled else "predictor"
    longest = f"{config.name}-{'0' * REVISION_DIGITS}-{part}-{config.namespace}"
    if config.target == "llminferenceservice":
        longest = f"{config.name}-{'0' * REVISION_DIGITS}-kserve-workload-svc"
    if len(longest) > _LABEL_CHARS:
        yield (
            f"'{longest}', which KServe would make, has {len(longest)} characters, {_LABEL_CHARS} are allowed: shorten "
            "the name"
        )


def _llm_settings(config: DeployConfig) -> Iterator[str]:
    if config.server != "vllm" or not config.judge.enabled:
        yield "target is llminferenceservice, which has vLLM behind the judge's server: leave server and judge.enabled"
    if config.autoscaler != "hpa" or config.max_replicas != config.min_replicas:
        yield (
            "target is llminferenceservice, whose replicas are fixed: set max_replicas to min_replicas "
            f"({config.min_replicas}), and leave autoscaler"
        )


def _is_root(url: str) -> bool:
    """Whether it is http(s)://host or http(s)://host:port, and nothing more."""
    try:
        parts = urlsplit(url)
        is_port = parts.port != 0  # reading it raises ValueError where it is no port
    except ValueError:
        return False
    rest = (parts.path.rstrip("/"), parts.query, parts.fragment, parts.username)
    host = _HOST.fullmatch(parts.hostname or "")
    return is_port and parts.scheme in ("http", "https") and host is not None and not any(rest)
