"""The Kubernetes API in plain dicts: read, write, follow a log.

Every object is the API server's own JSON, so that no field gets lost between two versions of a schema. Requests are
retried within bounds (`connection`); a log goes on after a break, without losing or repeating a line.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from reasongenrm.errors import ClusterError
from reasongenrm.kubernetes import connection
from reasongenrm.kubernetes.connection import (
    AlreadyExistsError,
    Call,
    ConflictError,
    Connection,
    ForbiddenError,
    NotFoundError,
    UnavailableError,
    UnknownKindError,
)
from reasongenrm.kubernetes.health import container_states
from reasongenrm.kubernetes.kinds import ACCESS_REVIEW, OWN_ACCESS_REVIEW, POD, SERVICE, Kind
from reasongenrm.kubernetes.waiting import Outage
from reasongenrm.processes.extras import require

__all__ = [
    "AlreadyExistsError",
    "Cluster",
    "ConflictError",
    "ForbiddenError",
    "NotFoundError",
    "UnavailableError",
    "UnknownKindError",
]

Objects = list[dict[str, Any]]
Lines = list[str]  # a name of its own: in the class, `list` is a method

QUIET_LOG_SECONDS = 120.0  # a log that is silent for this long is asked for again
_FIELD_MANAGER = {"fieldManager": "reasongenrm"}
_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d) ")
# What the API server answers (as 400) when the container does not run yet: Kubernetes, registry/core/pod/strategy.go.
_NOT_STARTED = ("is waiting to start", "does not have a host assigned")


class Cluster:
    """One API server, seen by one account; may be shared by threads.

    Every method raises a ClusterError if it is refused or the server stays away; its kind says how (see `connection`).
    A write may be carried out although its answer is lost, and is then repeated: a create ends in AlreadyExistsError, a
    replace or patch with a resourceVersion in ConflictError, although the work is done. Callers read the object again.

    Attributes:
        namespace: the pod's own, or the one of the kubeconfig's context.
    """

    def __init__(self, connected: Connection, namespace: str) -> None:
        self._connection, self.namespace = connected, namespace

    @classmethod
    def connect(cls, context: str | None = None) -> "Cluster":
        """Use the pod's service account in a pod, else the kubeconfig that KUBECONFIG or ~/.kube/config names.

        Args:
            context: of the kubeconfig; None: its current one. If given, the kubeconfig is used even in a pod.

        Raises:
            ClusterError: there is neither, or it cannot be used.
            ConfigError: the extra "cluster" is not installed.
        """
        require("cluster")
        if context is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
            return cls(*connection.service_account())
        return cls(*connection.kubeconfig(context))

    def within(self, seconds: float) -> "Cluster":
        """The same cluster with at most `seconds` for every call: for the clean-up of a process that must end."""
        return Cluster(self._connection.within(seconds), self.namespace)

    def get(self, kind: Kind, namespace: str | None, name: str) -> dict[str, Any] | None:
        """One object; None if it is not there. A kind that the server does not know is an error.

        Args:
            namespace: None for a kind that has none, such as nodes.
        """
        try:
            return self._object("get", kind, namespace, name)
        except NotFoundError:
            return None

    def list(self, kind: Kind, namespace: str | None, labels: str = "", fields: str = "") -> Objects:
        """All objects of a kind; namespace None: of all namespaces.

        Args:
            labels: a label selector, such as "app=x,tier in (a, b)".
            fields: a field selector, such as "involvedObject.name=x".
        """
        query = {key: value for key, value in (("labelSelector", labels), ("fieldSelector", fields)) if value}
        items = self._connection.request(Call("list", kind, namespace, query=query))["items"]
        # Lists of built-in kinds leave both out of their items.
        return [{"apiVersion": kind.api_version, "kind": kind.kind, **item} for item in items]

    def create(self, kind: Kind, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create an object; AlreadyExistsError if the name is taken."""
        return self._object("create", kind, namespace, body["metadata"]["name"], body)

    def replace(self, kind: Kind, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        """Replace the whole object; ConflictError if `body` has a resourceVersion and the object has changed since."""
        return self._object("update", kind, namespace, body["metadata"]["name"], body)

    def patch(self, kind: Kind, namespace: str, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        """JSON merge patch (RFC 7396): None removes a field, a list is replaced as a whole."""
        return self._object("patch", kind, namespace, name, patch)

    def delete(self, kind: Kind, namespace: str, name: str, uid: str | None = None, foreground: bool = False) -> bool:
        """Delete an object, and through the garbage collector what it owns.

        Args:
            uid: only the object with this uid; another one of the same name stays.
            foreground: the object stays, marked, until what it owns is gone.

        Returns:
            Whether it was there (with that uid) when the server was asked last.
        """
        policy = "Foreground" if foreground else "Background"
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            self._object("delete", kind, namespace, name, options)
        except (NotFoundError, ConflictError):
            return False
        return True

    def may(self, verb: str, group: str, resource: str, namespace: str, account: str | None = None) -> bool:
        """Whether the cluster allows it to an account; the caller must be allowed to create the review.

        Args:
            resource: as RBAC names it, such as "pods/log".
            account: the ServiceAccount, as "namespace:name"; None: the caller.
        """
        plural, _, subresource = resource.partition("/")
        asked = {"namespace": namespace, "verb": verb, "group": group, "resource": plural, "subresource": subresource}
        kind, place, metadata = OWN_ACCESS_REVIEW, None, {}
        spec: dict[str, Any] = {"resourceAttributes": asked}
        if account is not None:
            kind, place, metadata = ACCESS_REVIEW, namespace, {"namespace": namespace}
            groups = ["system:serviceaccounts", f"system:serviceaccounts:{account.partition(':')[0]}"]
            spec |= {"user": f"system:serviceaccount:{account}", "groups": [*groups, "system:authenticated"]}
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": spec}
        review = self._connection.request(Call("create", kind, place, body=body))
        return bool(review["status"]["allowed"])

    def ask_service(self, namespace: str, service: str, port: int, path: str) -> Any:
        """What a Service answers to a GET that the API server passes on, as JSON; the right is "get services/proxy".

        Args:
            path: without a slash in front.
        """
        call = Call("get", SERVICE, namespace, f"{service}:{port}", subresource="proxy", path=path)
        return self._connection.request(call)

    def log_tail(self, namespace: str, pod: str, container: str, num_lines: int, previous: bool = False) -> Lines:
        """The last lines of a container's log as it is now, at most `num_lines`.

        Args:
            previous: of the container's run before the present one, which is the one that crashed.
        """
        query = {"tailLines": str(num_lines), **({"previous": "true"} if previous else {})}
        with self._log(namespace, pod, container, query, connection.READ_SECONDS) as lines:
            return [line.decode("utf-8", "replace") for line in lines]

    def follow_log(self, namespace: str, pod: str, container: str) -> Iterator[str]:
        """Lines of a container's log as they come, from the first one to its end.

        A container that has not started yet is waited for; a connection that breaks is opened again without losing or
        repeating a line; an outage may last waiting.OUTAGE_SECONDS. Ends when the container has ended and its log is
        read, or the pod is gone.
        """
        outage = Outage()
        since, recent = "", Counter[str]()  # the lines of the newest second: a log is asked for by whole seconds
        while (found := self.get(POD, namespace, pod)) is not None:
            ended = _has_ended(found, container)
            query = {"follow": "true", "timestamps": "true", **({"sinceTime": since} if since else {})}
            seen = recent.copy()
            try:
                with self._log(namespace, pod, container, query, QUIET_LOG_SECONDS) as lines:
                    for data in lines:
                        outage.end()
                        line = data.decode("utf-8", "replace")
                        stamp = _TIMESTAMP.match(line)
                        if seen[line]:
                            seen[line] -= 1
                            continue
                        if stamp is not None and stamp[1] + stamp[2] > since:
                            since, recent = stamp[1] + stamp[2], Counter()
                        recent[line] += 1
                        yield line[stamp.end() :] if stamp is not None else line
                if ended:
                    return
                time.sleep(connection.FIRST_WAIT_SECONDS)
            except NotFoundError:
                return
            except UnavailableError as error:
                outage.wait(error)
            except ClusterError as error:
                if not any(words in str(error) for words in _NOT_STARTED):
                    raise
                time.sleep(connection.FIRST_WAIT_SECONDS)

    def _object(self, verb: str, kind: Kind, namespace: str | None, name: str, body: Any = None) -> dict[str, Any]:
        """Do something with one object; the server's answer."""
        query = _FIELD_MANAGER if verb in ("create", "update", "patch") else {}
        answer: dict[str, Any] = self._connection.request(Call(verb, kind, namespace, name, query, body))
        return answer

    def _log(
        self, namespace: str, pod: str, container: str, query: dict[str, str], read_seconds: float
    ) -> AbstractContextManager[Iterator[bytes]]:
        call = Call("get", POD, namespace, pod, {"container": container, **query}, subresource="log")
        return self._connection.lines(call, read_seconds)


def _has_ended(pod: dict[str, Any], container: str) -> bool:
    """Whether a container has ended for good."""
    if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return True
    return "terminated" in container_states(pod).get(container, {}) and pod["spec"].get("restartPolicy") == "Never"
