"""What objects say of each other: everything named exists among them or is a documented prerequisite; selectors select.

A reference is (kind, namespace, name); the namespace of a cluster's own kind is "".
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.kube.pods import check_images, check_restricted, containers, pod_specs
from tests.kube.schemas import check
from tests.kube.syntax import ManifestError, describe

_CLUSTER_KINDS = {
    *("Namespace", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "PriorityClass", "StorageClass"),
    *("ResourceFlavor", "ClusterQueue", "WorkloadPriorityClass", "ClusterServingRuntime", "ClusterTrainingRuntime"),
    *("LocalModelCache", "LocalModelNodeGroup", "ClusterStorageContainer", "GatewayClass", "PersistentVolume"),
}
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


@dataclass(frozen=True)
class Reference:
    """One object names another."""

    kind: str
    namespace: str
    name: str
    where: str
    keys: tuple[str, ...] = ()  # of a Secret or ConfigMap
    optional: bool = False


def identity(obj: dict[str, Any]) -> tuple[str, str, str]:
    """(kind, namespace, name) of an object."""
    namespace = "" if obj["kind"] in _CLUSTER_KINDS else obj["metadata"].get("namespace", "")
    return obj["kind"], namespace, obj["metadata"]["name"]


def references(obj: dict[str, Any]) -> Iterator[Reference]:
    """Everything that an object names."""
    namespace = obj["metadata"].get("namespace", "")

    def ref(kind: str, name: str, where: str, keys: Iterable[str] = (), optional: bool = False) -> Reference:
        place = "" if kind in _CLUSTER_KINDS else namespace
        return Reference(kind, place, name, f"{describe(obj)}: {where}", tuple(keys), optional)

    if namespace:
        yield ref("Namespace", namespace, "metadata.namespace")
    queue = (obj["metadata"].get("labels") or {}).get(_QUEUE_LABEL)
    if queue:
        yield ref("LocalQueue", queue, f"metadata.labels.{_QUEUE_LABEL}")
    for path, spec, _ in pod_specs(obj):
        if "serviceAccountName" in spec:
            yield ref("ServiceAccount", spec["serviceAccountName"], f"{path}.serviceAccountName")
        for secret in spec.get("imagePullSecrets") or []:
            yield ref("Secret", secret["name"], f"{path}.imagePullSecrets")
        for volume in spec.get("volumes") or []:
            yield from _of_volume(volume, f"{path}.volumes", ref)
        for place, container in containers(spec):
            yield from _of_container(container, f"{path}.{place}", ref)
    yield from _of_kind(obj, ref)


def _of_container(container: dict[str, Any], where: str, ref: Any) -> Iterator[Reference]:
    for source in container.get("envFrom") or []:
        for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if field in source:
                yield ref(kind, source[field]["name"], f"{where}.envFrom", (), source[field].get("optional", False))
    for variable in container.get("env") or []:
        for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
            key = (variable.get("valueFrom") or {}).get(field)
            if key:
                at = f"{where}.env.{variable['name']}"
                yield ref(kind, key["name"], at, (key["key"],), key.get("optional", False))


def _of_volume(volume: dict[str, Any], where: str, ref: Any) -> Iterator[Reference]:
    where = f"{where}.{volume['name']}"
    if "persistentVolumeClaim" in volume:
        yield ref("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], where)
    for source in [volume, *(volume.get("projected") or {}).get("sources", [])]:
        for field, kind, name in (("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName")):
            if field in source:
                held = source[field]
                keys = [item["key"] for item in held.get("items") or []]
                yield ref(kind, held.get(name) or held.get("name"), where, keys, held.get("optional", False))


def _of_kind(obj: dict[str, Any], ref: Any) -> Iterator[Reference]:
    spec, kind = obj.get("spec") or {}, obj["kind"]
    if kind in ("RoleBinding", "ClusterRoleBinding"):
        yield ref(obj["roleRef"]["kind"], obj["roleRef"]["name"], "roleRef")
        for subject in obj.get("subjects") or []:
            if subject["kind"] == "ServiceAccount":
                yield Reference("ServiceAccount", subject["namespace"], subject["name"], f"{describe(obj)}: subjects")
    elif kind == "ServiceAccount":
        for secret in obj.get("secrets") or []:
            yield ref("Secret", secret["name"], "secrets")
    elif kind == "StatefulSet":
        yield ref("Service", spec["serviceName"], "spec.serviceName")
    elif kind in ("ScaledObject", "HorizontalPodAutoscaler"):
        target = spec["scaleTargetRef"]
        yield ref(target.get("kind", "Deployment"), target["name"], "spec.scaleTargetRef")
        for trigger in spec.get("triggers") or []:
            if "authenticationRef" in trigger:
                held = trigger["authenticationRef"]
                yield ref(held.get("kind", "TriggerAuthentication"), held["name"], "spec.triggers.authenticationRef")
    elif kind == "TriggerAuthentication":
        for held in spec.get("secretTargetRef") or []:
            yield ref("Secret", held["name"], "spec.secretTargetRef", (held["key"],))
    elif kind == "LocalQueue":
        yield ref("ClusterQueue", spec["clusterQueue"], "spec.clusterQueue")
    elif kind == "ClusterQueue":
        for group in spec.get("resourceGroups") or []:
            for flavor in group["flavors"]:
                yield ref("ResourceFlavor", flavor["name"], "spec.resourceGroups.flavors")
    elif kind == "LocalModelCache":
        for group in spec["nodeGroups"]:
            yield ref("LocalModelNodeGroup", group, "spec.nodeGroups")
    elif kind == "InferenceService":
        predictor = spec["predictor"]
        if "serviceAccountName" in predictor and "containers" not in predictor:
            yield ref("ServiceAccount", predictor["serviceAccountName"], "spec.predictor.serviceAccountName")
        model = predictor.get("model") or {}
        if "runtime" in model:
            yield ref("ServingRuntime", model["runtime"], "spec.predictor.model.runtime")
        yield from _of_container(model, "spec.predictor.model", ref)
    elif kind == "TrainJob":
        yield ref(
            spec["runtimeRef"].get("kind", "ClusterTrainingRuntime"), spec["runtimeRef"]["name"], "spec.runtimeRef"
        )


def check_references(objects: Collection[dict[str, Any]], prerequisites: Collection[tuple[str, str, str]]) -> None:
    """Everything that is named exists among the objects or in `prerequisites`; no object stands there twice.

    Raises:
        ManifestError: the first reference to nothing, or to a key that a rendered Secret or ConfigMap lacks.
    """
    rendered: dict[tuple[str, str, str], dict[str, Any]] = {}
    for obj in objects:
        if identity(obj) in rendered:
            raise ManifestError(f"{describe(obj)} is there twice")
        rendered[identity(obj)] = obj
    for obj in objects:
        if obj["kind"] not in _CLUSTER_KINDS and not obj["metadata"].get("namespace"):
            raise ManifestError(f"{describe(obj)}: no namespace; it would land in whatever is the current one")
        for held in references(obj):
            key = (held.kind, held.namespace, held.name)
            if key in rendered:
                missing = set(held.keys) - _keys(rendered[key])
                if missing and not held.optional:
                    raise ManifestError(f"{held.where} asks {held.kind} {held.name} for {', '.join(sorted(missing))}")
            elif key not in prerequisites and not (held.kind == "ServiceAccount" and held.name == "default"):
                raise ManifestError(
                    f"{held.where} names {held.kind} {held.namespace}/{held.name}, which is neither rendered nor a "
                    "documented prerequisite"
                )


def _keys(obj: dict[str, Any]) -> set[str]:
    return {key for field in ("data", "binaryData", "stringData") for key in obj.get(field) or {}}


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector (matchLabels, matchExpressions) or a plain map of labels selects these labels."""
    plain = selector.get("matchLabels", {} if "matchExpressions" in selector else selector) or {}
    if any(labels.get(key) != value for key, value in plain.items()):
        return False
    for item in selector.get("matchExpressions") or []:
        key, values = item["key"], item.get("values") or []
        chosen = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not chosen[item["operator"]]:
            return False
    return True


def check_selectors(objects: Collection[dict[str, Any]], others: Collection[dict[str, str]] = ()) -> None:
    """A workload's selector selects its own pods; a Service, a budget, a monitor or a policy selects something.

    Args:
        objects: rendered.
        others: labels of pods and services that controllers make (KServe's predictor, KFP's tasks).

    Raises:
        ManifestError: naming the selector that selects nothing.
    """
    pods = [labels for obj in objects for _, _, labels in pod_specs(obj)] + list(others)
    services = [obj["metadata"].get("labels") or {} for obj in objects if obj["kind"] == "Service"] + list(others)
    for obj in objects:
        spec, kind = obj.get("spec") or {}, obj["kind"]
        if kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"):
            labels = (spec["template"].get("metadata") or {}).get("labels") or {}
            if not spec["selector"] or not matches(spec["selector"], labels):
                raise ManifestError(
                    f"{describe(obj)}: spec.selector {spec['selector']} does not select its pods {labels}"
                )
            continue
        chosen: list[tuple[str, dict[str, Any], list[dict[str, str]]]] = []
        if (kind == "Service" and spec.get("selector")) or kind in ("PodDisruptionBudget", "PodMonitor"):
            chosen = [("spec.selector", spec["selector"], pods)]
        elif kind == "ServiceMonitor":
            chosen = [("spec.selector", spec["selector"], services)]
        elif kind == "NetworkPolicy":
            chosen = [("spec.podSelector", spec["podSelector"], pods)]
        for where, selector, labelled in chosen:
            if selector and not any(matches(selector, labels) for labels in labelled):
                raise ManifestError(f"{describe(obj)}: {where} {selector} selects nothing")


def check_shipped(
    objects: Collection[dict[str, Any]],
    prerequisites: Collection[tuple[str, str, str]] = (),
    others: Collection[dict[str, str]] = (),
) -> None:
    """Every check there is, of everything that one `kubectl apply` brings.

    Raises:
        jsonschema.ValidationError, ManifestError: see the single checks.
    """
    for obj in objects:
        check(obj)
        check_restricted(obj)
        check_images(obj)
    check_references(objects, prerequisites)
    check_selectors(objects, others)
