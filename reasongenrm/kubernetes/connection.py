"""One request to the Kubernetes API server: credentials, time-outs, retries, what each refusal means.

The `kubernetes` package (30.1: kfp wants less than 31) reads the kubeconfig, runs its login plugins and sets up TLS.
The requests themselves go straight to its urllib3 pool: its own call drops time-outs that are fractions of a second,
repeats requests without a word, and its models drop fields that they do not know.
"""

import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from reasongenrm import __version__
from reasongenrm.errors import ClusterError
from reasongenrm.kubernetes.kinds import Kind

if TYPE_CHECKING:
    from kubernetes.client import Configuration
    from urllib3 import BaseHTTPResponse

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0  # of one answer; KServe's and Kueue's webhooks may take 10 s each
MAX_ATTEMPTS = 6
FIRST_WAIT_SECONDS = 0.5  # doubled at every retry: five retries wait 15.5 s in all
MAX_WAIT_SECONDS = 60.0  # also of a server's Retry-After
SERVICE_ACCOUNT_DIR = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # as the kubelet mounts it

_TRANSIENT = frozenset({429, 500, 502, 503, 504})  # 500 is what a webhook that does not answer yet becomes
_ACCOUNT = re.compile(r'[Uu]ser "([^"]+)" cannot ')


class NotFoundError(ClusterError):
    """There is no such object."""


class UnknownKindError(ClusterError):
    """The server does not know such objects: what brings the kind is not installed."""


class AlreadyExistsError(ClusterError):
    """An object of this name exists."""


class ConflictError(ClusterError):
    """The object is not the one that was meant: it has changed, or another manager owns a field."""


class ForbiddenError(ClusterError):
    """The API server, or an admission rule of the cluster, does not allow it."""


class UnavailableError(ClusterError):
    """The server could not be reached, or was overloaded, also when retried; the same call may succeed later."""


class _TransientError(Exception):
    """A failure that may pass; with what Retry-After asks for, if it does."""

    def __init__(self, what: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(what)
        self.retry_after_seconds = retry_after_seconds


_METHODS = {"get": "GET", "list": "GET", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}


@dataclass(frozen=True)
class Call:
    """One request, in the words of RBAC."""

    verb: str  # get, list, create, update, patch (a JSON merge patch) or delete
    kind: Kind
    namespace: str | None  # None: all of them
    name: str | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    subresource: str = ""  # of one object, such as a pod's "log"
    path: str = ""  # of a proxied service: what the service itself is asked for

    @property
    def resource(self) -> str:
        """Plural with its group, as RBAC and kubectl name it: "trainjobs.trainer.kubeflow.org", "pods/log"."""
        return self.kind.resource + (f"/{self.subresource}" if self.subresource else "")

    @property
    def target(self) -> str:
        """Path and query."""
        path = self.kind.path(self.namespace, None if self.verb == "create" else self.name)
        path += "".join(f"/{part}" for part in (self.subresource, self.path) if part)
        return f"{path}?{urlencode(self.query)}" if self.query else path

    def __str__(self) -> str:
        place = "/".join(part for part in (self.namespace, self.name) if part)
        return f"cannot {self.verb} {self.resource}" + (f" {place}" if place else "")


class Connection:
    """Speaks to one API server as one account; may be shared by threads.

    Args:
        configuration: of the kubernetes package: host, TLS and credentials.
        login: in messages, where the credentials come from and how to renew them.
        seconds: all that one request may take with its retries; None: MAX_ATTEMPTS decides.
    """

    def __init__(self, configuration: "Configuration", login: str, seconds: float | None = None) -> None:
        from kubernetes.client import ApiClient

        self._configuration, self._login, self._seconds = configuration, login, seconds
        self._api = ApiClient(configuration)
        self.host: str = configuration.host

    def within(self, seconds: float) -> "Connection":
        """The same server and account; a request and its retries are given up after `seconds`."""
        return Connection(self._configuration, self._login, seconds)

    def request(self, call: Call) -> Any:
        """Send a request, again after a 429 (when Retry-After says), a 5xx or a lost connection; returns the answer's
        JSON.

        Raises:
            ClusterError: the kind says what was refused (see the classes above). An earlier attempt, whose answer was
                lost, may have been carried out, and be what the refusal is about.
        """
        ends = math.inf if self._seconds is None else time.monotonic() + self._seconds
        attempt = 0
        while True:
            try:
                return self._request_once(call, min(READ_SECONDS, max(0.1, ends - time.monotonic())))
            except _TransientError as error:
                asked = error.retry_after_seconds
                seconds = min(FIRST_WAIT_SECONDS * 2**attempt if asked is None else asked, MAX_WAIT_SECONDS)
                # A wait that uses up what is left would end in an attempt without time for an answer.
                if seconds >= ends - time.monotonic() or (self._seconds is None and attempt + 1 == MAX_ATTEMPTS):
                    raise UnavailableError(
                        f"{call}: {error}, also when retried. Is the API server {self.host} up and reachable from "
                        "here? Run again; finished work is kept."
                    ) from error
                logger.warning("%s: %s; trying again in %.1f s", call, error, seconds)
                time.sleep(seconds)
                attempt += 1

    @contextmanager
    def lines(self, call: Call, read_seconds: float) -> Iterator[Iterator[bytes]]:
        """Open a stream (a log) and read it line by line, without its line ends; one attempt, no retry.

        A line that the connection breaks off in is not handed out; a last line without a line end is, if the server
        ended the stream in order.

        Args:
            read_seconds: silence after which the connection counts as lost.

        Raises:
            UnavailableError: the connection broke or was silent for too long, at its start or on the way.
            ClusterError: the server refused.
        """
        try:
            with self._answer(call, read_seconds) as response:
                yield _lines_of(response)
        except _TransientError as error:
            raise UnavailableError(f"{call}: {error}.") from error

    def _request_once(self, call: Call, read_seconds: float) -> Any:
        with self._answer(call, read_seconds) as response:
            data = response.data
        try:
            return json.loads(data)
        except ValueError as error:
            raise ClusterError(
                f"{call}: {self.host} answered {data[:80]!r}; expected JSON. Is that address a Kubernetes API server? "
                "Check the kubeconfig."
            ) from error

    @contextmanager
    def _answer(self, call: Call, read_seconds: float) -> Iterator["BaseHTTPResponse"]:
        """Send once; the answer's body is not read yet. A connection that breaks while it is read is told as well."""
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError, SSLError

        headers = {"accept": "application/json", "user-agent": f"reasongenrm/{__version__}"}
        self._api.update_params_for_auth(headers, [], ["BearerToken"])
        if call.body is not None:
            headers["content-type"] = f"application/{'merge-patch+json' if call.verb == 'patch' else 'json'}"
        try:
            response: BaseHTTPResponse = self._api.rest_client.pool_manager.request(
                _METHODS[call.verb],
                self.host + call.target,
                body=None if call.body is None else json.dumps(call.body, allow_nan=False).encode(),
                headers=headers,
                timeout=Timeout(connect=min(CONNECT_SECONDS, read_seconds), read=read_seconds),
                retries=False,  # ours are counted and logged
                preload_content=False,
            )
        except HTTPError as error:
            if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ClusterError(
                    f"{call}: the certificate of {self.host} is not trusted ({_words(error)}). Check "
                    "certificate-authority(-data) of the kubeconfig, or write it again."
                ) from error
            raise _TransientError(f"nobody answers at {self.host} ({_words(error)})") from error
        try:
            if not 200 <= response.status < 300:
                raise self._refusal(call, response)
            yield response
        except HTTPError as error:
            raise _TransientError(f"the answer broke off ({_words(error)})") from error
        finally:
            response.close()  # one that was read to its end has given its connection back to the pool

    def _refusal(self, call: Call, response: "BaseHTTPResponse") -> Exception:
        """The error that an answer means."""
        code, status = response.status, _status_of(response.data)
        said = str(status.get("message") or response.data[:200].decode("utf-8", "replace") or response.reason)
        message = said.rstrip(". ")
        if code in _TRANSIENT:
            after = response.headers.get("Retry-After", "")
            return _TransientError(f"{self.host} answered {code}: {message}", float(after) if after.isdigit() else None)
        if code == 401 or (code == 403 and '"system:anonymous"' in message):
            return ClusterError(
                f"{call}: the API server does not accept the credentials ({code}: {message}). {self._login}"
            )
        if code == 403:
            return ForbiddenError(f"{call}: {_explain_forbidden(call, message)}")
        if code == 404 and status.get("kind") != "Status":
            return UnknownKindError(
                f"{call}: the API server does not know {call.resource}. Install what brings it (docs/install.md lists "
                "the versions), or check that this is the right cluster: kubectl api-resources."
            )
        if code == 404:
            return NotFoundError(f"{call}: {message}. Check the name and the namespace.")
        if code == 409 and status.get("reason") == "AlreadyExists":
            return AlreadyExistsError(f"{call}: it exists already. Delete it, or use another name.")
        if code == 409:
            return ConflictError(f"{call}: {message}. Read it again and repeat.")
        what = "finds the object invalid" if code == 422 else f"answered {code}"
        return ClusterError(f"{call}: the API server {what}: {message}. Fix what it names.")


def _explain_forbidden(call: Call, message: str) -> str:
    account = _ACCOUNT.search(message)
    if account is None:  # a quota, Pod Security, a webhook
        advice = "Change what it names, or ask who runs the cluster."
        return f"an admission rule of the cluster refuses it: {message}. {advice}"
    where, role, scope = "in the whole cluster", "clusterrole", ""
    if call.namespace:
        where, role, scope = f"in namespace {call.namespace}", "role", f" --namespace={call.namespace}"
    return (
        f"account {account[1]} may not {call.verb} {call.resource} {where} ({message}). Apply our manifests, whose "
        f"Role and RoleBinding grant it to the pipeline's accounts, or grant it: kubectl create {role} NAME "
        f"--verb={call.verb} --resource={call.resource}{scope}, and bind that to the account."
    )


def service_account() -> tuple[Connection, str]:
    """The connection of this pod's own account, and the pod's namespace. The token is read at every request: it
    rotates.

    Raises:
        ClusterError: the pod has no token or no CA.
    """
    from kubernetes.client import Configuration

    token_path, ca_path = SERVICE_ACCOUNT_DIR / "token", SERVICE_ACCOUNT_DIR / "ca.crt"
    for path in (token_path, ca_path):
        if not path.is_file():
            raise ClusterError(
                f"{path}: no such file, but KUBERNETES_SERVICE_HOST is set, so this is a pod; expected its service "
                "account there. Set automountServiceAccountToken: true and a serviceAccountName, or unset "
                "KUBERNETES_SERVICE_HOST to use a kubeconfig."
            )
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")

    def read_token(configuration: "Configuration") -> None:
        configuration.api_key["authorization"] = f"Bearer {token_path.read_text().strip()}"

    configuration = Configuration(host=f"https://{f'[{host}]' if ':' in host else host}:{port}")
    configuration.ssl_ca_cert = str(ca_path)
    configuration.refresh_api_key_hook = read_token
    read_token(configuration)
    namespace = (SERVICE_ACCOUNT_DIR / "namespace").read_text().strip()
    login = f"They are those of this pod's service account ({token_path}): does the account still exist?"
    return Connection(configuration, login), namespace


def kubeconfig(context: str | None) -> tuple[Connection, str]:
    """The connection of a kubeconfig's context, and the context's namespace.

    Raises:
        ClusterError: there is no kubeconfig, it cannot be read, or it has no such context.
    """
    from kubernetes.client import Configuration
    from kubernetes.config import list_kube_config_contexts, load_kube_config
    from kubernetes.config.config_exception import ConfigException
    from yaml import YAMLError

    # Read here: the kubernetes package looks at KUBECONFIG once, when it is imported.
    path = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    if not any(Path(part).is_file() for part in path.split(os.pathsep) if part):
        raise ClusterError(
            "no cluster to talk to: KUBERNETES_SERVICE_HOST is not set, so this is no pod, and there is no kubeconfig "
            f"at {path}. Set KUBECONFIG to one, or run this in a pod of the cluster."
        )
    configuration = Configuration()
    try:
        contexts, active = list_kube_config_contexts(path)
        named = {entry["name"]: entry for entry in contexts}
        if context is not None and context not in named:
            raise ClusterError(f"{path}: no context '{context}'; expected one of: {', '.join(sorted(named))}.")
        load_kube_config(path, context, configuration, persist_config=False)
    except (ConfigException, YAMLError, OSError) as error:
        words = " ".join(str(error).split())
        raise ClusterError(f"{path}: not a usable kubeconfig: {words}. Fix it, or set another KUBECONFIG.") from error
    chosen = named[context] if context is not None else active
    login = (
        f"They come from context '{chosen['name']}' of {path}: log in again or write it again "
        "(kubectl auth whoami shows whether they work)."
    )
    return Connection(configuration, login), chosen["context"].get("namespace") or "default"


def _lines_of(response: "BaseHTTPResponse") -> Iterator[bytes]:
    rest = b""
    for data in response.stream(1 << 16):
        *whole, rest = (rest + data).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _status_of(data: bytes) -> Mapping[str, Any]:
    try:
        status = json.loads(data)
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}


def _words(error: Exception) -> str:
    """An error of urllib3 without the object addresses in it."""
    return re.sub(r"<[^>]*>: |HTTPS?ConnectionPool\([^)]*\): ", "", str(error)).strip() or type(error).__name__
