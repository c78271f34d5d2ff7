"""submit, runs --host, logs and cancel, against a server that speaks HTTP."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from reasongenrm.cli import app
from reasongenrm.runs import kfp
from tests.judges import row, write_rows
from tests.kube.fake_kfp import FakeKfp, FakeRun

FORWARD = "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
GIVEN = (
    "--preferences",
    "org/pairs",
    "--benchmark",
    "org/bench",
    "--model",
    "org/model",
    "--store",
    "s3://bucket/runs",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (kfp.TOKEN_ENV, kfp.COOKIE_ENV, kfp.HOST_ENV, kfp.UI_ENV):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(kfp.TOKEN_PATH_ENV, str(tmp_path / "token"))
    monkeypatch.setattr(kfp, "POLL_SECONDS", 0.01)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeKfp]:
    with FakeKfp().running() as fake:
        yield fake


def invoke(server: FakeKfp, *arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments, "--host", server.url], env={"COLUMNS": "200", "TERM": "dumb"})


def submitted(server: FakeKfp, name: str, *arguments: str) -> FakeRun:
    result = invoke(server, "submit", *GIVEN, "--name", name, "--json", *arguments)
    assert result.exit_code == 0, result.output
    return server.runs[json.loads(result.stdout)["run_id"]]


def asked(run: FakeRun) -> dict[str, Any]:
    found: dict[str, Any] = run.body["runtime_config"]["parameters"]
    return found


@pytest.fixture(scope="module")
def run(server: FakeKfp) -> FakeRun:
    """A run that was submitted with options of every kind."""
    changes = ("sft.learning_rate=1e-4", "resources.num_accelerators=2", "resources.vllm_image=registry/judge:7")
    options = [text for change in changes for text in ("--set", change)]
    return submitted(server, "the-run", *options, "--limit", "48", "--registry", "mirror.example/us/")


def test_options_become_the_runs_arguments(server: FakeKfp, run: FakeRun) -> None:
    arguments = asked(run)
    sections = {"sft": {"learning_rate": 1e-4}, "pairs": {"limit": 48}, "evaluate": {"limit": 48}}
    assert arguments["config"] == sections
    assert arguments["teacher_uri"] == "org/model"
    assert next(iter(server.experiments.values()))["display_name"] == "reasongenrm"


def test_submit_says_the_runs_name_and_page(server: FakeKfp) -> None:
    result = invoke(server, "submit", *GIVEN, "--name", "said")
    run = list(server.runs.values())[-1]
    page = f"http://127.0.0.1:8080/#/runs/details/{run.run_id}"
    assert result.stdout == f"run said has started: {page} after `{FORWARD}`\n"
    assert f"run id {run.run_id}" in result.stderr


def test_config_file_may_hold_everything_and_options_go_over_it(server: FakeKfp, tmp_path: Path) -> None:
    inputs = {"preferences": "a/p", "benchmark": "a/b", "model": "a/m", "teacher": "http://t/v1"}
    config = {"inputs": inputs, "resources": {"num_train_accelerators": 8, "tolerations": [{"operator": "Exists"}]}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    result = invoke(server, "submit", "--config", str(path), "--store", "s3://b", "--model", "b/m", "--json")
    arguments = asked(server.runs[json.loads(result.stdout)["run_id"]])
    assert (arguments["preferences_uri"], arguments["model_uri"], arguments["teacher_uri"]) == (
        "a/p",
        "b/m",
        "http://t/v1",
    )
    version = [*server.versions.values()][-1]  # resources are part of the pipeline, so this one is another
    executor = version["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]["exec-train-dpo"]
    assert executor["container"]["resources"]["accelerator"]["resourceCount"] == "8"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (
            [*GIVEN, "--set", "resources.num_acelerators=2"],
            2,
            "unknown key 'resources.num_acelerators'; did you mean 'num_accelerators'?",
        ),
        ([*GIVEN, "--set", "resources.memory=8GiB"], 2, "'resources.memory' is '8GiB'"),
        (
            [*GIVEN, "--set", "resources.cpu_image=registry:5000/x:latest"],
            2,
            "'resources.cpu_image' is 'registry:5000/x:latest': value error, expected an image with a tag or digest",
        ),
        ([*GIVEN, "--set", "resources.cpu_image=registry:5000/x"], 2, "expected an image with a tag or digest"),
        ([*GIVEN, "--as-job", "--wait"], 2, "--as-job starts nothing"),
        (
            ["--store", "s3://b", "--model", "a/m"],
            2,
            "the run has no preferences, benchmark. Give --preferences, --benchmark",
        ),
        (["--store", ".reasongenrm", *GIVEN[:-2]], 2, "a pod cannot reach a folder of this machine"),
    ],
)
def test_mistake_is_named_before_the_server_is_asked(
    server: FakeKfp, arguments: list[str], exit_code: int, message: str
) -> None:
    before = len(server.seen)
    result = invoke(server, "submit", *arguments)
    assert result.exit_code == exit_code
    assert message in result.stderr.replace("\n", " ")
    assert len(server.seen) == before


def test_local_file_needs_upload(server: FakeKfp, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [row("own", 1)])
    result = invoke(server, "submit", *GIVEN, "--benchmark", rows)
    assert result.exit_code == 2
    assert "a local path, which a pod cannot see" in result.stderr


def test_server_that_is_not_there_is_a_cluster_error() -> None:
    result = CliRunner().invoke(app, ["submit", *GIVEN, "--host", "http://127.0.0.1:9"])
    assert result.exit_code == 7
    assert "port-forward" in result.stderr


# To the end.


def moves(server: FakeKfp, *steps: Any) -> None:
    """Have every look at a run take one step."""
    left = list(steps)

    def step(run: FakeRun) -> None:
        if left:
            left.pop(0)(run)

    server.on_get = step


def ends(phase: str) -> Any:
    return lambda run: run.end(phase)


def test_wait_tells_each_change_and_succeeds_with_the_run(server: FakeKfp) -> None:
    moves(
        server,
        lambda run: run.set("prepare-pairs", "Pending", message="Unschedulable: no room"),
        lambda run: run.set("prepare-pairs", "Running"),
        lambda run: run.set("prepare-pairs", "Succeeded"),
        ends("Succeeded"),
    )
    result = invoke(server, "submit", *GIVEN, "--name", "good", "--wait")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("prepare_pairs")]
    assert lines[0].startswith("prepare_pairs: running")
    assert lines[1] == "prepare_pairs: succeeded 1:30 min"
    assert "run good succeeded in 1:30 min" in result.stderr


def test_wait_fails_with_the_task_that_failed_and_what_it_said(server: FakeKfp) -> None:
    log = "reasongenrm task started: select_reasons\nerror: every reason was dropped; lower select.min_score.\n"
    moves(server, lambda run: run.set("select-reasons", "Failed", log), ends("Failed"))
    result = invoke(server, "submit", *GIVEN, "--name", "bad", "--wait")
    assert result.exit_code == 1
    assert (
        "run bad failed in select_reasons: every reason was dropped; lower select.min_score. See `reasongenrm logs bad "
        '"select_reasons"`; finished work is kept' in result.stderr
    )


def test_wait_says_what_argo_says_of_a_task_without_a_log(server: FakeKfp) -> None:
    moves(server, lambda run: run.set("select-reasons", "Error", message="pod deleted"), ends("Error"))
    result = invoke(server, "submit", *GIVEN, "--name", "lost", "--wait")
    assert result.exit_code == 1
    assert "run lost failed in select_reasons: pod deleted. See `reasongenrm logs lost" in result.stderr


def test_wait_for_a_run_that_is_cancelled_ends_like_ctrl_c(server: FakeKfp) -> None:
    moves(
        server,
        lambda run: run.set("prepare-pairs", "Running"),
        lambda run: server.cancel(run),
        lambda run: run.stop(),
    )
    result = invoke(server, "submit", *GIVEN, "--name", "stopped", "--wait")
    assert result.exit_code == 130
    assert "run stopped was cancelled; what is finished is kept" in result.stderr
    assert "prepare_pairs: canceled" in result.stderr
    assert "train_dpo: skipped" in result.stderr
    assert "failed" not in result.stderr


def test_wait_goes_on_by_the_runs_state_where_its_tasks_cannot_be_read(server: FakeKfp) -> None:
    def offload(run: FakeRun) -> None:
        run.workflow.is_offloaded = True
        run.start()

    moves(server, offload, ends("Failed"))
    result = invoke(server, "submit", *GIVEN, "--name", "offloaded", "--wait")
    assert result.exit_code == 1
    assert "run offloaded failed: Argo keeps the nodes of this run in a database of its own" in result.stderr
    assert "Its page: http://127.0.0.1:8080/#/runs/details/" in result.stderr


# Looking and stopping.


def test_runs_of_the_cluster_are_listed_and_one_is_shown(server: FakeKfp, run: FakeRun) -> None:
    server.on_get = lambda _run: None
    run.set("prepare-pairs", "Succeeded")
    run.set("distill-reasons", "Pending", message="Unschedulable: no room")
    listed = invoke(server, "runs").stdout.splitlines()
    (line,) = [line for line in listed if line.startswith("the-run")]
    assert line.split()[1:4] == ["running", "2026-11-24", "10:00"]
    assert line.split()[-3:] == ["pairs", "bench", "model"]
    shown = invoke(server, "runs", "--run", "the-run").stdout
    assert "prepare_pairs" in shown
    assert "Unschedulable: no room" in shown
    assert f"http://127.0.0.1:8080/#/runs/details/{run.run_id} after `{FORWARD}`" in shown
    found = json.loads(invoke(server, "runs", "--run", run.run_id, "--json").stdout)[0]
    assert found["state"] == "running"
    assert found["tasks"][0]["name"] == "prepare_pairs"
    assert found["tasks"][0]["ended_at"].startswith("2026-11-24T10:01:30")
    assert found["link"] is None
    unknown = invoke(server, "runs", "--run", "nope")
    assert unknown.exit_code == 7
    assert "no run 'nope'" in unknown.stderr


def test_task_is_chosen_by_its_name_or_its_key(server: FakeKfp) -> None:
    server.on_get = lambda _run: None
    run = submitted(server, "chosen")
    run.set("prepare-pairs", "Succeeded", "one [bold]line[/bold]\nanother\n")
    for task in ("prepare_pairs", "prepare-pairs"):
        assert invoke(server, "logs", "chosen", task).stdout == "one [bold]line[/bold]\nanother\n"
    assert invoke(server, "logs", "chosen").stdout.startswith("one [bold]line")  # the only one that has started
    unknown = invoke(server, "logs", "chosen", "train")
    assert unknown.exit_code == 2
    assert '"train_sft (sft)"' in unknown.stderr


def test_cancel_says_what_is_kept_and_an_ended_run_is_left_alone(server: FakeKfp, run: FakeRun) -> None:
    server.on_get = lambda _run: None
    run.set("train-sft", "Running")
    result = invoke(server, "cancel", "the-run")
    assert result.exit_code == 0
    assert run.state == "CANCELING"
    assert "train_sft (genrm) was running" in result.stderr
    assert "finished is kept in the store" in result.stderr
    twice = invoke(server, "cancel", "the-run")
    assert twice.exit_code == 0
    assert "is being cancelled already" in twice.stderr
    run.stop()
    again = invoke(server, "cancel", "the-run")
    assert again.exit_code == 0
    assert "has ended already: canceled" in again.stderr


def test_job_is_printed_for_kubectl_and_nothing_is_started(server: FakeKfp) -> None:
    before = len(server.seen)
    arguments = ["submit", *GIVEN, "--as-job", "--name", "later", "-n", "team-a"]
    arguments += ["--set", "resources.cpu_image=registry/cpu:3"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "run.yaml: |\n" in result.stdout  # a block that people can read
    config_map, job = yaml.safe_load_all(result.stdout)
    assert job["metadata"] == {**config_map["metadata"], "name": "submit-later", "namespace": "team-a"}
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry/cpu:3"
    assert "--host=http://ml-pipeline.kubeflow:8888" in container["args"]  # KFP is not in the profile
    assert yaml.safe_load(config_map["data"]["run.yaml"])["resources"]["cpu_image"] == "registry/cpu:3"
    assert len(server.seen) == before


def test_job_gets_the_address_of_the_ui_for_the_link_that_it_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    def environment() -> list[dict[str, str]]:
        result = CliRunner().invoke(app, ["submit", *GIVEN, "--as-job", "--name", "later"])
        _, job = yaml.safe_load_all(result.stdout)
        found: list[dict[str, str]] = job["spec"]["template"]["spec"]["containers"][0]["env"]
        return found

    assert [variable["name"] for variable in environment()] == ["HOME"]
    monkeypatch.setenv(kfp.UI_ENV, "https://kfp.example")
    assert environment()[1:] == [{"name": "KF_PIPELINES_UI_ENDPOINT", "value": "https://kfp.example"}]
