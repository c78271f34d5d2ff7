"""A fake cluster a test, and waits that do not make the tests slow."""

from collections.abc import Iterator

import pytest

from reasongenrm.cluster import connection
from reasongenrm.cluster.client import Cluster
from tests.kube.fake_api import FakeCluster


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
