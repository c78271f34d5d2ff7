"""Pod templates wherever an object has them: what must be true of each, and Pod Security "restricted".

Source: Kubernetes' Pod Security Standards ("restricted", v1.37), and rules of our own: a read-only root file system,
requests and memory limits, pinned images.
"""

import re
from collections.abc import Iterator
from typing import Any

from reasongenrm import __version__
from tests.kube.syntax import ManifestError, describe, is_label, walk

# Volume types that "restricted" allows.
_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
    *("image", "persistentVolumeClaim", "projected", "secret"),
}
_HOST_FIELDS = ("hostNetwork", "hostPID", "hostIPC")
_HANDLERS = ("livenessProbe", "readinessProbe", "startupProbe")
_ENV_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_OUR_IMAGE = re.compile(r"(?:.*/)?reasongenrm-[a-z]+")


def pod_specs(obj: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every pod specification inside an object: its path, the specification, the labels of its template.

    Looks into custom resources too: a ServingRuntime's `spec` and the templates inside a TrainingRuntime are such.
    """
    if obj.get("kind") in ("CustomResourceDefinition", "PipelineVersion"):
        return
    parents = dict(walk(obj))
    for path, node in parents.items():
        if not path.startswith("status") and isinstance(node.get("containers"), list):
            template = parents.get(path.rpartition(".")[0], {})
            labels = node.get("labels") or (template.get("metadata") or {}).get("labels") or {}
            yield path, node, labels


def containers(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All containers of a pod specification with where they stand."""
    for key in ("initContainers", "containers", "ephemeralContainers"):
        for index, container in enumerate(spec.get(key) or []):
            yield f"{key}[{index}]", container


def check_pods(obj: dict[str, Any]) -> None:
    """What the API server asks of any pod: unique names, mounts that name a volume.

    Raises:
        ManifestError: with the place and what was found.
    """
    for path, spec, _ in pod_specs(obj):
        where = f"{describe(obj)}: {path}"
        volumes = [volume.get("name") for volume in spec.get("volumes") or []]
        if obj["kind"] == "StatefulSet":
            volumes += [claim["metadata"]["name"] for claim in obj["spec"].get("volumeClaimTemplates") or []]
        _refuse_duplicates(f"{where}.volumes", volumes)
        _refuse_duplicates(f"{where}.containers", [container["name"] for _, container in containers(spec)])
        ports: list[str] = []
        for place, container in containers(spec):
            _check_container(f"{where}.{place}", container, volumes)
            ports += [port["name"] for port in container.get("ports") or [] if "name" in port]
        _refuse_duplicates(f"{where}: port names", ports)
        for name in volumes:
            if not is_label(name):
                raise ManifestError(f"{where}.volumes: the name {name!r}; expected an RFC 1123 label")


def _check_container(where: str, container: dict[str, Any], volumes: list[Any]) -> None:
    if not is_label(container["name"]):
        raise ManifestError(f"{where}.name is {container['name']!r}; expected an RFC 1123 label")
    env = [variable["name"] for variable in container.get("env") or []]
    _refuse_duplicates(f"{where}.env", env)
    for name in env:
        if not _ENV_NAME.fullmatch(name):
            raise ManifestError(f"{where}.env has the name {name!r}; expected letters, digits, - _ .")
    mounts = container.get("volumeMounts") or []
    _refuse_duplicates(f"{where}.volumeMounts", [mount["mountPath"] for mount in mounts])
    for mount in mounts:
        if mount["name"] not in volumes:
            raise ManifestError(f"{where}.volumeMounts names the volume {mount['name']!r}; the pod has {volumes}")
    for port in container.get("ports") or []:
        name = port.get("name", "http")
        if len(name) > 15 or not _PORT_NAME.fullmatch(name):
            raise ManifestError(f"{where}.ports has the name {name!r}; expected at most 15 of a-z, 0-9, -")
    names = [port.get("name") for port in container.get("ports") or []]
    for handler in _HANDLERS:
        asked = (container.get(handler) or {}).get("httpGet", {}).get("port")
        if isinstance(asked, str) and asked not in names:
            raise ManifestError(f"{where}.{handler} asks the port {asked!r}; the container has {names}")
    _check_requests(where, container)


def _check_requests(where: str, container: dict[str, Any]) -> None:
    resources = container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for name, limit in limits.items():
        # Extended resources cannot be overcommitted.
        if "/" in name and str(requests.get(name, limit)) != str(limit):
            raise ManifestError(
                f"{where}.resources: requests {name} {requests[name]}, limit {limit}; the two must be equal"
            )
    for name in requests:
        if "/" in name and name not in limits:
            raise ManifestError(f"{where}.resources: requests {name} without a limit; the two must be equal")


def _refuse_duplicates(where: str, names: list[Any]) -> None:
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise ManifestError(f"{where}: {', '.join(twice)} more than once")


def check_restricted(obj: dict[str, Any]) -> None:
    """Pod Security "restricted", a read-only root file system, requests and a memory limit, for every pod of an object.

    Raises:
        ManifestError: naming the first field that is not as it must be.
    """
    for path, spec, _ in pod_specs(obj):
        where = f"{describe(obj)}: {path}"
        for field in _HOST_FIELDS:
            if spec.get(field):
                raise ManifestError(f"{where}.{field} is set; Pod Security restricted forbids it")
        for volume in spec.get("volumes") or []:
            kinds = set(volume) - {"name"}
            if kinds - _VOLUMES:
                raise ManifestError(f"{where}.volumes: {volume['name']} is of kind {', '.join(kinds)}; not restricted")
        pod_context = spec.get("securityContext") or {}
        if pod_context.get("sysctls"):
            raise ManifestError(f"{where}.securityContext.sysctls is set; expected none")
        for place, container in containers(spec):
            _check_context(f"{where}.{place}", container, pod_context)
            _check_resources(f"{where}.{place}", container)
            for port in container.get("ports") or []:
                if port.get("hostPort"):
                    raise ManifestError(f"{where}.{place}.ports: hostPort {port['hostPort']}; expected none")


def _check_context(where: str, container: dict[str, Any], pod_context: dict[str, Any]) -> None:
    own = container.get("securityContext") or {}
    both = {**pod_context, **own}
    where += ".securityContext"
    added = set((own.get("capabilities") or {}).get("add") or []) - {"NET_BIND_SERVICE"}
    wrong = {
        "privileged": own.get("privileged", False) is not False,
        "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is not False,
        "runAsNonRoot": both.get("runAsNonRoot") is not True,
        "runAsUser": both.get("runAsUser") == 0,
        "seccompProfile": (both.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"),
        "capabilities.drop": "ALL" not in ((own.get("capabilities") or {}).get("drop") or []),
        "capabilities.add": bool(added),
        "procMount": own.get("procMount", "Default") != "Default",
        "seLinuxOptions": bool({"user", "role"} & (both.get("seLinuxOptions") or {}).keys()),
        "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is not True,
    }
    found = [field for field, is_wrong in wrong.items() if is_wrong]
    if found:
        raise ManifestError(f"{where}: {', '.join(found)} not as Pod Security restricted and our own rules want")


def _check_resources(where: str, container: dict[str, Any]) -> None:
    resources = container.get("resources") or {}
    for kind, names in (("requests", ("cpu", "memory")), ("limits", ("memory",))):
        missing = [name for name in names if name not in (resources.get(kind) or {})]
        if missing:
            raise ManifestError(f"{where}.resources.{kind}: no {', '.join(missing)}; our pods say what they need")


def check_images(obj: dict[str, Any]) -> None:
    """Every image is pinned: ours at the package's version, others at a tag or digest, nothing at `latest`.

    Raises:
        ManifestError: naming the image.
    """
    for path, spec, _ in pod_specs(obj):
        for place, container in containers(spec):
            if "image" not in container:  # a TrainJob's container patch, say
                continue
            image, where = container["image"], f"{describe(obj)}: {path}.{place}"
            name, _, digest = image.partition("@")
            repository, colon, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "")
            if not (colon or digest) or tag == "latest":
                raise ManifestError(f"{where}: the image {image} is not pinned; expected a tag other than latest")
            if _OUR_IMAGE.fullmatch(repository) and tag != __version__:
                raise ManifestError(f"{where}: the image {image}; expected the package's version, :{__version__}")
