"""Clients ask without a pause while judges come and go: how many of their requests fail.

Real: the judge's servers (processes), their connections and signals, the deployments and rollbacks, one of them killed,
one stopped. Scripted: the API server, KServe, the way from a Service's address to the pods (`kubelet`).
`pytest -m slow tests/deploy/test_no_gap.py -s` prints the figures.
"""

import asyncio
import contextlib
import http.client
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from reasongenrm.deploy import change, manifest, rollout, transformer
from reasongenrm.deploy.rollback import choose, roll_back
from reasongenrm.errors import ClusterError
from reasongenrm.kubernetes import lease
from reasongenrm.store.artifacts import Store
from tests.deploy.kserve import NAMESPACE, runtime
from tests.deploy.kubelet import Kubelet, Proxy
from tests.deploy.test_deploy import CONFIG, World, kill, verdict
from tests.endpoints import FakeEndpoint, completion
from tests.judges import oracle
from tests.kube.fake_api import FakeCluster
from tests.kube.schemas import check
from tests.waiting import HANG_SECONDS, wait_until

BUSY = CONFIG.model_copy(update={"drain_seconds": 1.0, "rollout_timeout_seconds": HANG_SECONDS})
DRAIN_SECONDS, MODEL_STAYS_SECONDS = 2, 6  # as 15 and 55 in earnest
PROXY_SECONDS = 0.3  # that a node learns of an endpoint late
SHORT = f"""
from reasongenrm.deploy import manifest, transformer
transformer._DRAIN_SECONDS, manifest.MODEL_STAYS_SECONDS = {DRAIN_SECONDS}, {MODEL_STAYS_SECONDS}
"""
PAIR = json.dumps({"question": "What is 2 + 1?", "answer_a": "2 + 1 = 3.", "answer_b": "2 + 1 = 4."})


def model_of(how: str) -> Any:
    """What a checkpoint answers; those called "crash" cannot start, those called "wrong" judge wrongly."""

    async def reply(body: dict[str, Any], _: int) -> Response:
        await asyncio.sleep(0.05)
        return completion("[[A]]" if how == "wrong" else verdict(body), reasoning="Counting decides.")

    return None if how == "crash" else FakeEndpoint(reply).app


class Traffic:
    """Clients that ask one pair after the other: two keep their connection, two open one for each request."""

    def __init__(self, url: str) -> None:
        self._address = url.removeprefix("http://")
        self.counts: Counter[str] = Counter()
        self.figures: list[tuple[str, int, int, float]] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(keeps,)) for keeps in (True, True, False, False)]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(HANG_SECONDS)

    def _ask(self, keeps: bool) -> None:
        client = http.client.HTTPConnection(self._address, timeout=HANG_SECONDS)
        while not self._stopping.wait(0.02):
            try:
                client.request("POST", "/v1/pairwise", PAIR, {"Content-Type": "application/json"})
                answer = client.getresponse()
                body = answer.read()
                is_right = answer.status == 200 and json.loads(body)["preferred"] == "A"
                self.counts["right" if is_right else f"HTTP {answer.status}"] += 1
            except (OSError, http.client.HTTPException) as error:
                self.counts[repr(error)] += 1
                client.close()
            if not keeps:
                client.close()
        client.close()

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Count what is asked meanwhile; at least a request of each client comes before and after."""
        before, began = self.counts.copy(), time.monotonic()
        yield
        self.wait_for(20)
        found = self.counts - before
        failed = found.total() - found["right"]
        self.figures.append((what, found.total(), failed, time.monotonic() - began))
        assert failed == 0, (what, found)

    def wait_for(self, num_requests: int) -> None:
        before = self.counts.total()
        wait_until(lambda: self.counts.total() >= before + num_requests)


@pytest.fixture
def busy(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[World, Kubelet]]:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(transformer, "_DRAIN_SECONDS", DRAIN_SECONDS)
    monkeypatch.setattr(manifest, "MODEL_STAYS_SECONDS", MODEL_STAYS_SECONDS)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    for module in (rollout, change):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    with FakeCluster(validate=check) as fake:
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig))
        fake.put(runtime())
        kubelet = Kubelet(fake, model_of)
        try:
            yield World(store, fake, FakeEndpoint(lambda *_: completion("")), kubelet, tmp_path, oracle), kubelet
        finally:
            kubelet.stop()


@pytest.mark.slow
def test_no_request_fails_while_judges_come_and_go(busy: tuple[World, Kubelet]) -> None:
    world, kubelet = busy
    world.deploy("first", BUSY)

    def ended() -> bool:
        """Whether the one judge's server that is served is the only one left."""
        running = [name for name, process in kubelet.judges.items() if process.poll() is None]
        return len(running) == 1

    def is_refused(act: Callable[[], object]) -> None:
        with pytest.raises(ClusterError, match="has answered all the time"):
            act()

    with Proxy(world.fake, "judge", kubelet.ports, PROXY_SECONDS) as proxy:
        wait_until(lambda: bool(proxy._known))
        with Traffic(proxy.url) as traffic:
            traffic.wait_for(20)
            with traffic.during("good rollout"):
                world.deploy("second", BUSY)
                wait_until(ended)
            with traffic.during("bad checkpoint"):
                is_refused(lambda: world.deploy("crash", BUSY))
            with traffic.during("wrong judge"):
                is_refused(lambda: world.deploy("wrong", BUSY))
                wait_until(ended)
            with traffic.during("killed, deployed again"):
                there = lambda: len([None for pod in kubelet.ports if pod in kubelet.judges]) == 4  # noqa: E731
                assert kill(world, "third", BUSY, signal.SIGKILL, there, SHORT) == -signal.SIGKILL
                world.deploy("third", BUSY)
                wait_until(ended)
            with traffic.during("stopped"):
                there = lambda: "fourth" in world.services()  # noqa: E731
                assert kill(world, "fourth", BUSY, signal.SIGTERM, there, SHORT) == 143
                wait_until(ended)
            with traffic.during("rollback"):
                roll_back(
                    world.cluster, world.store, BUSY, choose(world.cluster, world.store, NAMESPACE, "judge", None)
                )
                wait_until(ended)
    assert (world.services(), world.served()) == (["second"], "second")
    for what, num_requests, num_failed, seconds in traffic.figures:
        print(f"{what:<24} {num_requests:>5} requests, {num_failed} failed, {seconds:5.1f} s")  # noqa: T201
