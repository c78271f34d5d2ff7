"""The client against an API server that answers, refuses, stalls and breaks off as a real one does."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.errors import ClusterError
from reasongenrm.kubernetes import cluster as client
from reasongenrm.kubernetes import connection
from reasongenrm.kubernetes.cluster import (
    AlreadyExistsError,
    Cluster,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    UnavailableError,
)
from reasongenrm.kubernetes.kinds import CONFIG_MAP, POD, SECRET, TRAIN_JOB
from tests.kube.fake_api import FakeCluster
from tests.waiting import HANG_SECONDS, wait_until


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def pod(name: str = "worker", phase: str = "Running", **state: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "kubeflow"},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "node", "image": "x"}]},
        "status": {"phase": phase, "containerStatuses": [{"name": "node", "state": state or {"running": {}}}]},
    }


class Collected:
    """What an iterator yields, gathered in a thread."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self.items: list[Any] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(iterator,), daemon=True)
        self.thread.start()

    def _run(self, iterator: Iterator[Any]) -> None:
        try:
            for item in iterator:
                self.items.append(item)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error

    def wait_for(self, num: int) -> list[Any]:
        wait_until(lambda: len(self.items) >= num or self.error is not None)
        assert self.error is None, self.error
        return self.items

    def exactly(self, num: int) -> list[Any]:
        """So many items, and no more a moment later."""
        self.wait_for(num)
        time.sleep(0.1)
        assert len(self.items) == num, self.items
        return self.items

    def join(self) -> list[Any]:
        self.thread.join(HANG_SECONDS)
        assert not self.thread.is_alive()
        assert self.error is None, self.error
        return self.items


# Objects.


def test_object_is_created_read_listed_replaced_patched_and_deleted(cluster: Cluster) -> None:
    made = cluster.create(CONFIG_MAP, "kubeflow", config_map("a", x="1"))
    assert made["metadata"]["uid"]
    assert cluster.get(CONFIG_MAP, "kubeflow", "a") == made
    replaced = cluster.replace(CONFIG_MAP, "kubeflow", {**made, "data": {"x": "2", "y": "3"}})
    assert replaced["data"] == {"x": "2", "y": "3"}
    patched = cluster.patch(CONFIG_MAP, "kubeflow", "a", {"data": {"y": None}, "metadata": {"labels": {"app": "z"}}})
    assert patched["data"] == {"x": "2"}
    cluster.create(CONFIG_MAP, "kubeflow", config_map("b", x="1"))
    assert [item["metadata"]["name"] for item in cluster.list(CONFIG_MAP, "kubeflow")] == ["a", "b"]
    found = cluster.list(CONFIG_MAP, None, labels="app in (y, z)", fields="metadata.name=a")
    assert [item["metadata"]["name"] for item in found] == ["a"]
    assert (found[0]["apiVersion"], found[0]["kind"]) == ("v1", "ConfigMap")  # which the server's list leaves out
    assert cluster.delete(CONFIG_MAP, "kubeflow", "a")
    assert not cluster.delete(CONFIG_MAP, "kubeflow", "a")
    assert cluster.get(CONFIG_MAP, "kubeflow", "a") is None


def test_fields_that_no_model_knows_survive(cluster: Cluster) -> None:
    body = {**config_map("a"), "futureField": {"deep": [1, {"x": None}]}}
    assert cluster.create(CONFIG_MAP, "kubeflow", body)["futureField"] == {"deep": [1, {"x": None}]}


def test_deleting_by_uid_spares_another_object_of_the_same_name(cluster: Cluster) -> None:
    uid = cluster.create(CONFIG_MAP, "kubeflow", config_map("a"))["metadata"]["uid"]
    cluster.delete(CONFIG_MAP, "kubeflow", "a")
    cluster.create(CONFIG_MAP, "kubeflow", config_map("a"))
    assert not cluster.delete(CONFIG_MAP, "kubeflow", "a", uid=uid)
    assert cluster.get(CONFIG_MAP, "kubeflow", "a") is not None


def test_path_has_the_group_and_the_namespace_where_there_is_one() -> None:
    assert TRAIN_JOB.path(None) == "/apis/trainer.kubeflow.org/v1alpha1/trainjobs"
    assert POD.path("n", "x") == "/api/v1/namespaces/n/pods/x"


# Refusals.


def test_name_that_is_taken_is_an_error_of_its_own(cluster: Cluster) -> None:
    cluster.create(CONFIG_MAP, "kubeflow", config_map("a", x="1"))
    with pytest.raises(AlreadyExistsError, match="configmaps kubeflow/a"):
        cluster.create(CONFIG_MAP, "kubeflow", config_map("a", x="2"))


def test_replacing_what_has_changed_since_is_a_conflict(cluster: Cluster) -> None:
    made = cluster.create(CONFIG_MAP, "kubeflow", config_map("a", x="1"))
    cluster.patch(CONFIG_MAP, "kubeflow", "a", {"data": {"x": "2"}})
    with pytest.raises(ConflictError, match="has been modified"):
        cluster.replace(CONFIG_MAP, "kubeflow", {**made, "data": {"x": "3"}})
    assert cluster.list(CONFIG_MAP, "kubeflow")[0]["data"] == {"x": "2"}


def test_missing_right_names_verb_resource_namespace_account_and_what_grants_it(
    fake: FakeCluster, cluster: Cluster
) -> None:
    fake.deny("create", "trainjobs")
    job = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": {"name": "a"}}
    with pytest.raises(ForbiddenError) as raised:
        cluster.create(TRAIN_JOB, "kubeflow", job)
    for part in ("alice", "create trainjobs.trainer.kubeflow.org", "namespace kubeflow", "kubectl create role"):
        assert part in str(raised.value)
    assert len(fake.asked("create", "trainjobs")) == 1  # no use asking again


def test_quota_is_told_as_such_and_not_as_a_missing_right(fake: FakeCluster, cluster: Cluster) -> None:
    fake.fail_next("create", "configmaps", 403, message='configmaps "a" is forbidden: exceeded quota: small')
    with pytest.raises(ForbiddenError, match=r"admission rule of the cluster refuses it.*exceeded quota: small"):
        cluster.create(CONFIG_MAP, "kubeflow", config_map("a"))


def test_missing_object_missing_namespace_and_missing_kind_are_told_apart(fake: FakeCluster, cluster: Cluster) -> None:
    with pytest.raises(NotFoundError, match='configmaps "a" not found'):
        cluster.patch(CONFIG_MAP, "kubeflow", "a", {"data": {}})
    with pytest.raises(NotFoundError, match='namespaces "nowhere" not found'):
        cluster.create(CONFIG_MAP, "nowhere", config_map("a"))
    fake.uninstall("trainjobs")
    with pytest.raises(ClusterError, match=r"does not know trainjobs.trainer.kubeflow.org. Install what brings it"):
        cluster.get(TRAIN_JOB, "kubeflow", "a")


def test_invalid_object_is_refused_with_the_field(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match=r"invalid:.*metadata.name"):
        cluster.create(CONFIG_MAP, "kubeflow", config_map("Not_A_Name"))


def test_unknown_answer_is_passed_on(fake: FakeCluster, cluster: Cluster) -> None:
    fake.fail_next("get", "configmaps", 418, message="short and stout")
    with pytest.raises(ClusterError, match="answered 418: short and stout"):
        cluster.get(CONFIG_MAP, "kubeflow", "a")


# What passes.


def test_429_is_asked_again_when_the_server_says(fake: FakeCluster, cluster: Cluster) -> None:
    fake.fail_next("get", "configmaps", 429, headers={"Retry-After": "1"})
    started = time.monotonic()
    assert cluster.get(CONFIG_MAP, "kubeflow", "a") is None
    assert time.monotonic() - started > 0.99


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_passing_failure_is_retried_and_logged(
    fake: FakeCluster, cluster: Cluster, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    fake.fail_next("create", "configmaps", status, times=2, message="busy")
    assert cluster.create(CONFIG_MAP, "kubeflow", config_map("a", x="1"))["data"] == {"x": "1"}
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert f"answered {status}: busy; trying again in 0.0 s" in caplog.text


def test_retries_are_bounded(fake: FakeCluster, cluster: Cluster) -> None:
    fake.fail_next("get", "configmaps", 503, times=99, message="starting")
    with pytest.raises(UnavailableError, match="answered 503: starting, also when retried"):
        cluster.get(CONFIG_MAP, "kubeflow", "a")
    assert len(fake.asked("get", "configmaps")) == connection.MAX_ATTEMPTS


def test_connection_that_is_cut_before_the_write_is_tried_again(fake: FakeCluster, cluster: Cluster) -> None:
    fake.cut_next("create", "configmaps")
    assert cluster.create(CONFIG_MAP, "kubeflow", config_map("a", x="1"))["data"] == {"x": "1"}


def test_write_whose_answer_was_lost_is_repeated_and_the_caller_told_what_is_there(
    fake: FakeCluster, cluster: Cluster
) -> None:
    fake.cut_next("create", "configmaps", carried_out=True)
    with pytest.raises(AlreadyExistsError):
        cluster.create(CONFIG_MAP, "kubeflow", config_map("a", x="1"))
    made = cluster.get(CONFIG_MAP, "kubeflow", "a")
    assert made is not None
    fake.cut_next("update", "configmaps", carried_out=True)
    with pytest.raises(ConflictError):
        cluster.replace(CONFIG_MAP, "kubeflow", {**made, "data": {"x": "2"}})
    assert cluster.list(CONFIG_MAP, "kubeflow")[0]["data"] == {"x": "2"}
    fake.cut_next("delete", "configmaps", carried_out=True)
    assert not cluster.delete(CONFIG_MAP, "kubeflow", "a")
    assert cluster.get(CONFIG_MAP, "kubeflow", "a") is None


def test_server_that_is_too_slow_is_given_up_and_asked_again(
    fake: FakeCluster, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "READ_SECONDS", 0.1)
    fake.delay_next("get", "configmaps", seconds=0.5)
    assert cluster.get(CONFIG_MAP, "kubeflow", "a") is None
    assert len(fake.asked("get", "configmaps")) == 2


def test_wait_that_does_not_fit_ends_a_call_with_its_reason(fake: FakeCluster, cluster: Cluster) -> None:
    """Seen on a real API server: the 503 said why a Service does not answer, a last attempt without time for it did
    not."""
    fake.fail_next("get", "configmaps", 503, headers={"Retry-After": "60"}, message="no endpoints available")
    with pytest.raises(UnavailableError, match="no endpoints available"):
        cluster.within(20).get(CONFIG_MAP, "kubeflow", "a")
    assert len(fake.asked("get", "configmaps")) == 1


def test_call_within_seconds_ends_within_them(fake: FakeCluster, cluster: Cluster) -> None:
    fake.delay_next("delete", "configmaps", seconds=0.3, times=99)
    with pytest.raises(UnavailableError):
        cluster.within(0.25).delete(CONFIG_MAP, "kubeflow", "a")
    assert len(fake.asked("delete", "configmaps")) <= 2  # one reply alone takes longer than all of it may


def test_nobody_listening_is_told_with_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with FakeCluster() as gone:
        config = tmp_path / "config"
        config.write_text(gone.kubeconfig.read_text())
    monkeypatch.setenv("KUBECONFIG", str(config))
    with pytest.raises(UnavailableError, match=f"nobody answers at {gone.url}.*[Rr]efused"):
        Cluster.connect().list(POD, None)


# Logs.


def test_log_is_followed_through_breaks_without_losing_or_repeating_a_line(fake: FakeCluster, cluster: Cluster) -> None:
    fake.put(pod())
    fake.log("kubeflow", "worker", "node", "first", "same", "same", "")
    followed = Collected(cluster.follow_log("kubeflow", "worker", "node"))
    followed.wait_for(4)
    for number in range(6):
        wait_until(lambda: fake.num_streams("worker") == 1)
        fake.break_logs()
        fake.log("kubeflow", "worker", "node", f"line {number}", "same", seconds=0.3)
    followed.wait_for(16)
    fake.log("kubeflow", "worker", "node", "last")
    fake.put(pod(phase="Succeeded", terminated={"exitCode": 0}))
    lines = followed.join()
    assert lines == [
        *["first", "same", "same", ""],
        *[line for number in range(6) for line in (f"line {number}", "same")],
        "last",
    ]


def test_log_of_a_container_that_starts_later_is_waited_for(fake: FakeCluster, cluster: Cluster) -> None:
    fake.put(pod(phase="Pending", waiting={"reason": "ContainerCreating"}))
    followed = Collected(cluster.follow_log("kubeflow", "worker", "node"))
    wait_until(lambda: len(fake.asked("get", "pods/log")) >= 2)
    fake.put(pod())
    fake.log("kubeflow", "worker", "node", "hello")
    followed.wait_for(1)
    fake.put(pod(phase="Failed", terminated={"exitCode": 1}))
    assert followed.join() == ["hello"]


def test_log_that_is_silent_is_asked_for_anew(
    fake: FakeCluster, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "QUIET_LOG_SECONDS", 0.1)
    fake.put(pod())
    fake.log("kubeflow", "worker", "node", "one")
    followed = Collected(cluster.follow_log("kubeflow", "worker", "node"))
    wait_until(lambda: len(fake.asked("get", "pods/log")) >= 3)
    fake.log("kubeflow", "worker", "node", "two")
    followed.wait_for(2)
    fake.remove("pods", "kubeflow", "worker")
    assert followed.join() == ["one", "two"]


def test_log_that_may_not_be_read_says_so(fake: FakeCluster, cluster: Cluster) -> None:
    fake.put(pod())
    fake.deny("get", "pods/log")
    with pytest.raises(ForbiddenError, match="get pods/log"):
        list(cluster.follow_log("kubeflow", "worker", "node"))


# Credentials.


@pytest.mark.usefixtures("fake")
def test_namespace_is_the_contexts_own() -> None:
    assert Cluster.connect().namespace == "kubeflow"
    assert Cluster.connect("elsewhere").namespace == "default"
    with pytest.raises(ClusterError, match="no context 'nowhere'; expected one of: elsewhere, fake"):
        Cluster.connect("nowhere")


def test_credentials_that_ran_out_are_told_with_their_file(fake: FakeCluster) -> None:
    fake.write_kubeconfig("expired")
    with pytest.raises(ClusterError, match=f"does not accept the credentials.*context 'fake' of {fake.kubeconfig}"):
        Cluster.connect().list(POD, "kubeflow")
    assert not fake.requests


def test_missing_and_broken_kubeconfig_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(ClusterError, match=r"this is no pod, and there is no kubeconfig at .*config. Set KUBECONFIG"):
        Cluster.connect()
    for text in ("clusters: [", "kind: Config", ""):
        (tmp_path / "config").write_text(text)
        with pytest.raises(ClusterError, match="not a usable kubeconfig"):
            Cluster.connect()


def test_kubeconfig_with_a_ca_is_trusted_and_another_ca_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with FakeCluster(tls=True) as ours, FakeCluster(tls=True) as other:
        monkeypatch.setenv("KUBECONFIG", str(ours.kubeconfig))
        assert Cluster.connect().list(SECRET, "kubeflow") == []
        mixed = ours.kubeconfig.read_text().replace(ours.url, other.url)
        (tmp_path / "config").write_text(mixed)
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        with pytest.raises(ClusterError, match=f"certificate of {other.url} is not trusted"):
            Cluster.connect().list(SECRET, "kubeflow")


def test_pod_uses_its_service_account_and_reads_a_token_that_rotates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = "system:serviceaccount:kubeflow:pipeline-runner"
    with FakeCluster(tls=True) as server:
        server.accounts = {"first": account}
        monkeypatch.setattr(connection, "SERVICE_ACCOUNT_DIR", tmp_path)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        with pytest.raises(ClusterError, match=r"token: no such file.*this is a pod"):
            Cluster.connect()
        (tmp_path / "token").write_text("first\n")
        (tmp_path / "ca.crt").write_bytes(server.ca_pem)
        (tmp_path / "namespace").write_text("kubeflow")
        cluster = Cluster.connect()
        assert cluster.namespace == "kubeflow"
        assert cluster.list(POD, "kubeflow") == []
        server.accounts = {"second": account}
        with pytest.raises(ClusterError, match="this pod's service account"):
            cluster.list(POD, "kubeflow")
        (tmp_path / "token").write_text("second\n")
        assert cluster.list(POD, "kubeflow") == []
        assert {request.user for request in server.requests} == {account}
