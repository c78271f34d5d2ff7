"""The Kubernetes API in plain dicts: read, write, watch, follow a log.

Every object is the API server's own JSON, so that no field gets lost between two versions of a schema. Requests are
retried within bounds (`connection`); watches and logs go on after a break, without losing or repeating anything.
"""

import json
import logging
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reasongenrm.errors import ClusterError
from reasongenrm.kubernetes import connection
from reasongenrm.kubernetes.connection import (
    AlreadyExistsError,
    Call,
    ConflictError,
    Connection,
    ForbiddenError,
    GoneError,
    NotFoundError,
    UnavailableError,
)
from reasongenrm.kubernetes.kinds import POD, Kind

__all__ = [
    "AlreadyExistsError",
    "Cluster",
    "ConflictError",
    "Event",
    "ForbiddenError",
    "NotFoundError",
    "UnavailableError",
]

logger = logging.getLogger(__name__)

Objects = list[dict[str, Any]]
Lines = list[str]  # a name of its own: in the class, `list` is a method

FIELD_MANAGER = "reasongenrm"
WATCH_SECONDS = 60.0  # one request of a watch; a connection that died without a word is noticed soon after
SLACK_SECONDS = 10.0  # the server ends a watch by itself; so long we wait for it
QUIET_LOG_SECONDS = 120.0  # a log that is silent for this long is requested again
OUTAGE_SECONDS = 600.0  # an API server may be away for so long (an upgrade) before a watch or a log gives up
_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d) ")
# What the API server says (as 400) to who asks for the log of a container that does not run yet: registry/core/pod/strategy.go.
_NOT_STARTED = ("is waiting to start", "does not have a host assigned")


@dataclass(frozen=True)
class Event:
    """One change that a watch reports: "ADDED", "MODIFIED" or "DELETED", and the object after it (DELETED: before it)."""

    type: str
    object: dict[str, Any]


class Cluster:
    """One API server, seen by one account; may be shared by threads.

    Attributes:
        namespace: the pod's own, or the one of the kubeconfig's context.
    """

    def __init__(self, connected: Connection, namespace: str) -> None:
        self._connection, self.namespace = connected, namespace

    @classmethod
    def connect(cls, context: str | None = None) -> "Cluster":
        """Use the pod's service account in a pod, else the kubeconfig that KUBECONFIG or ~/.kube/config names.

        Args:
            context: of the kubeconfig; None: its current one. In a pod it makes the kubeconfig be used all the same.

        Raises:
            ClusterError: there is neither, or it cannot be used.
        """
        if context is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
            return cls(*connection.service_account())
        return cls(*connection.kubeconfig(context))

    def within(self, seconds: float) -> "Cluster":
        """The same cluster, every call of which ends within `seconds`: for the way out of a process that is to end."""
        return Cluster(self._connection.within(seconds), self.namespace)

    def get(self, kind: Kind, namespace: str | None, name: str) -> dict[str, Any] | None:
        """One object; None if it is not there.

        Raises:
            ClusterError: as `Connection.request`; also if the server does not know the kind at all.
        """
        try:
            return self._one(_call("get", "GET", kind, namespace, name))
        except NotFoundError:
            return None

    def list(self, kind: Kind, namespace: str | None, labels: str = "", fields: str = "") -> Objects:
        """All objects of a kind; namespace None: of all namespaces.

        Args:
            labels: a label selector, such as "app=x,tier in (a, b)".
            fields: a field selector, such as "involvedObject.name=x".
        """
        return self._list(kind, namespace, labels, fields)[0]

    def create(self, kind: Kind, namespace: str | None, body: dict[str, Any]) -> dict[str, Any]:
        """Create an object.

        Raises:
            AlreadyExistsError: the name is taken.
            ClusterError: refused; see `connection`.
        """
        name = body["metadata"]["name"]
        call = _call("create", "POST", kind, namespace, name, query={"fieldManager": FIELD_MANAGER}, body=body)
        return self._one(call, lambda _: self._ours(kind, namespace, name, body))

    def replace(self, kind: Kind, namespace: str | None, body: dict[str, Any]) -> dict[str, Any]:
        """Replace an object, all of it.

        Raises:
            ConflictError: `body` has a resourceVersion and the object has changed since.
            NotFoundError: it is not there.
        """
        name = body["metadata"]["name"]
        call = _call("update", "PUT", kind, namespace, name, query={"fieldManager": FIELD_MANAGER}, body=body)
        metadata = {key: value for key, value in body["metadata"].items() if key != "resourceVersion"}
        return self._one(call, lambda _: self._ours(kind, namespace, name, {**body, "metadata": metadata}))

    def apply(
        self, kind: Kind, namespace: str | None, body: dict[str, Any], dry_run: bool = False, force: bool = True
    ) -> dict[str, Any]:
        """Server-side apply as "reasongenrm": create the object, or make the fields in `body`, and only those, ours.

        A field that an earlier apply of ours set and `body` has not is removed.

        Args:
            dry_run: let the server check it and say what would come out; nothing is stored.
            force: take fields that another manager owns; else they are a ConflictError.
        """
        query = {"fieldManager": FIELD_MANAGER, "force": str(force).lower(), **({"dryRun": "All"} if dry_run else {})}
        name = body["metadata"]["name"]
        call = _call("patch", "PATCH", kind, namespace, name, query, body, "application/apply-patch+yaml")
        return self._one(call)

    def patch(self, kind: Kind, namespace: str | None, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        """JSON merge patch (RFC 7396): None removes a field, a list is replaced as a whole.

        Raises:
            NotFoundError: the object is not there.
        """
        query = {"fieldManager": FIELD_MANAGER}
        return self._one(_call("patch", "PATCH", kind, namespace, name, query, patch, "application/merge-patch+json"))

    def delete(
        self, kind: Kind, namespace: str | None, name: str, uid: str | None = None, foreground: bool = False
    ) -> bool:
        """Delete an object, and through the garbage collector what it owns.

        Args:
            uid: only the object with this uid; another one of the same name stays.
            foreground: the object stays, marked, until what it owns is gone.

        Returns:
            Whether it was there (with that uid).
        """
        options: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Foreground" if foreground else "Background",
        }
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            # Gone, or another one of that name, after an attempt without an answer: that attempt did it.
            self._connection.request(
                _call("delete", "DELETE", kind, namespace, name, body=options),
                lambda error: {} if isinstance(error, NotFoundError | ConflictError) else None,
            )
        except (NotFoundError, ConflictError):
            return False
        return True

    def watch(
        self,
        kind: Kind,
        namespace: str | None,
        name: str | None = None,
        labels: str = "",
        timeout_seconds: float | None = None,
    ) -> Iterator[Event]:
        """Report what is there as ADDED, then every change as it comes.

        A connection that breaks, 410 Gone, 429 and 5xx are survived: the watch goes on where it was, or lists again and
        reports what differs (what vanished meanwhile as DELETED). No state of an object is reported twice.

        Args:
            name: watch only the object of this name.
            timeout_seconds: the watch ends by itself then; None: it never does.

        Raises:
            UnavailableError: the API server was away for OUTAGE_SECONDS.
            ClusterError: refused; see `connection`.
        """
        deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        fields = f"metadata.name={name}" if name is not None else ""
        outage = _Outage()
        known: dict[str, dict[str, Any]] = {}
        version: str | None = None
        while True:
            try:
                if version is None:
                    items, version = self._list(kind, namespace, labels, fields)
                    outage.end()
                    yield from _difference(known, {_uid(item): item for item in items})
                seconds = min(WATCH_SECONDS, deadline - time.monotonic())
                if seconds <= 0:
                    return
                for kind_of_event, item in self._changes(kind, namespace, labels, fields, version, seconds, deadline):
                    outage.end()
                    version = item["metadata"]["resourceVersion"]
                    if kind_of_event != "BOOKMARK":
                        yield from _change(known, kind_of_event, item)
                    if time.monotonic() >= deadline:
                        return
            except GoneError:
                version = None
            except UnavailableError as error:
                if time.monotonic() >= deadline:
                    return
                outage.wait(error, deadline)

    def read_log(self, namespace: str, pod: str, container: str, tail_lines: int) -> Lines:
        """The last lines of a container's log as it is now.

        Raises:
            NotFoundError: the pod is gone.
            ClusterError: refused; see `connection`.
        """
        query = {"container": container, "tailLines": str(tail_lines)}
        call = Call("get", "pods/log", namespace, pod, "GET", POD.path(namespace, pod) + "/log", query)
        with self._connection.lines(call, connection.READ_SECONDS) as lines:
            return [line.decode("utf-8", "replace") for line in lines]

    def follow_log(self, namespace: str, pod: str, container: str) -> Iterator[str]:
        """Lines of a container's log as they come, from the first one to its end.

        A container that has not started yet is waited for; a connection that breaks is opened again without losing or
        repeating a line. Ends when the container has ended and its log is read, or the pod is gone.

        Raises:
            UnavailableError: the API server was away for OUTAGE_SECONDS.
            ClusterError: refused; see `connection`.
        """
        outage = _Outage()
        since, recent = "", Counter[str]()  # the lines of the newest second: a log is asked for by whole seconds
        while True:
            ended = self._has_ended(namespace, pod, container)
            if ended is None:
                return
            query = {
                "container": container,
                "follow": "true",
                "timestamps": "true",
                **({"sinceTime": since} if since else {}),
            }
            call = Call("get", "pods/log", namespace, pod, "GET", POD.path(namespace, pod) + "/log", query)
            seen = recent.copy()
            try:
                with self._connection.lines(call, QUIET_LOG_SECONDS) as lines:
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

    def log_tail(self, namespace: str, pod: str, container: str, num_lines: int, previous: bool = False) -> Lines:
        """The last lines of a container's log as it is now.

        Args:
            previous: of the container's run before the present one, which is the one that crashed.

        Returns:
            At most `tail_lines` lines; none if the container has written nothing, has not started, or is gone.

        Raises:
            ForbiddenError: the account may not read logs.
            UnavailableError: the API server cannot be reached.
        """
        query = {"container": container, "tailLines": str(num_lines), **({"previous": "true"} if previous else {})}
        call = Call("get", "pods/log", namespace, pod, "GET", POD.path(namespace, pod) + "/log", query)
        try:
            with self._connection.lines(call, SLACK_SECONDS) as lines:
                return [data.decode("utf-8", "replace") for data in lines]
        except (ForbiddenError, UnavailableError):
            raise
        except ClusterError as error:
            logger.info("%s No log of %s/%s is shown.", error, pod, container)
            return []

    def _has_ended(self, namespace: str, pod: str, container: str) -> bool | None:
        """Whether a container has ended for good; None if its pod is gone."""
        found = self.get(POD, namespace, pod)
        if found is None:
            return None
        status = found.get("status", {})
        if status.get("phase") in ("Succeeded", "Failed"):
            return True
        statuses = status.get("initContainerStatuses", []) + status.get("containerStatuses", [])
        state: Mapping[str, Any] = next(
            (entry.get("state", {}) for entry in statuses if entry["name"] == container), {}
        )
        return "terminated" in state and found["spec"].get("restartPolicy") == "Never"

    def _one(self, call: Call, settle: connection.Settle | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = self._connection.request(call, settle)
        return answer

    def _ours(self, kind: Kind, namespace: str | None, name: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The object of that name if it holds all that we wrote: our own, written by a request whose answer was lost."""
        present = self.get(kind, namespace, name)
        return present if present is not None and _holds(present, body) else None

    def _list(self, kind: Kind, namespace: str | None, labels: str, fields: str) -> tuple[Objects, str]:
        query = _selectors(labels, fields)
        found = self._connection.request(_call("list", "GET", kind, namespace, None, query))
        # Lists of built-in kinds leave both out of their items.
        items = [{"apiVersion": kind.api_version, "kind": kind.kind, **item} for item in found["items"]]
        return items, found["metadata"]["resourceVersion"]

    def _changes(
        self, kind: Kind, namespace: str | None, labels: str, fields: str, version: str, seconds: float, deadline: float
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """What one watch request reports. It ends when the server ends it."""
        query = {
            **_selectors(labels, fields),
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(math.ceil(seconds)),
        }
        call = _call("watch", "GET", kind, namespace, None, query)
        started, num_events = time.monotonic(), 0
        with self._connection.lines(call, min(seconds + SLACK_SECONDS, max(deadline - started, 0.05))) as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:  # the server ended the stream in the middle of a line; it comes again
                    break
                num_events += 1
                if event["type"] != "ERROR":
                    yield event["type"], event["object"]
                    continue
                code = event["object"].get("code", 500)
                if code == 410:
                    raise GoneError(f"{call}: {event['object'].get('message')}")
                raise UnavailableError(f"{call}: the watch ended with {code}: {event['object'].get('message')}.")
        if not num_events and time.monotonic() - started < connection.FIRST_WAIT_SECONDS:
            time.sleep(
                connection.FIRST_WAIT_SECONDS
            )  # a server that ends every watch at once is not to be asked in a loop


class _Outage:
    """Waits between attempts while the API server is away, and gives up when that is too long."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._num_waits = 0

    def end(self) -> None:
        """Something was answered."""
        self._since, self._num_waits = None, 0

    def wait(self, error: UnavailableError, deadline: float = math.inf) -> None:
        """Sleep before the next attempt, no longer than to the deadline.

        Raises:
            UnavailableError: `error`, if nothing was answered for OUTAGE_SECONDS.
        """
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > OUTAGE_SECONDS:
            raise error
        logger.info("%s Going on.", error)
        seconds = connection.FIRST_WAIT_SECONDS * 2 ** min(self._num_waits, 6)
        self._num_waits += 1
        time.sleep(max(0.0, min(seconds, connection.MAX_WAIT_SECONDS, deadline - now)))


def _call(
    verb: str,
    method: str,
    kind: Kind,
    namespace: str | None,
    name: str | None,
    query: Mapping[str, str] = {},
    body: Any = None,
    content_type: str = "application/json",
) -> Call:
    path = kind.path(namespace, None if verb == "create" else name)
    return Call(verb, kind.resource, namespace, name, method, path, query, body, content_type)


def _selectors(labels: str, fields: str) -> dict[str, str]:
    named = {"labelSelector": labels, "fieldSelector": fields}
    return {key: value for key, value in named.items() if value}


def _uid(item: Mapping[str, Any]) -> str:
    return str(item["metadata"]["uid"])


def _version(item: Mapping[str, Any]) -> str:
    return str(item["metadata"]["resourceVersion"])


def _change(known: dict[str, dict[str, Any]], kind_of_event: str, item: dict[str, Any]) -> Iterator[Event]:
    """The event as it is to be reported, if it is news."""
    before = known.get(_uid(item))
    if kind_of_event == "DELETED":
        if known.pop(_uid(item), None) is not None:
            yield Event("DELETED", item)
        return
    if before is not None and _version(before) == _version(item):
        return
    known[_uid(item)] = item
    yield Event("ADDED" if before is None else "MODIFIED", item)


def _difference(known: dict[str, dict[str, Any]], found: Mapping[str, dict[str, Any]]) -> Iterator[Event]:
    """What a new list tells beyond what was reported: first what is gone, so that a name is free before it is taken."""
    for uid in [uid for uid in known if uid not in found]:
        yield Event("DELETED", known.pop(uid))
    for item in found.values():
        yield from _change(known, "ADDED", item)


def _holds(present: Any, written: Any) -> bool:
    """Whether an object has everything that was written; the server may have added to it."""
    if isinstance(written, dict):
        return isinstance(present, dict) and all(
            key in present and _holds(present[key], written[key]) for key in written
        )
    if isinstance(written, list):
        return isinstance(present, list) and len(present) == len(written) and all(map(_holds, present, written))
    return bool(present == written)
