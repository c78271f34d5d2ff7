"""Who holds a Lease: one at a time, the next when it is given back or has run out, over the fake API server."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from reasongenrm.errors import ClusterError
from reasongenrm.kubernetes import lease
from reasongenrm.kubernetes.cluster import Cluster
from reasongenrm.kubernetes.lease import Lease
from tests.kube.fake_api import FakeCluster
from tests.waiting import HANG_SECONDS, wait_until

NAMESPACE = "reasongenrm"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)


def held_by(fake: FakeCluster) -> str:
    found = fake.find("leases", NAMESPACE, "judge")
    holder: str = found["spec"]["holderIdentity"] if found else ""
    return holder


def take(fake: FakeCluster, holder: str = "somebody") -> None:
    """Let somebody else hold it, who renews nothing."""
    spec = {"holderIdentity": holder, "leaseDurationSeconds": 1, "renewTime": "2026-11-30T10:00:00.000000Z"}
    metadata = {"name": "judge", "namespace": NAMESPACE}
    fake.put({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec})


@contextmanager
def renewed(fake: FakeCluster) -> Iterator[None]:
    """Somebody else holds it and is alive."""
    ended, number = threading.Event(), iter(range(10**9))

    def renew() -> None:
        while not ended.wait(0.01):
            found = fake.find("leases", NAMESPACE, "judge")
            assert found is not None
            found["spec"]["leaseTransitions"] = next(number)
            found["metadata"].pop("resourceVersion")
            fake.put(found)

    take(fake)
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(HANG_SECONDS)


def test_lease_is_renewed_while_it_is_held_and_given_back_at_the_end(fake: FakeCluster, cluster: Cluster) -> None:
    with Lease(cluster, NAMESPACE, "judge", "the judge") as held:
        assert held_by(fake)
        wait_until(lambda: len(fake.asked("update", "leases")) >= 3)
        assert held.is_held()
    assert held_by(fake) == ""
    with Lease(cluster, NAMESPACE, "judge", "the judge"):  # and taken without waiting
        assert held_by(fake)


def test_lease_that_somebody_renews_is_refused_with_the_holders_name(fake: FakeCluster, cluster: Cluster) -> None:
    with renewed(fake), pytest.raises(ClusterError, match=r"the judge: another deployment is under way \(somebody\)"):
        Lease(cluster, NAMESPACE, "judge", "the judge").__enter__()
    assert held_by(fake) == "somebody"


@pytest.mark.usefixtures("short")
def test_lease_of_a_killed_holder_runs_out(fake: FakeCluster, cluster: Cluster) -> None:
    take(fake)
    with Lease(cluster, NAMESPACE, "judge", "the judge") as held:
        assert held_by(fake) not in ("", "somebody")
        assert held.is_held()


def test_lease_that_somebody_took_is_not_held_and_not_given_back(fake: FakeCluster, cluster: Cluster) -> None:
    with Lease(cluster, NAMESPACE, "judge", "the judge") as held:
        take(fake)
        wait_until(lambda: not held.is_held())
    assert held_by(fake) == "somebody"


@pytest.mark.usefixtures("short")
def test_outage_that_is_longer_than_the_lease_loses_nothing_if_nobody_took_it(
    fake: FakeCluster, cluster: Cluster
) -> None:
    with Lease(cluster, NAMESPACE, "judge", "the judge") as held:
        fake.deny("update", "leases")
        wait_until(lambda: held._until < lease.time.monotonic())
        with pytest.raises(ClusterError, match="may not update leases"):
            held.is_held()  # nobody can say
        fake.allow("update", "leases")
        assert held.is_held()


@pytest.mark.parametrize("verb", ["create", "update"])
def test_lost_answer_of_ones_own_write_is_no_other_holder(fake: FakeCluster, cluster: Cluster, verb: str) -> None:
    if verb == "update":
        take(fake, holder="")
    fake.cut_next(verb, "leases", carried_out=True)
    with Lease(cluster, NAMESPACE, "judge", "the judge") as held:
        fake.cut_next("update", "leases", carried_out=True)
        wait_until(lambda: len(fake.asked("update", "leases")) >= 4)
        assert held.is_held()
