"""One holder at a time: a Lease that its holder renews while it lives.

A holder that is killed renews nothing, and the Lease runs out. Nobody compares clocks: how long a Lease has not changed
is measured by the one who waits for it. Source: Kubernetes, client-go tools/leaderelection, which does the same.
"""

import logging
import os
import secrets
import socket
import threading
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from reasongenrm.errors import ClusterError
from reasongenrm.kubernetes.cluster import AlreadyExistsError, Cluster, ConflictError
from reasongenrm.kubernetes.kinds import LEASE

logger = logging.getLogger(__name__)

LEASE_SECONDS = 30.0  # without a renewal it has run out
RENEW_SECONDS = 5.0


class Lease:
    """A context that holds the Lease of a name.

    Entering waits for the Lease of a killed holder to run out, LEASE_SECONDS at most.

    Args:
        what: is held, for messages.

    Raises:
        ClusterError: somebody else holds it and is alive.
    """

    def __init__(self, cluster: Cluster, namespace: str, name: str, what: str) -> None:
        self._cluster, self._namespace, self._name, self._what = cluster, namespace, name, what
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._found: dict[str, Any] = {}  # as it was written or read last
        self._until = 0.0  # as time.monotonic() counts
        self._is_lost = False
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {name}", daemon=True)

    def __enter__(self) -> Self:
        self._acquire()
        self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        if not self._is_lost:
            try:
                self._write(self._cluster.within(RENEW_SECONDS), "")
            except ClusterError as refused:  # it runs out by itself
                logger.warning("%s: its lease was not given back: %s", self._what, refused)

    def is_held(self) -> bool:
        """Whether it is still ours. After an outage that it may have run out in, the server is asked.

        Raises:
            ClusterError: the server cannot say.
        """
        if time.monotonic() >= self._until:
            self._renew(self._cluster.within(RENEW_SECONDS))
        return not self._is_lost

    def _acquire(self) -> None:
        seen, since = "", time.monotonic()
        while True:
            found = self._cluster.get(LEASE, self._namespace, self._name)
            holder = found and found["spec"].get("holderIdentity")
            version = found["metadata"]["resourceVersion"] if found else ""
            if holder and holder != self._holder and seen not in ("", version):
                raise ClusterError(
                    f"{self._what}: another deployment is under way ({holder}). Let it end before the next."
                )
            if not seen:
                seen, since = version, time.monotonic()
            if not holder or holder == self._holder or time.monotonic() - since >= LEASE_SECONDS:
                try:
                    self._found = found or {}
                    return self._write(self._cluster, self._holder)
                except (ConflictError, AlreadyExistsError):  # another one was faster, or our own answer got lost
                    continue
            if time.monotonic() - since < RENEW_SECONDS:
                logger.warning("%s: waiting for the lease of %s to be renewed or to run out", self._what, holder)
            time.sleep(min(RENEW_SECONDS, LEASE_SECONDS) / 2)

    def _write(self, cluster: Cluster, holder: str) -> None:
        until = time.monotonic() + LEASE_SECONDS
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": holder, "leaseDurationSeconds": max(1, round(LEASE_SECONDS)), "renewTime": now}
        if self._found:
            self._found = cluster.replace(LEASE, self._namespace, {**self._found, "spec": spec})
        else:
            metadata = {"name": self._name, "namespace": self._namespace}
            body = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}
            self._found = cluster.create(LEASE, self._namespace, body)
        self._until = until

    def _keep(self) -> None:
        """Renew it until the end, or until somebody else has it."""
        cluster = self._cluster.within(RENEW_SECONDS)
        while not self._ended.wait(RENEW_SECONDS) and not self._is_lost:
            try:
                self._renew(cluster)
            except ClusterError as error:
                logger.warning("%s: its lease cannot be renewed: %s", self._what, error)

    def _renew(self, cluster: Cluster) -> None:
        with self._lock:
            try:
                self._write(cluster, self._holder)
            except ConflictError:
                found = cluster.get(LEASE, self._namespace, self._name)
                self._is_lost = found is None or found["spec"].get("holderIdentity") != self._holder
                self._found = found or {}  # ours: it was written, and the answer was lost
