"""What an API server keeps: objects with their versions, selectors, ownership.

`fake_api.py` speaks HTTP over it. All methods take the lock; objects go in and out as copies.
"""

import copy
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]
Path = tuple[str, ...]

_LABEL_NAME = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclass(frozen=True)
class Resource:
    """A kind of object as discovery lists it. Written down here and not taken from the client that is tested."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    has_status: bool = True  # a subresource: an ordinary write does not change it

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def is_built_in(self) -> bool:
        return "." not in self.group or self.group.endswith(".k8s.io")

    @property
    def qualified(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


RESOURCES = (
    Resource("", "v1", "pods", "Pod"),
    Resource("", "v1", "secrets", "Secret", has_status=False),
    Resource("", "v1", "configmaps", "ConfigMap", has_status=False),
    Resource("", "v1", "events", "Event", has_status=False),
    Resource("", "v1", "serviceaccounts", "ServiceAccount", has_status=False),
    Resource("", "v1", "services", "Service"),
    Resource("", "v1", "nodes", "Node", namespaced=False),
    Resource("apps", "v1", "deployments", "Deployment"),
    Resource("apps", "v1", "replicasets", "ReplicaSet"),
    Resource("batch", "v1", "jobs", "Job"),
    Resource("storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False, has_status=False),
    Resource("rbac.authorization.k8s.io", "v1", "roles", "Role", has_status=False),
    Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", has_status=False),
    Resource("authorization.k8s.io", "v1", "localsubjectaccessreviews", "LocalSubjectAccessReview"),
    Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False),
    Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", has_status=False),
    Resource("coordination.k8s.io", "v1", "leases", "Lease", has_status=False),
    Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False),
    Resource("serving.kserve.io", "v1beta1", "inferenceservices", "InferenceService"),
    Resource("serving.kserve.io", "v1alpha2", "llminferenceservices", "LLMInferenceService"),
    Resource("serving.kserve.io", "v1alpha2", "llminferenceserviceconfigs", "LLMInferenceServiceConfig"),
    Resource("serving.kserve.io", "v1alpha1", "servingruntimes", "ServingRuntime", has_status=False),
    Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob"),
    Resource("trainer.kubeflow.org", "v1alpha1", "trainingruntimes", "TrainingRuntime", has_status=False),
    Resource("kueue.x-k8s.io", "v1beta2", "localqueues", "LocalQueue"),
)


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "apiVersion": "v1",
            "kind": "Status",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "details": details,
            "code": code,
        }


@dataclass(frozen=True)
class Change:
    """One change of one object."""

    version: int
    plural: str
    type: str  # ADDED, MODIFIED, DELETED
    object: Object


class Objects:
    """The objects of all kinds, by plural, namespace and name."""

    def __init__(self, namespaces: set[str], validate: Callable[[Object], None] | None) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.namespaces = namespaces
        self.version = 100  # of the newest change
        self._validate = validate
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._listener: Callable[[Change], None] = lambda _: None

    def listen(self, listener: Callable[[Change], None]) -> None:
        """Hand every later change on, under the lock: the listener may not block."""
        self._listener = listener

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        with self.changed:
            found = self._objects.get((resource.plural, namespace, name))
            if found is None:
                raise not_found(resource, name)
            return copy.deepcopy(found)

    def all(self, plural: str, namespace: str | None = None) -> list[Object]:
        with self.changed:
            return [
                copy.deepcopy(item)
                for (kind, place, _), item in sorted(self._objects.items())
                if kind == plural and namespace in (None, place)
            ]

    def create(self, resource: Resource, namespace: str, body: Object) -> Object:
        with self.changed:
            name = body.get("metadata", {}).get("name", "")
            self._check(resource, namespace, body)
            if resource.namespaced and namespace not in self.namespaces:
                raise Refusal(404, "NotFound", f'namespaces "{namespace}" not found', name=namespace, kind="namespaces")
            if (resource.plural, namespace, name) in self._objects:
                message = f'{resource.qualified} "{name}" already exists'
                raise Refusal(409, "AlreadyExists", message, name=name, group=resource.group, kind=resource.plural)
            made = copy.deepcopy(body)
            if resource.has_status and resource.kind != "Pod":
                made.pop("status", None)
            made["metadata"] |= {"uid": str(uuid.uuid4()), "generation": 1, "creationTimestamp": now()}
            if resource.namespaced:
                made["metadata"]["namespace"] = namespace
            return self._store(resource, made, None)

    def update(self, resource: Resource, namespace: str, body: Object, *, status: bool = False) -> Object:
        """Replace an object, or its status alone; with a resourceVersion only if it has not changed since."""
        with self.changed:
            name = body.get("metadata", {}).get("name", "")
            before = self.get(resource, namespace, name)
            wanted = body["metadata"].get("resourceVersion")
            if wanted is not None and wanted != before["metadata"]["resourceVersion"]:
                message = (
                    f'Operation cannot be fulfilled on {resource.qualified} "{name}": the object has been modified; '
                    "please apply your changes to the latest version and try again"
                )
                raise Refusal(409, "Conflict", message, name=name, group=resource.group, kind=resource.plural)
            if status:
                after = {**before, "status": copy.deepcopy(body.get("status", {}))}
            else:
                after = copy.deepcopy(body)
                if resource.has_status:
                    after.pop("status", None)
                    if "status" in before:
                        after["status"] = before["status"]
                for key in (
                    "uid",
                    "creationTimestamp",
                    "generation",
                    "namespace",
                    "deletionTimestamp",
                    "managedFields",
                ):
                    after["metadata"].pop(key, None)
                    if key in before["metadata"]:
                        after["metadata"][key] = before["metadata"][key]
            self._check(resource, namespace, after)
            if after.get("spec") != before.get("spec"):
                after["metadata"]["generation"] = before["metadata"]["generation"] + 1
            after["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"]
            if after == before:
                return before  # as a real server: a write that changes nothing makes no new version
            stored = self._store(resource, after, before)
            if stored["metadata"].get("deletionTimestamp") and not stored["metadata"].get("finalizers"):
                self._remove(resource, stored)
            return stored

    def merge(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: Object,
        *,
        status: bool = False,
    ) -> Object:
        """JSON merge patch, RFC 7396."""
        with self.changed:
            body = merge_patch(self.get(resource, namespace, name), patch)
            if "resourceVersion" not in patch.get("metadata", {}):
                body["metadata"].pop("resourceVersion", None)
            return self.update(resource, namespace, body, status=status)

    def delete(self, resource: Resource, namespace: str, name: str, uid: str | None = None) -> Object:
        """Delete an object and what it owns; one with finalizers stays, marked, until they are gone."""
        with self.changed:
            found = self.get(resource, namespace, name)
            if uid is not None and found["metadata"]["uid"] != uid:
                message = (
                    f'Operation cannot be fulfilled on {resource.qualified} "{name}": the UID in the precondition '
                    f"({uid}) does not match the UID in record ({found['metadata']['uid']}). The object might have "
                    "been deleted and then recreated"
                )
                raise Refusal(409, "Conflict", message, name=name, group=resource.group, kind=resource.plural)
            if found["metadata"].get("finalizers"):
                if "deletionTimestamp" not in found["metadata"]:
                    marked = copy.deepcopy(found)
                    marked["metadata"]["deletionTimestamp"] = now()
                    self._store(resource, marked, found)
                return found
            self._remove(resource, found)
            return found

    def _check(self, resource: Resource, namespace: str, body: Object) -> None:
        """What a server checks of any object, and the schema."""
        found = (body.get("apiVersion"), body.get("kind"))
        if found != (resource.api_version, resource.kind):
            expected = f"{resource.api_version} {resource.kind}"
            message = f"the API version and kind in the data {found} do not match the expected {expected}"
            raise Refusal(400, "BadRequest", message)
        metadata = body.get("metadata", {})
        name = metadata.get("name", "")
        problems = []
        if not _SUBDOMAIN.fullmatch(name) or len(name) > 253:
            problems.append(f'metadata.name: Invalid value: "{name}": a lowercase RFC 1123 subdomain is expected')
        if metadata.get("namespace", namespace) != namespace:
            raise Refusal(
                400, "BadRequest", "the namespace of the provided object does not match the namespace of the request"
            )
        for key, value in metadata.get("labels", {}).items():
            if not isinstance(value, str) or not _LABEL_NAME.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
                problems.append(f'metadata.labels: Invalid value: "{key}: {value}"')
        for key, value in metadata.get("annotations", {}).items():
            if not isinstance(value, str):
                problems.append(f"metadata.annotations: Invalid value: {key} is no string")
        if not problems and self._validate is not None:
            try:
                self._validate({key: body[key] for key in body if key != "status"})
            except Exception as error:  # noqa: BLE001 - whatever the validator raises is the server's refusal
                problems.append(str(error))
        if problems:
            message = f'{resource.kind}.{resource.group} "{name}" is invalid: {"; ".join(problems)}'
            raise Refusal(422, "Invalid", message, name=name, group=resource.group, kind=resource.kind)

    def _store(self, resource: Resource, item: Object, before: Object | None) -> Object:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        metadata = item["metadata"]
        self._objects[resource.plural, metadata.get("namespace", ""), metadata["name"]] = item
        kind = "ADDED" if before is None else "MODIFIED"
        self._listener(Change(self.version, resource.plural, kind, copy.deepcopy(item)))
        self.changed.notify_all()
        return copy.deepcopy(item)

    def _remove(self, resource: Resource, item: Object) -> None:
        metadata = item["metadata"]
        del self._objects[resource.plural, metadata.get("namespace", ""), metadata["name"]]
        self.version += 1
        gone = copy.deepcopy(item)
        gone["metadata"]["resourceVersion"] = str(self.version)
        self._listener(Change(self.version, resource.plural, "DELETED", gone))
        self.changed.notify_all()
        for (plural, namespace, name), other in list(self._objects.items()):
            owners = other["metadata"].get("ownerReferences", [])
            if namespace == metadata.get("namespace", "") and any(owner["uid"] == metadata["uid"] for owner in owners):
                self.delete(by_plural(plural), namespace, name)


def by_plural(plural: str) -> Resource:
    return next(resource for resource in RESOURCES if resource.plural == plural)


def not_found(resource: Resource, name: str) -> Refusal:
    message = f'{resource.qualified} "{name}" not found'
    return Refusal(404, "NotFound", message, name=name, group=resource.group, kind=resource.plural)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def merge_patch(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = copy.deepcopy(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def at(value: Any, path: Path) -> Any:
    for key in path:
        if key.startswith("[name="):
            value = next((item for item in value or [] if item.get("name") == key[6:-1]), None)
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def matches(item: Mapping[str, Any], labels: str, fields: str) -> bool:
    """Whether an object fits a label selector and a field selector."""
    found = item["metadata"].get("labels", {})
    for term in re.split(r",(?![^()]*\))", labels) if labels else []:
        among = re.fullmatch(r"\s*(\S+)\s+(in|notin)\s+\(([^)]*)\)\s*", term)
        if among:
            values = [value.strip() for value in among[3].split(",")]
            fits = (found.get(among[1]) in values) == (among[2] == "in")
        elif "!=" in term:
            key, value = term.split("!=")
            fits = found.get(key.strip()) != value.strip()
        elif "=" in term:
            key, value = re.split(r"==?", term)
            fits = found.get(key.strip()) == value.strip()
        else:
            fits = (term.strip().lstrip("!") in found) != term.strip().startswith("!")
        if not fits:
            return False
    for term in fields.split(",") if fields else []:
        key, value = re.split(r"==?", term)
        if str(at(dict(item), tuple(key.split("."))) or "") != value:
            return False
    return True
