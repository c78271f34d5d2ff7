"""A Kubernetes API server for tests: real paths over real HTTP, logs, RBAC, and every way to fail on demand.

    with FakeCluster() as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        cluster.on_change("trainjobs", controller)     # a scripted controller, called in a thread of its own
        cluster.fail_next("create", "trainjobs", 429, headers={"Retry-After": "1"})

It keeps what the real one keeps (resourceVersion, uid, generation, status apart, finalizers, deletion of what is owned)
and refuses what it refuses (unknown kinds and namespaces, bad names and labels, stale versions, what the schema does
not know). It has no admission webhooks, no defaults, no quotas and no CEL rules.
"""

import base64
import queue
import socket
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from tests.kube.handler import CHECK_SECONDS, Fault, Log, Request, Server, cut
from tests.kube.objects import RESOURCES, Change, Object, Objects, Refusal, by_plural
from tests.kube.tls import serve_tls
from tests.waiting import HANG_SECONDS

NAMESPACES = ("default", "kubeflow", "reasongenrm")


class FakeCluster:
    """A context that runs the server; what is below drives it from a test or a scripted controller.

    Args:
        namespaces: that exist.
        validate: called with every object that is written; what it raises becomes a 422.
        tls: serve https with a certificate of an own CA.

    Attributes:
        url: of the server.
        kubeconfig: path of a kubeconfig whose context "fake" is in namespace "kubeflow".
        ca_pem: the CA's certificate, with `tls`.
        accounts: token -> name of the account; other tokens get 401.
        requests: everything that was asked, in order.
        answers: (namespace, "service:port") -> path -> what the service behind the API server's proxy answers.
    """

    def __init__(
        self,
        *,
        namespaces: tuple[str, ...] = NAMESPACES,
        validate: Callable[[Object], None] | None = None,
        tls: bool = False,
    ) -> None:
        self.accounts = {"laptop-token": "alice"}
        self.requests: list[Request] = []
        self.answers: dict[tuple[str, str], dict[str, Object]] = {}
        self._objects = Objects(set(namespaces), validate)
        self._tls = tls
        self._denied: set[tuple[str, str]] = set()
        self._absent: set[str] = set()
        self._faults: list[Fault] = []
        self._logs: dict[tuple[str, str, str], Log] = {}
        self._breaks = 0
        self._streams: list[str] = []
        self._sockets: set[socket.socket] = set()
        self._callbacks: list[tuple[int, str, Callable[[str, Object], None]]] = []
        self._changes: queue.Queue[Change | None] = queue.Queue()
        self._errors: list[BaseException] = []
        self._clock = datetime.now(UTC)
        self.stopping = False

    def __enter__(self) -> "FakeCluster":
        self._folder = TemporaryDirectory(prefix="fake-cluster-")
        folder = Path(self._folder.name)
        self._server = Server(self)
        if self._tls:
            self.ca_pem = serve_tls(self._server, folder)
        scheme, port = "https" if self._tls else "http", self._server.server_address[1]
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.port = port
        self.kubeconfig = folder / "kubeconfig"
        self.write_kubeconfig("laptop-token")
        self._objects.listen(self._changes.put)
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(CHECK_SECONDS,)),
            threading.Thread(target=self._control),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping = True
        self._changes.put(None)
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._sockets):
            cut(connection)
        for thread in self._threads:
            thread.join(HANG_SECONDS)
            assert not thread.is_alive(), "a thread of the fake cluster did not end"
        self._folder.cleanup()
        if self._errors:
            raise AssertionError("a scripted controller failed") from self._errors[0]

    # What is there.

    def objects(self, plural: str, namespace: str | None = None) -> list[Object]:
        """All objects of a kind."""
        return self._objects.all(plural, namespace)

    def find(self, plural: str, namespace: str, name: str) -> Object | None:
        """One object, or None."""
        try:
            return self._objects.get(by_plural(plural), namespace, name)
        except Refusal:
            return None

    def put(self, body: Object) -> Object:
        """Write an object as the cluster's own components do: its status as well, over one that is there."""
        resource = next(r for r in RESOURCES if (r.api_version, r.kind) == (body["apiVersion"], body["kind"]))
        namespace, name = body["metadata"].get("namespace", ""), body["metadata"]["name"]
        with self._objects.changed:
            if self.find(resource.plural, namespace, name) is None:
                made = self._objects.create(resource, namespace, body)
            else:
                made = self._objects.update(resource, namespace, body)
            if resource.has_status and "status" in body:
                made = self.set_status(resource.plural, namespace, name, body["status"])
            return made

    def set_status(self, plural: str, namespace: str, name: str, status: Object) -> Object:
        """Replace an object's status."""
        with self._objects.changed:
            found = self._objects.get(by_plural(plural), namespace, name)
            return self._objects.update(by_plural(plural), namespace, {**found, "status": status}, status=True)

    def remove(self, plural: str, namespace: str, name: str) -> None:
        """Delete an object, and what it owns."""
        self._objects.delete(by_plural(plural), namespace, name)

    def log(self, namespace: str, pod: str, container: str, *lines: str, seconds: float = 0.001) -> None:
        """Write lines to a container's log, so many seconds apart."""
        with self._objects.changed:
            log = self._logs.setdefault((namespace, pod, container), Log())
            for line in lines:
                self._clock += timedelta(seconds=seconds)
                log.lines.append((self._clock.strftime("%Y-%m-%dT%H:%M:%S.%f000Z"), line))
            self._objects.changed.notify_all()

    def on_change(self, plural: str, callback: Callable[[str, Object], None]) -> None:
        """Let a scripted controller see every later change of a kind, in order: ("ADDED", "MODIFIED" or "DELETED", the
        object).

        One thread calls all controllers, one after the other; what one raises fails the test at the end of the context.
        """
        self._callbacks.append((self._objects.version, plural, callback))

    def asked(self, verb: str, resource: str) -> list[Request]:
        """The requests of one kind, in order."""
        return [request for request in self.requests if (request.verb, request.resource) == (verb, resource)]

    # How it fails.

    def fail_next(
        self, verb: str, resource: str, status: int, times: int = 1, headers: Mapping[str, str] = {}, message: str = ""
    ) -> None:
        """Answer the next requests of this kind (verbs as in RBAC; "pods/log") with an error."""
        self._faults.append(Fault(verb, resource, times, status, headers, message))

    def cut_next(self, verb: str, resource: str, times: int = 1, *, carried_out: bool = False) -> None:
        """Close the connection instead of answering, before or after the request is carried out."""
        self._faults.append(Fault(verb, resource, times, carried_out=carried_out))

    def delay_next(self, verb: str, resource: str, seconds: float, times: int = 1) -> None:
        """Answer the next requests of this kind late."""
        self._faults.append(Fault(verb, resource, times, status=200, delay_seconds=seconds))

    def before_next(self, verb: str, resource: str, act: Callable[[], object]) -> None:
        """Do something after the next request of this kind has come in and before it is carried out: lose a race."""
        self._faults.append(Fault(verb, resource, 1, status=200, act=act))

    def deny(self, verb: str, resource: str) -> None:
        """Take a right away from every account."""
        self._denied.add((verb, resource))

    def allow(self, verb: str, resource: str) -> None:
        """Give it back."""
        self._denied.discard((verb, resource))

    def uninstall(self, plural: str) -> None:
        """Let the server not know a kind at all."""
        self._absent.add(plural)

    def break_logs(self) -> None:
        """Cut every log that is being followed in the middle of a line."""
        with self._objects.changed:
            self._breaks += 1
            self._objects.changed.notify_all()

    def num_streams(self, pod: str) -> int:
        """How many streams of a pod's log are open."""
        return self._streams.count(pod)

    def write_kubeconfig(self, token: str, namespace: str = "kubeflow") -> None:
        """Write the kubeconfig anew, with another token or namespace."""
        server: dict[str, str] = {"server": self.url}
        if self._tls:
            server["certificate-authority-data"] = base64.b64encode(self.ca_pem).decode()
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "fake", "cluster": server}],
                    "users": [{"name": "laptop", "user": {"token": token}}],
                    "contexts": [
                        {"name": "fake", "context": {"cluster": "fake", "user": "laptop", "namespace": namespace}},
                        {"name": "elsewhere", "context": {"cluster": "fake", "user": "laptop"}},
                    ],
                    "current-context": "fake",
                }
            )
        )

    def _control(self) -> None:
        while (change := self._changes.get()) is not None:
            for since, plural, callback in list(self._callbacks):
                if plural == change.plural and change.version > since and not self._errors:
                    try:
                        callback(change.type, change.object)
                    except BaseException as error:  # noqa: BLE001 - raised at the end of the context
                        self._errors.append(error)

    def _fault_of(self, verb: str, resource: str) -> Fault | None:
        for fault in self._faults:
            if (fault.verb, fault.resource) == (verb, resource) and fault.times > 0:
                fault.times -= 1
                return fault
        return None
