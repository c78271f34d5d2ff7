"""A real object store for the tests, one SeaweedFS per session and one prefix per test; a fake cluster per test."""

import os
import re
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from reasongenrm.kubernetes import connection
from reasongenrm.kubernetes.cluster import Cluster
from reasongenrm.processes.cpu_math import configure_cpu_math
from reasongenrm.store.artifacts import Store
from reasongenrm.store.seaweed import EmbeddedStore, embedded_store
from tests.kube.fake_api import FakeCluster

configure_cpu_math()  # as every process of ours does, before torch is imported
# pytest-xdist sets them in its workers, and a console of rich keeps what it finds when it is imported.
for _name in ("COLUMNS", "LINES"):
    os.environ.pop(_name, None)
# Two workers of `make test` on two CPUs have one for each: their threads would only wait for one another.
_NUM_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _NUM_WORKERS)))
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background; our children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def store_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """A running server; os.environ leads boto3, here and in child processes, to it."""
    before = dict(os.environ)
    with embedded_store(tmp_path_factory.mktemp("store")) as server:
        os.environ.update(server.env)
        yield server
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def store(store_env: EmbeddedStore, request: pytest.FixtureRequest) -> Store:
    """An empty store of the test's own."""
    name = re.sub(r"[^a-zA-Z0-9]+", "-", request.node.nodeid).strip("-")[-150:]
    return Store(f"{store_env.uri}/{name}")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """A running API server that KUBECONFIG leads to."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(connection, "FIRST_WAIT_SECONDS", 0.01)
    with FakeCluster() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        yield server


@pytest.fixture
def cluster(fake: FakeCluster) -> Cluster:
    """The client of that server."""
    assert fake.kubeconfig.is_file()
    return Cluster.connect()
