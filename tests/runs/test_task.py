"""A pipeline task round a stage: what it reads and publishes, what it leaves when it fails, how it stops."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.config import SelectConfig
from reasongenrm.errors import StoreError
from reasongenrm.runs.references import read_reference, read_settings
from reasongenrm.runs.task import Task
from reasongenrm.store.artifacts import ArtifactRef, Store
from reasongenrm.store.stage import Stage
from tests.waiting import HANG_SECONDS

URIS = {"preferences_uri": "p", "benchmark_uri": "b", "model_uri": "m", "teacher_uri": "t"}


class Artifact:
    """A KFP artifact as a task sees it: a local file, and numbers for the UI."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.logged: dict[str, float] = {}

    def log_metric(self, metric: str, value: float) -> None:
        self.logged[metric] = value


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "the-task").mkdir()
    return tmp_path / "the-task" / "output"


def outcome(output: Path, name: str = "toy") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.with_name(f"{name}.outcome.json").read_text())
    return found


def make(store: Store) -> ArtifactRef:
    """A small stage: one file, two counts, three metrics of which one is no number."""
    with Stage(store, "toy", SelectConfig(), {}) as stage:
        if stage.done:
            return stage.done
        stage.add_bytes("page.md", b"# hello")
        return stage.finish({"num_in": 3, "num_out": 2}, {"accuracy": 0.75, "passed": True, "winner": "dpo"})


def begin(store: Store, output: Path, **config: Any) -> str:
    """The first task of a run; returns the address that it publishes."""
    with Task("toy", str(output)) as task:
        task.begin(store.uri, config, **URIS)
        return task.publish(make(task.store))


def test_task_publishes_a_short_address_of_its_artifact_and_its_run(store: Store, output: Path) -> None:
    metrics = Artifact(output.with_name("metrics"))
    with Task("toy", str(output)) as task:
        assert outcome(output)["state"] == "running"
        task.begin(store.uri, {"pairs": {"limit": 4.0}}, **URIS)  # KFP made a float of it
        ref = make(task.store)
        address = task.publish(ref, metrics, "sft_")
    assert output.read_text() == address
    assert address.startswith(f"{store.uri}/refs/")
    assert len(address) == len(store.uri) + len("/refs/") + 16
    found = read_reference(address)
    assert found.artifact == ref
    settings = read_settings(found.settings_uri)
    assert (settings.store_uri, settings.inputs.model_dump()) == (store.uri, URIS)
    assert settings.stages.pairs.limit == 4
    assert metrics.logged == {"sft_accuracy": 0.75, "sft_passed": 1.0}
    assert outcome(output) | {"seconds": 0} == {
        "task": "toy",
        "state": "done",
        "seconds": 0,
        "reused": False,
        "ref": ref.model_dump(mode="json"),
        "error": None,
        "exit_code": 0,
    }


def test_next_task_has_the_artifact_and_the_settings_of_the_run(store: Store, output: Path) -> None:
    address = begin(store, output, sft={"learning_rate": 0.5})
    with Task("next (sft)", str(output), model=address) as task:
        assert task.inputs == {"model": make(store)}
        assert (task.store.uri, task.config.sft.learning_rate, task.uris.teacher_uri) == (store.uri, 0.5, "t")
    assert outcome(output, "next-sft")["state"] == "done"
    assert outcome(output)["state"] == "done"  # that of the first stage stays next to it


def test_second_run_of_a_stage_says_that_it_reused_the_artifact(store: Store, output: Path) -> None:
    for reused in (False, True):
        begin(store, output)
        assert outcome(output)["reused"] == reused


def test_stage_with_nothing_to_do_says_why(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Task("toy", str(output)) as task:
        task.skip("nobody asked")
    assert output.read_text() == "nobody asked"
    assert "toy: nobody asked" in capsys.readouterr().out
    assert (outcome(output)["state"], outcome(output)["ref"]) == ("done", None)


def test_inputs_of_two_runs_are_refused(store: Store, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = begin(store, output), begin(store, output, gate={"min_accuracy_low": 0.9})
    with pytest.raises(SystemExit) as ended, Task("next", str(output), model=one, examples=other):
        pass
    assert ended.value.code == 2
    assert "expected inputs of one run" in capsys.readouterr().err
    assert outcome(output, "next")["state"] == "failed"


@pytest.mark.parametrize("wrong", ["the gate did not pass, so nothing is deployed", "s3://{bucket}/refs/0123"])
def test_input_that_is_no_reference_is_an_error_of_its_own(
    store: Store, output: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    address = wrong.format(bucket=store.bucket)
    with pytest.raises(SystemExit) as ended, Task("next", str(output), model=address):
        pass
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert address in err
    assert "Traceback" not in err


def test_mistake_in_the_settings_is_an_error_before_any_work(
    store: Store, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for values, said in (
        ({"sft": {"learning_rat": 1.0}}, "did you mean 'learning_rate'?"),
        ({"resources": {"cpu": "2"}}, "resources are compiled into the pipeline"),
    ):
        with pytest.raises(SystemExit) as ended:
            begin(store, output, **values)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_task_ends_with_the_words_and_the_exit_code_of_its_error(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, Task("toy", str(output)):
        raise StoreError("the disk is full; free some")
    assert ended.value.code == StoreError.exit_code == 3
    assert capsys.readouterr().err == "error: the disk is full; free some\n"
    left = outcome(output)
    assert (left["state"], left["error"], left["exit_code"]) == ("failed", "the disk is full; free some", 3)


def test_defect_keeps_its_traceback(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), Task("toy", str(output)):
        raise KeyError("lost")
    assert "Traceback" in capsys.readouterr().err
    left = outcome(output)
    assert (left["state"], left["error"], left["exit_code"]) == ("failed", "KeyError: 'lost'", 70)


def test_sigterm_unwinds_the_task(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import pathlib, sys, time
        from reasongenrm.runs.task import Task

        with Task("toy", sys.argv[1]):
            try:
                print("working", flush=True)
                time.sleep(60)
            finally:
                pathlib.Path(sys.argv[1]).with_name("cleaned").touch()
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "output")], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stdout
    assert [process.stdout.readline() for _ in range(2)] == ["reasongenrm task started: toy\n", "working\n"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG_SECONDS) == 128 + signal.SIGTERM
    process.stdout.close()
    assert (tmp_path / "cleaned").exists()
    assert outcome(tmp_path / "output")["state"] == "running"
