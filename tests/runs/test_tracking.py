"""Stages in MLflow: a real client writes into MLflow's own store of files."""

import os
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from reasongenrm.config import SelectConfig
from reasongenrm.errors import InputError
from reasongenrm.runs import tracking
from reasongenrm.runs.task import Task
from reasongenrm.runs.tracking import TrackedRun
from reasongenrm.store.artifacts import ArtifactRef, Store
from reasongenrm.store.stage import Stage

URIS = {"preferences_uri": "p", "benchmark_uri": "b", "model_uri": "m", "teacher_uri": "t"}


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """MLflow whose store is a folder, as the environment names it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # it is in maintenance mode; a server needs a database
    for name in (tracking.RUN_ID, tracking.EXPERIMENT, tracking.EXPERIMENT_ID):
        monkeypatch.delenv(name, raising=False)
    return MlflowClient()


def runs_of(client: MlflowClient, experiment: str = "reasongenrm") -> dict[str, Run]:
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return {run.info.run_name: run for run in found}


def make(store: Store) -> ArtifactRef:
    with Stage(store, "toy", SelectConfig(min_score=0.5), {}) as stage:
        stage.add_bytes("report.html", b"<p>good</p>")
        stage.add_bytes("rows.jsonl", b"{}")
        return stage.finish({"num_in": 3, "num_out": 2}, {"accuracy": 0.75, "winner": "dpo"})


def run_task(store: Store, output: Path, error: BaseException | None = None) -> None:
    output.parent.mkdir(exist_ok=True)
    with Task("toy (dpo)", str(output)) as task:
        task.begin(store.uri, {}, **URIS)
        task.publish(make(task.store))
        if error:
            raise error


def test_a_stage_logs_settings_figures_and_report(client: MlflowClient, store: Store, tmp_path: Path) -> None:
    run_task(store, tmp_path / "task" / "output")
    [(name, run)] = runs_of(client).items()
    assert (name, run.info.status) == ("toy (dpo)", "FINISHED")
    assert run.data.metrics == {"num_in": 3, "num_out": 2, "accuracy": 0.75}
    assert run.data.params.pop("artifact").startswith(f"{store.uri}/toy/")
    assert run.data.params == {"config.formula": "signed", "config.min_score": "0.5"}
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]
    assert tracking.RUN_ID not in os.environ


def test_stages_are_children_of_the_run_that_kfps_plugin_made(
    client: MlflowClient, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = client.create_experiment("team")
    task_run = client.create_run(experiment, run_name="evaluate-rewardbench").info.run_id
    monkeypatch.setenv(tracking.RUN_ID, task_run)
    run_task(store, tmp_path / "task" / "output")
    assert runs_of(client, "team")["toy (dpo)"].data.tags["mlflow.parentRunId"] == task_run
    assert client.get_run(task_run).info.status == "RUNNING"  # the launcher ends it
    assert os.environ[tracking.RUN_ID] == task_run


@pytest.mark.parametrize(
    ("error", "status"),
    [(InputError("no such row"), "FAILED"), (SystemExit(143), "KILLED"), (KeyboardInterrupt(), "KILLED")],
)
def test_how_a_stage_ended_is_said(
    client: MlflowClient, store: Store, tmp_path: Path, error: BaseException, status: str
) -> None:
    with pytest.raises(SystemExit):
        run_task(store, tmp_path / "task" / "output", error)
    assert runs_of(client)["toy (dpo)"].info.status == status


def test_the_experiment_is_the_one_that_the_environment_names(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tracked(name: str) -> None:
        run = TrackedRun()
        run.start(name)
        run.end("FINISHED")

    monkeypatch.setenv(tracking.EXPERIMENT, "mine")
    tracked("first")
    tracked("second")
    assert set(runs_of(client, "mine")) == {"first", "second"}
    monkeypatch.setenv(tracking.EXPERIMENT_ID, client.create_experiment("by-id"))
    tracked("third")
    assert set(runs_of(client, "by-id")) == {"third"}


def test_a_server_that_is_away_is_said_once_and_the_stage_goes_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run_task(store, tmp_path / "task" / "output")
    said = [record.getMessage() for record in caplog.records if record.name == tracking.__name__]
    assert len(said) == 1
    assert said[0].startswith("MLflow (MLFLOW_TRACKING_URI) is left out from here on: ")
    assert tracking.RUN_ID not in os.environ


def test_without_mlflow_the_variable_is_said_and_nothing_else_happens(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    missing: Any = ["mlflow-skinny is missing"]
    monkeypatch.setattr(tracking, "missing_packages", lambda _extra: missing)
    run_task(store, tmp_path / "task" / "output")
    [said] = [record.getMessage() for record in caplog.records if record.name == tracking.__name__]
    assert "pip install 'reasongenrm[mlflow]'" in said
