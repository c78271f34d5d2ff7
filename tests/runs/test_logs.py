"""Logs of a cluster run's tasks: of their pods, archived, followed, through the API or the UI, and not there."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reasongenrm.cli import app
from reasongenrm.config import RunConfig
from reasongenrm.kubernetes import connection
from reasongenrm.pipelines.compile import PIPELINE_NAME, compile_pipeline
from reasongenrm.runs import kfp
from reasongenrm.runs.kfp import PipelineServer
from reasongenrm.runs.submit import arguments_of
from reasongenrm.store.run_records import RunInputs
from tests.kube.fake_api import FakeCluster
from tests.kube.fake_kfp import FakeKfp, FakeRun

INPUTS = RunInputs(preferences_uri="a/p", benchmark_uri="a/b", model_uri="a/m", teacher_uri="a/t")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(kfp.TOKEN_ENV, raising=False)
    monkeypatch.setenv(kfp.TOKEN_PATH_ENV, str(tmp_path / "token"))
    monkeypatch.setattr(kfp, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(connection, "FIRST_WAIT_SECONDS", 0.01)
    # What a command says without Kubernetes in reach; the tests that need it set it again.
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


@pytest.fixture(scope="module", params=["stock retries", "no retries", "UI"])
def server(request: pytest.FixtureRequest) -> Iterator[FakeKfp]:
    """KFP with its own Argo configuration, with one that retries nothing, and behind its UI."""
    with FakeKfp(ui=request.param == "UI", stock_retries=request.param != "no retries").running() as fake:
        yield fake


@pytest.fixture
def run(server: FakeKfp) -> FakeRun:
    """A run of the pipeline, the only one of this server."""
    server.runs.clear()
    server.on_get = lambda _run: None
    compiled = compile_pipeline()
    client = PipelineServer.connect(server.url)
    version = client.ensure_version(PIPELINE_NAME, compiled.version_name, compiled.ir)
    return server.runs[client.start(version, "judges", "the-run", arguments_of(RunConfig(), INPUTS, "s3://b"))]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """The cluster of the runs, seen with a kubeconfig whose namespace is not theirs."""
    with FakeCluster() as fake:
        fake.write_kubeconfig("laptop-token", namespace="reasongenrm")
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig))
        yield fake


def logs(server: FakeKfp, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["logs", "the-run", *arguments, "--host", server.url], env={"COLUMNS": "200"})


def test_log_of_a_running_task_is_printed_as_it_is_now(server: FakeKfp, run: FakeRun) -> None:
    run.set("train-sft", "Running", "step 1\n")
    assert logs(server).stdout == "step 1\n"


def test_log_of_a_task_below_a_condition_is_found(server: FakeKfp, run: FakeRun) -> None:
    run.set("deploy-kserve", "Running", "waiting for the predictor\n")
    assert logs(server, "deploy_kserve").stdout == "waiting for the predictor\n"


def test_log_of_an_ended_task_comes_from_the_archive_when_its_pods_are_gone(server: FakeKfp, run: FakeRun) -> None:
    run.set("prepare-pairs", "Succeeded", "imported\n")
    run.set("train-sft", "Succeeded", "trained\n")
    run.pods_are_gone = True
    assert logs(server, "prepare_pairs").stdout == "imported\n"


def test_log_of_a_retried_task_has_all_its_tries(server: FakeKfp, run: FakeRun) -> None:
    run.set("train-sft", "Running", "step 1\n")
    run.set("train-sft", "Running", "step 2\n", tries=2)
    assert len(run.workflow.pods("train-sft")) == 2
    assert logs(server, "train-sft").stdout == "step 1\nstep 2\n"


def test_log_of_a_task_whose_driver_failed_is_the_drivers(server: FakeKfp, run: FakeRun) -> None:
    run.workflow.fail_driver("train-sft", "main: Error (exit code 1)")
    driver = next(node for node in run.workflow.nodes.values() if node["type"] == "Pod" and node["phase"] == "Failed")
    run.logs[run.workflow.pod_name(driver)] = "failed to make podSpecPatch\n"
    run.report()
    assert logs(server).stdout == "failed to make podSpecPatch\n"


def test_log_is_found_when_argo_has_compressed_the_nodes(server: FakeKfp, run: FakeRun) -> None:
    run.workflow.node_bytes = 400_000
    run.set("train-sft", "Running", "step 1\n")
    assert "compressedNodes" in run.manifests["workflow_manifest"]
    assert logs(server).stdout == "step 1\n"


def test_task_without_a_log_says_how_it_stands(server: FakeKfp, run: FakeRun) -> None:
    run.set("prepare-pairs", "Pending", message="Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.")
    waiting = logs(server, "prepare_pairs")
    assert waiting.exit_code == 7
    assert "no log of prepare_pairs, it is pending: its pods are gone or have not started" in waiting.stderr
    later = logs(server, "train_dpo")
    assert later.exit_code == 7
    assert "train_dpo has no log: it is pending." in later.stderr
    run.workflow.node_bytes = 400_000  # nodes so large are compressed, and then KFP does not find what is archived
    run.set("train-sft", "Failed", "error: the loss is NaN.\n")
    run.pods_are_gone = True
    gone = logs(server, "train-sft")
    assert gone.exit_code == 7
    assert "no log of train_sft (genrm), it is failed: its pods are gone" in gone.stderr
    assert "archiveLogs" in gone.stderr


# Followed.


def pods(cluster: FakeCluster, run: FakeRun, task: str, *phases: str) -> None:
    """Let Kubernetes have the pods of a task, in these phases, oldest first."""
    for name, phase in zip(run.workflow.pods(task), phases, strict=True):
        ended = {"containerStatuses": [{"name": "main", "state": {"terminated": {"exitCode": 0}}}]}
        status = {"phase": phase, **(ended if phase in ("Succeeded", "Failed") else {})}
        cluster.put({**run.workflow.pod(name), "status": status})


def test_log_is_followed_to_the_end_of_the_task_over_its_tries(
    server: FakeKfp, run: FakeRun, cluster: FakeCluster
) -> None:
    run.set("train-sft", "Running")
    (first,) = run.workflow.pods("train-sft")
    pods(cluster, run, "train-sft", "Running")
    cluster.log("kubeflow", first, "main", "step 1")

    def goes_on() -> None:
        cluster.log("kubeflow", first, "main", "node is gone")
        pods(cluster, run, "train-sft", "Failed")
        run.set("train-sft", "Running", tries=2)
        pods(cluster, run, "train-sft", "Failed", "Running")
        cluster.log("kubeflow", run.workflow.pods("train-sft")[1], "main", "step 2")
        pods(cluster, run, "train-sft", "Failed", "Succeeded")
        run.set("train-sft", "Succeeded", tries=2)

    writer = threading.Timer(0.3, goes_on)
    writer.start()
    result = logs(server, "train-sft", "--follow")
    writer.join()
    assert result.stdout == "step 1\nnode is gone\nstep 2\n", result.output


def test_following_needs_a_cluster_and_an_ended_task_does_not(server: FakeKfp, run: FakeRun) -> None:
    run.set("prepare-pairs", "Succeeded", "imported\n")
    assert logs(server, "--follow").stdout == "imported\n"
    run.set("train-sft", "Running")
    result = logs(server, "--follow")
    assert result.exit_code == 7
    assert "/nowhere" in result.stderr


def test_pods_are_followed_in_the_namespace_that_is_given(server: FakeKfp, run: FakeRun, cluster: FakeCluster) -> None:
    run.set("train-sft", "Running")
    (pod,) = run.workflow.pods("train-sft")
    run.workflow.namespace = "default"
    pods(cluster, run, "train-sft", "Succeeded")
    cluster.log("default", pod, "main", "step 1")
    server.on_get = lambda run: run.set("train-sft", "Succeeded") if cluster.asked("get", "pods") else None
    assert logs(server, "--follow", "--namespace", "default").stdout == "step 1\n"


def test_run_whose_nodes_argo_keeps_in_a_database_says_so(server: FakeKfp, run: FakeRun) -> None:
    run.set("train-sft", "Running", "step 1\n")
    run.workflow.is_offloaded = True
    run.report()
    result = logs(server)
    assert result.exit_code == 7
    assert "offloadNodeStatusVersion" in result.stderr
