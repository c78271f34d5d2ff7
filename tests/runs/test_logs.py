"""Logs of a cluster run's tasks: archived, from pods, followed, and not there."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reasongenrm.cli import app
from reasongenrm.config import RunConfig
from reasongenrm.kubernetes.cluster import Cluster
from reasongenrm.kubernetes.connection import NotFoundError
from reasongenrm.pipelines.compile import PIPELINE_NAME, compile_pipeline
from reasongenrm.runs import kfp
from reasongenrm.runs.kfp import PipelineServer
from reasongenrm.runs.logs import NODE_NAME, RUN_LABEL, task_log, task_of, task_pods
from reasongenrm.runs.submit import arguments_of
from reasongenrm.store.run_records import RunInputs
from tests.kube.fake_api import FakeCluster
from tests.kube.fake_kfp import FakeKfp, FakeRun

INPUTS = RunInputs(preferences_uri="a/p", benchmark_uri="a/b", model_uri="a/m", teacher_uri="a/t")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(kfp.TOKEN_ENV, raising=False)
    monkeypatch.setenv(kfp.TOKEN_PATH_ENV, str(tmp_path / "token"))


@pytest.fixture(scope="module")
def server() -> Iterator[FakeKfp]:
    with FakeKfp().running() as fake:
        yield fake


@pytest.fixture
def run(server: FakeKfp) -> FakeRun:
    """A run of the pipeline, the only one of this server."""
    server.runs.clear()
    compiled = compile_pipeline()
    client = PipelineServer.connect(server.url)
    version = client.ensure_version(PIPELINE_NAME, compiled.version_name, compiled.ir)
    return server.runs[client.start(version, "judges", "the-run", arguments_of(RunConfig(), INPUTS, "s3://b"))]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    with FakeCluster() as fake:
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig))
        yield fake


def pod(run_id: str, name: str, node: str, phase: str = "Running") -> dict[str, Any]:
    """A pod as Argo makes it for a node of a KFP workflow."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "kubeflow",
            "labels": {RUN_LABEL: run_id},
            "annotations": {NODE_NAME: node},
        },
        "spec": {"containers": [{"name": "main", "image": "i:1"}]},
        "status": {"phase": phase},
    }


def ended(fake: FakeCluster, name: str) -> None:
    """Let a pod's container end."""
    state = {"name": "main", "state": {"terminated": {"exitCode": 0}}}
    fake.set_status("pods", "kubeflow", name, {"phase": "Succeeded", "containerStatuses": [state]})


@pytest.mark.parametrize(
    ("node", "task"),
    [
        ("wf-x.root.train-sft-2.executor", "train-sft-2"),
        ("wf-x.root.train-sft-2.executor(1)", "train-sft-2"),
        ("wf-x.root.condition-1.deploy-kserve.executor", "deploy-kserve"),
        ("wf-x.root.train-sft-2-driver", None),
        ("wf-x.root-driver", None),
        ("", None),
    ],
)
def test_pod_belongs_to_the_task_that_it_works_for(node: str, task: str | None) -> None:
    assert task_of(pod("r", "p", node)) == task


def test_pods_of_other_tasks_other_runs_and_drivers_are_left_out(cluster: FakeCluster) -> None:
    cluster.put(pod("r1", "wf-impl-2", "wf.root.train-sft.executor(1)"))
    cluster.put(pod("r1", "wf-impl-1", "wf.root.train-sft.executor(0)"))
    cluster.put(pod("r1", "wf-driver", "wf.root.train-sft-driver"))
    cluster.put(pod("r1", "wf-other", "wf.root.train-sft-2.executor"))
    cluster.put(pod("r2", "wf-elsewhere", "wf.root.train-sft.executor"))
    found = [found["metadata"]["name"] for found in task_pods(Cluster.connect(), "r1", "train-sft")]
    assert sorted(found) == ["wf-impl-1", "wf-impl-2"]


def test_log_of_a_running_task_is_followed_to_its_end(server: FakeKfp, run: FakeRun, cluster: FakeCluster) -> None:
    run.set("train-sft", "RUNNING")
    cluster.put(pod(run.run_id, "wf-impl", "wf.root.train-sft.executor"))
    cluster.log("kubeflow", "wf-impl", "main", "step 1")

    def goes_on() -> None:
        cluster.log("kubeflow", "wf-impl", "main", "step 2")
        ended(cluster, "wf-impl")

    writer = threading.Timer(0.3, goes_on)
    writer.start()
    arguments = ["logs", "the-run", "train-sft", "--follow", "--host", server.url]
    result = CliRunner().invoke(app, arguments)
    writer.join()
    assert result.stdout == "step 1\nstep 2\n", result.output


def test_log_of_a_running_task_is_printed_as_it_is_now(server: FakeKfp, run: FakeRun, cluster: FakeCluster) -> None:
    run.set("train-sft", "RUNNING")
    run.logs["wf-impl"] = "step 1\n"  # KFP reads the pod's log itself
    cluster.put(pod(run.run_id, "wf-impl", "wf.root.train-sft.executor"))
    assert CliRunner().invoke(app, ["logs", "the-run", "--host", server.url]).stdout == "step 1\n"


def test_ended_task_without_an_archived_log_is_looked_for_among_the_pods(
    server: FakeKfp, run: FakeRun, cluster: FakeCluster
) -> None:
    run.set("train-sft", "FAILED")
    client = PipelineServer.connect(server.url)
    found = client.run(run.run_id)
    task = next(task for task in found.tasks if task.key == "train-sft")
    with pytest.raises(
        NotFoundError, match=r"no log of train_sft \(genrm\): it has no pod in namespace kubeflow.*archiveLogs"
    ):
        list(task_log(client, Cluster.connect, found, task))
    run.logs["wf-impl"] = "error: the loss is NaN.\n"
    cluster.put(pod(run.run_id, "wf-impl", "wf.root.train-sft.executor", phase="Failed"))
    assert list(task_log(client, Cluster.connect, found, task)) == ["error: the loss is NaN."]


def test_archived_log_needs_no_cluster(server: FakeKfp, run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    run.set("import-model", "SUCCEEDED", "imported\n")
    assert CliRunner().invoke(app, ["logs", "the-run", "--host", server.url]).stdout == "imported\n"


def test_cluster_that_is_not_configured_is_told(server: FakeKfp, run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    run.set("import-model", "RUNNING")
    result = CliRunner().invoke(app, ["logs", "the-run", "--host", server.url])
    assert result.exit_code == 7
    assert "/nowhere" in result.stderr
