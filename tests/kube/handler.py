"""The HTTP side of `FakeCluster`: one request, its verb and its answer; streams that can be cut."""

import json
import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from tests.kube.objects import RESOURCES, Object, Refusal, Resource, by_plural, matches, not_found
from tests.kube.reviews import answer_review

if TYPE_CHECKING:
    from tests.kube.fake_api import FakeCluster

CHECK_SECONDS = 0.02  # how often a stream looks whether it is to break
_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>v\w+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>status|log|proxy(?P<path>/.*)))?"
)
_REASONS = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired", 422: "Invalid"}


@dataclass(frozen=True)
class Request:
    """What somebody asked for."""

    verb: str
    resource: str  # the plural; "pods/log"
    namespace: str | None
    name: str | None
    query: Mapping[str, str]
    user: str
    body: Any = None


@dataclass
class Fault:
    """A failure that waits for its request."""

    verb: str
    resource: str
    times: int
    status: int = 0  # 0: the connection is cut
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    delay_seconds: float = 0.0
    carried_out: bool = False  # cut only after the request was carried out
    act: Callable[[], object] | None = None  # done before the request is carried out


@dataclass
class Log:
    """A container's log: RFC 3339 time stamps and lines."""

    lines: list[tuple[str, str]] = field(default_factory=list)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, cluster: "FakeCluster") -> None:
        self.cluster = cluster
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, *_: object) -> None:
        """A connection that was cut on purpose needs no traceback."""


class _Cut(Exception):
    """The connection is to be closed without another byte."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for the client's acknowledgement of its headers
    server: Server

    def setup(self) -> None:
        super().setup()
        self.cluster = self.server.cluster
        self.cluster._sockets.add(self.connection)

    def finish(self) -> None:
        self.cluster._sockets.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        """No access log in the tests' output."""

    def _handle(self) -> None:
        try:
            self._answer()
        except Refusal as refusal:
            self._send(refusal.code, refusal.status)
        except (_Cut, OSError):
            self.close_connection = True
            cut(self.connection)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def _answer(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        parts = _PATH.fullmatch(url.path)
        resource = parts and next(
            (
                r
                for r in RESOURCES
                if (r.group, r.version, r.plural) == (parts["group"] or "", parts["version"], parts["plural"])
            ),
            None,
        )
        if not parts or resource is None or resource.plural in self.cluster._absent:
            self._send(404, b"404 page not found\n")
            return
        verb = self._verb(parts["name"])
        sub = "proxy" if parts["path"] else parts["sub"]
        named = f"{resource.plural}/{sub}" if sub in ("log", "proxy") else resource.plural
        name = parts["name"] or (body["metadata"].get("name") if body and verb == "create" else None)
        user = self._authenticate()
        self.cluster.requests.append(Request(verb, named, parts["namespace"], name, query, user, body))
        fault = self.cluster._fault_of(verb, named)
        if fault is not None:
            time.sleep(fault.delay_seconds)
            if fault.act is not None:
                fault.act()
            if fault.status == 0 and not fault.carried_out:
                raise _Cut
            if fault.status > 200:
                message = fault.message or f"told to answer {fault.status}"
                status = Refusal(fault.status, _REASONS.get(fault.status, "InternalError"), message).status
                self._send(fault.status, status, fault.headers)
                return
        self._authorize(verb, named, resource, parts["namespace"], user)
        self._cut_after = fault is not None and fault.carried_out
        if parts["sub"] == "log":
            self._log(parts["namespace"], parts["name"], query)
        elif sub == "proxy":
            self._proxy(parts["namespace"], parts["name"], parts["path"])
        else:
            self._carry_out(verb, resource, parts["namespace"] or "", name, parts["sub"] == "status", query, body)

    def _verb(self, name: str | None) -> str:
        if self.command == "GET":
            return "get" if name else "list"
        return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[self.command]

    def _authenticate(self) -> str:
        token = self.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not token:
            return "system:anonymous"
        if token not in self.cluster.accounts:
            raise Refusal(401, "Unauthorized", "Unauthorized")
        return self.cluster.accounts[token]

    def _authorize(self, verb: str, named: str, resource: Resource, namespace: str | None, user: str) -> None:
        if (verb, named) in self.cluster._denied or user == "system:anonymous":
            where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
            message = (
                f'{resource.qualified} is forbidden: User "{user}" cannot {verb} resource "{named}" in API group '
                f'"{resource.group}" {where}'
            )
            raise Refusal(403, "Forbidden", message, group=resource.group, kind=resource.plural)

    def _carry_out(
        self,
        verb: str,
        resource: Resource,
        namespace: str,
        name: str,
        status: bool,
        query: Mapping[str, str],
        body: Any,
    ) -> None:
        objects = self.cluster._objects
        if verb == "list":
            with objects.changed:
                found = objects.all(resource.plural, namespace or None)
                items = [
                    item
                    for item in found
                    if matches(item, query.get("labelSelector", ""), query.get("fieldSelector", ""))
                ]
                if resource.is_built_in:  # lists of built-in kinds leave these out of their items
                    items = [{key: item[key] for key in item if key not in ("apiVersion", "kind")} for item in items]
                metadata = {"resourceVersion": str(objects.version)}
            kind = f"{resource.kind}List"
            self._send(200, {"apiVersion": resource.api_version, "kind": kind, "metadata": metadata, "items": items})
        elif verb == "get":
            self._send(200, objects.get(resource, namespace, name))
        elif verb == "create" and resource.group == "authorization.k8s.io":
            self._send(201, answer_review(objects, self.cluster._denied, namespace, body))
        elif verb == "create":
            self._send(201, objects.create(resource, namespace, body))
        elif verb == "update":
            self._send(200, objects.update(resource, namespace, body, status=status))
        elif verb == "delete":
            self._send(200, objects.delete(resource, namespace, name, (body or {}).get("preconditions", {}).get("uid")))
        elif self.headers["content-type"] == "application/merge-patch+json":
            self._send(200, objects.merge(resource, namespace, name, body, status=status))
        else:
            kind = self.headers["content-type"]
            raise Refusal(415, "UnsupportedMediaType", f"the body of the request was in an unknown format - {kind}")

    def _proxy(self, namespace: str, name: str, path: str) -> None:
        """Hand on what a Service answers. Source: Kubernetes 1.36, pkg/registry/core/service/proxy."""
        service, _, _ = name.partition(":")
        if self.cluster.find("services", namespace, service) is None:
            raise not_found(by_plural("services"), service)
        answers = self.cluster.answers.get((namespace, name), {})
        if not answers:
            raise Refusal(503, "ServiceUnavailable", f'no endpoints available for service "{service}"')
        self._send(200 if path in answers else 404, answers.get(path, b"404 page not found\n"))

    def _send(self, code: int, body: Any, headers: Mapping[str, str] = {}) -> None:
        if getattr(self, "_cut_after", False):
            self._cut_after = False
            raise _Cut
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "text/plain" if isinstance(body, bytes) else "application/json")
        self.send_header("content-length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _gone(self) -> bool:
        """Whether the client has hung up, or the server stops. TLS cannot look ahead; there the next write tells."""
        if isinstance(self.connection, ssl.SSLSocket):
            return self.cluster.stopping
        readable, _, _ = select.select([self.connection], [], [], 0)
        return self.cluster.stopping or bool(readable and not self.connection.recv(1, socket.MSG_PEEK))

    def _start_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _log(self, namespace: str, name: str, query: Mapping[str, str]) -> None:
        cluster, objects = self.cluster, self.cluster._objects
        container = query["container"]
        if query.get("previous") != "true" and self._state(namespace, name, container) == "waiting":
            message = f'container "{container}" in pod "{name}" is waiting to start: ContainerCreating'
            raise Refusal(400, "BadRequest", message)
        tail, since = query.get("tailLines"), query.get("sinceTime", "")
        with objects.changed:
            epoch = cluster._breaks
            cluster._streams.append(name)
            log = cluster._logs.setdefault((namespace, name, container), Log())
            sent = len(log.lines) - min(int(tail), len(log.lines)) if tail else 0
        try:
            self._start_stream()
            while not self._gone():
                with objects.changed:
                    new, sent = log.lines[sent:], len(log.lines)
                    over = query.get("follow") != "true" or self._state(namespace, name, container) != "running"
                    broken = epoch != cluster._breaks
                    if not new and not over and not broken:
                        objects.changed.wait(CHECK_SECONDS)
                        continue
                for stamp, line in new:
                    if stamp[:19] >= since[:19]:  # the kubelet compares whole seconds
                        self._chunk(f"{f'{stamp} ' if query.get('timestamps') == 'true' else ''}{line}\n".encode())
                if broken:
                    self._chunk(b"2026-01-01T00:00:00.000000000Z the line in whi")
                    raise _Cut
                if over and not new:
                    break
            self._chunk(b"")
        finally:
            cluster._streams.remove(name)

    def _state(self, namespace: str, name: str, container: str) -> str:
        """waiting, running or over."""
        pod = self.cluster.find("pods", namespace, name)
        if pod is None:
            raise not_found(by_plural("pods"), name)
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return "over"
        states = pod.get("status", {}).get("containerStatuses", [])
        state: Object = next((entry["state"] for entry in states if entry["name"] == container), {})
        return "over" if "terminated" in state else "running" if "running" in state else "waiting"


def cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
