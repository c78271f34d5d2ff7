"""What KServe's admission webhook would refuse or silently ignore, reported before a cluster is touched.

In go settings, or a manifest and the object that it replaces; out comes nothing or one error with every mistake. Covered is
what settings can get wrong. A manifest that was written by hand has been accepted once; if it is refused now, the server's
own words are passed on.

Source: KServe aaac4e294 (0.21), pkg/apis/serving/v1beta1/inference_service_validation.go and component.go,
pkg/constants/constants.go.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from reasongenrm.config import DeployConfig
from reasongenrm.errors import ConfigError

MODE = "serving.kserve.io/deploymentMode"
AUTOSCALER = "serving.kserve.io/autoscalerClass"

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123, a namespace
# Kubernetes quantities as people write them. The CRD's schema takes any text ("8GiB" passes), the API server does not.
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_LABEL_CHARS = 63  # of a Service's name and of one label of a host's name
# Names that KServe still reads for its modes: pkg/constants, ParseDeploymentMode.
_OLD_MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}


def check_settings(config: DeployConfig) -> None:
    """Refuse settings that cannot work, or that would have no effect with the others.

    Raises:
        ConfigError: all of them in one message.
    """
    _raise([*_settings(config)], "deploy", "Change the config.")


def check_admission(service: Mapping[str, Any], existing: Mapping[str, Any] | None = None) -> None:
    """Refuse a manifest that KServe's webhook would refuse.

    Args:
        service: the InferenceService as it would be written.
        existing: the object that is there now, with its status; None if there is none.

    Raises:
        ConfigError: all mistakes in one message; nothing was written.
    """
    meta = service["metadata"]
    where = f"InferenceService {meta.get('namespace', 'default')}/{meta['name']}"
    mistakes = [*_host(service), *_change(service, existing)]
    _raise(mistakes, where, "KServe refuses that; the cluster was not touched.")


def _raise(mistakes: list[str], where: str, advice: str) -> None:
    if mistakes:
        raise ConfigError(f"{where}: {'; '.join(mistakes)}. {advice}")


def _settings(config: DeployConfig) -> Iterator[str]:
    judge = config.judge
    quantities = {"cpu": config.cpu, "memory": config.memory, "judge.cpu": judge.cpu, "judge.memory": judge.memory}
    for key, quantity in quantities.items():
        if not _QUANTITY.fullmatch(quantity):
            yield f"deploy.{key} is '{quantity}': expected a Kubernetes quantity such as 4, 500m, 32Gi"
    if judge.enabled and judge.image is None:
        yield "judge.image is not set: name the cpu image, in which the judge's server runs, or set judge.enabled to false"
    if not _LABEL.fullmatch(config.namespace):
        yield f"namespace is '{config.namespace}': expected lower-case letters, digits and '-', at most {_LABEL_CHARS}"
    if config.min_replicas > config.max_replicas:
        yield (
            f"min_replicas {config.min_replicas} is above max_replicas {config.max_replicas}: raise max_replicas or "
            "lower min_replicas"
        )
    if config.min_replicas == 0 and config.autoscaler != "external":
        yield (
            f"min_replicas is 0, but an autoscaler of class '{config.autoscaler}' cannot scale to zero: set it to 1, or "
            "autoscaler to external and bring a KEDA ScaledObject"
        )
    if config.autoscaler == "none" and config.max_replicas != config.min_replicas:
        yield (
            f"max_replicas is {config.max_replicas}, which has no effect with autoscaler none: set it to min_replicas "
            f"({config.min_replicas})"
        )
    if config.server == "transformers" and config.gpu_count > 1:
        yield f"gpu_count is {config.gpu_count}, but server transformers uses one GPU at most: set it to 0 or 1"
    if config.golden_endpoint is not None and not config.apply:
        yield "golden_endpoint is set, which has no effect with apply false: leave it out"
    if config.golden_endpoint is not None and not re.fullmatch(r"https?://[^/\s]+/?", config.golden_endpoint):
        yield f"golden_endpoint is '{config.golden_endpoint}': expected http(s)://host or http(s)://host:port"


def _host(service: Mapping[str, Any]) -> Iterator[str]:
    name, namespace = service["metadata"]["name"], service["metadata"].get("namespace", "default")
    part = "transformer" if service["spec"].get("transformer") else "predictor"  # the longest of its hosts
    host = f"{name}-{part}-{namespace}"
    if len(host) > _LABEL_CHARS:
        yield (
            f"the host '{host}' that KServe would publish has {len(host)} characters, {_LABEL_CHARS} are allowed: shorten "
            "the name"
        )


def _change(service: Mapping[str, Any], existing: Mapping[str, Any] | None) -> Iterator[str]:
    if existing is None:
        return
    found = existing.get("status", {}).get("deploymentMode", "")
    found, asked = _OLD_MODES.get(found, found), service["metadata"].get("annotations", {}).get(MODE)
    if found and asked is not None and asked != found:
        yield (
            f"it runs in deploymentMode {found}, which cannot be changed to {asked}: delete it first "
            f"(kubectl delete inferenceservice {service['metadata']['name']} -n {service['metadata']['namespace']}), or "
            "deploy under another name"
        )
    before, after = existing["spec"]["predictor"], service["spec"]["predictor"]
    if before.get("name") != after.get("name") and _uri(before) == _uri(after):
        yield "predictor.name changes, but the model (storageUri) does not"


def _uri(predictor: Mapping[str, Any]) -> str | None:
    uri: str | None = predictor.get("model", {}).get("storageUri")
    return uri
