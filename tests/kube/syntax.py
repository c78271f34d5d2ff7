"""What the API server checks beyond schemas: names, labels, annotations, quantities.

Source: Kubernetes 1.37, apimachinery/pkg/util/validation and pkg/api/validation; api/resource/quantity.go.
"""

import re
from collections.abc import Iterator
from typing import Any

QUANTITY = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?"
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_QUALIFIED = r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"

# Kinds whose names become DNS labels (pods' host names, namespaces) and so may be neither long nor dotted.
_LABEL_KINDS = {
    *("Namespace", "Service", "StatefulSet", "Job", "CronJob", "Pod", "Deployment"),
    *("InferenceService", "TrainJob", "Pipeline", "PipelineVersion", "LocalQueue"),
}
# Begin with a letter: RFC 1035. KServe's webhook, Trainer's CEL rule and older API servers' Services.
_LETTER_FIRST_KINDS = {"Service", "InferenceService", "TrainJob"}
_PATH_KINDS = {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}  # any name that is a path segment
_MAPS_OF_LABELS = ("labels", "matchLabels", "nodeSelector")
_QUANTITY_MAPS = ("requests", "limits", "hard", "capacity")
_QUANTITY_FIELDS = ("sizeLimit", "nominalQuota", "borrowingLimit", "lendingLimit", "storageLimit", "modelSize")
_MAX_ANNOTATIONS_BYTES = 256 * 1024


class ManifestError(AssertionError):
    """An object that a cluster, or our own rules, would refuse."""


def describe(obj: dict[str, Any]) -> str:
    """Kind namespace/name, for messages."""
    metadata = obj.get("metadata") or {}
    place = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return f"{obj.get('kind')} {place}{metadata.get('name') or metadata.get('generateName')}"


def walk(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dict inside a value with its path, outer ones first."""
    if isinstance(value, dict):
        yield path, value
        for key, item in value.items():
            yield from walk(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from walk(item, f"{path}[{index}]")


def is_label(text: Any) -> bool:
    """RFC 1123 label: at most 63 characters."""
    return isinstance(text, str) and len(text) <= 63 and re.fullmatch(_LABEL, text) is not None


def is_subdomain(text: Any) -> bool:
    """RFC 1123 subdomain: at most 253 characters."""
    return isinstance(text, str) and len(text) <= 253 and re.fullmatch(_SUBDOMAIN, text) is not None


def check_syntax(obj: dict[str, Any]) -> None:
    """Names, labels, annotations and quantities of one object, wherever they stand.

    Raises:
        ManifestError: with the place, what was found and what was expected.
    """
    _check_name(obj)
    for path, node in walk(obj):
        if path.startswith("status") or _is_schema(obj, path):
            continue
        for key in _MAPS_OF_LABELS:
            if isinstance(node.get(key), dict):
                _check_labels(obj, f"{path}.{key}".lstrip("."), node[key])
        if isinstance(node.get("annotations"), dict):
            _check_annotations(obj, f"{path}.annotations".lstrip("."), node["annotations"])
        for key in _QUANTITY_MAPS:
            if isinstance(node.get(key), dict):
                for name, quantity in node[key].items():
                    _check_quantity(obj, f"{path}.{key}.{name}", quantity)
        for key in _QUANTITY_FIELDS:
            if isinstance(node.get(key), str | int | float):
                _check_quantity(obj, f"{path}.{key}", node[key])


def _is_schema(obj: dict[str, Any], path: str) -> bool:
    return obj["kind"] == "CustomResourceDefinition" and path.startswith("spec.versions")


def _check_name(obj: dict[str, Any]) -> None:
    metadata, kind = obj["metadata"], obj["kind"]
    if "name" not in metadata and metadata.get("generateName"):
        return
    name = metadata.get("name")
    if kind in _PATH_KINDS:
        good = isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/%]", name)
        expected = "a name without / and %"
    elif kind in _LABEL_KINDS:
        good, expected = is_label(name), "an RFC 1123 label (a-z, 0-9, -; at most 63 characters)"
        if kind in _LETTER_FIRST_KINDS:
            good, expected = good and name[0].isalpha(), expected + " that begins with a letter"
    else:
        good, expected = is_subdomain(name), "an RFC 1123 subdomain (a-z, 0-9, -, .; at most 253 characters)"
    if not good:
        raise ManifestError(f"{describe(obj)}: metadata.name is {name!r}; expected {expected}")
    if "namespace" in metadata and not is_label(metadata["namespace"]):
        raise ManifestError(
            f"{describe(obj)}: metadata.namespace is {metadata['namespace']!r}; expected an RFC 1123 label"
        )


def _check_key(obj: dict[str, Any], where: str, key: Any) -> None:
    prefix, slash, name = str(key).rpartition("/")
    if (slash and not is_subdomain(prefix)) or len(name) > 63 or not re.fullmatch(_QUALIFIED, name):
        raise ManifestError(f"{describe(obj)}: {where} has the key {key!r}; expected [dns.subdomain/]name")


def _check_labels(obj: dict[str, Any], where: str, labels: dict[str, Any]) -> None:
    for key, value in labels.items():
        _check_key(obj, where, key)
        if not isinstance(value, str) or len(value) > 63 or (value and not re.fullmatch(_QUALIFIED, value)):
            raise ManifestError(
                f"{describe(obj)}: {where}.{key} is {value!r}; expected text of at most 63 letters, digits, - _ ."
            )


def _check_annotations(obj: dict[str, Any], where: str, annotations: dict[str, Any]) -> None:
    for key, value in annotations.items():
        _check_key(obj, where, key.lower())
        if not isinstance(value, str):
            raise ManifestError(f"{describe(obj)}: {where}.{key} is {value!r}; expected text (quote it)")
    if sum(len(f"{key}{value}".encode()) for key, value in annotations.items()) > _MAX_ANNOTATIONS_BYTES:
        raise ManifestError(f"{describe(obj)}: {where} is larger than {_MAX_ANNOTATIONS_BYTES} bytes")


def _check_quantity(obj: dict[str, Any], where: str, quantity: Any) -> None:
    if not re.fullmatch(QUANTITY, str(quantity)):
        raise ManifestError(f"{describe(obj)}: {where} is {quantity!r}; expected a quantity such as 4, 500m, 32Gi")
