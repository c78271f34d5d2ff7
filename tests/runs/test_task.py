"""A pipeline task round a stage: what it publishes, what it leaves when it fails, how it stops."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.config import PairsConfig, SelectConfig
from reasongenrm.errors import ConfigError, StoreError
from reasongenrm.runs.task import Task
from reasongenrm.store.artifacts import ArtifactRef, Store
from reasongenrm.store.stage import Stage
from tests.waiting import HANG_SECONDS


class Artifact:
    """A KFP artifact as a task sees it: a local file and metadata."""

    def __init__(self, path: Path) -> None:
        self.path, self.metadata = str(path), dict[str, Any]()
        self.logged: dict[str, float] = {}

    def log_metric(self, metric: str, value: float) -> None:
        self.logged[metric] = value


@pytest.fixture
def output(tmp_path: Path) -> Artifact:
    (tmp_path / "the-task").mkdir()
    return Artifact(tmp_path / "the-task" / "output")


def outcome(output: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(output.path).with_name("outcome.json").read_text())
    return found


def make(store: Store) -> ArtifactRef:
    """A small stage: one file, two counts, three metrics of which one is no number."""
    with Stage(store, "toy", SelectConfig(), {}) as stage:
        if stage.done:
            return stage.done
        stage.add_bytes("page.md", b"# hello")
        return stage.finish({"num_in": 3, "num_out": 2}, {"accuracy": 0.75, "passed": True, "winner": "dpo"})


def test_task_publishes_a_small_reference_with_counts_and_numbers(store: Store, output: Artifact) -> None:
    metrics = Artifact(Path(output.path).with_name("metrics"))
    with Task("toy", store.uri, output) as task:
        assert outcome(output)["state"] == "running"
        ref = task.publish(make(task.store), metrics)
    assert ArtifactRef.read(output.path) == ref
    assert Path(output.path).stat().st_size < 2000
    assert output.metadata == {"uri": ref.uri, "digest": ref.digest, "reused": False, "num_in": 3, "num_out": 2}
    assert metrics.logged == {"accuracy": 0.75, "passed": 1.0}
    assert outcome(output) | {"seconds": 0} == {
        "task": "toy",
        "state": "done",
        "seconds": 0,
        "reused": False,
        "ref": ref.model_dump(mode="json"),
        "error": None,
        "exit_code": 0,
    }


def test_second_task_says_that_it_reused_the_artifact(store: Store, output: Artifact) -> None:
    for reused in (False, True):
        with Task("toy", store.uri, output) as task:
            task.publish(make(task.store))
        assert outcome(output)["reused"] is reused


def test_inputs_are_read_and_files_are_copied(store: Store, output: Artifact, tmp_path: Path) -> None:
    page = Artifact(tmp_path / "page")
    with Task("toy", store.uri, output) as task:
        ref = task.publish(make(task.store))
        assert task.inputs({"first": output, "second": output}) == {"first": ref, "second": ref}
        task.copy(ref, {"page.md": page})
    assert Path(page.path).read_text() == "# hello"


def test_section_takes_the_floats_that_kfp_makes_of_ints(store: Store, output: Artifact) -> None:
    with Task("toy", store.uri, output) as task:
        assert task.section(PairsConfig, {"limit": 8.0}).limit == 8
        with pytest.raises(ConfigError, match=r"'limit' is 8\.5"):
            task.section(PairsConfig, {"limit": 8.5})
        with pytest.raises(ConfigError, match=r"unknown key 'limits'; did you mean 'limit'\?"):
            task.section(PairsConfig, {"limits": 8.0})


def test_error_ends_the_task_with_its_message_and_exit_code(
    store: Store, output: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, Task("toy", store.uri, output):
        raise StoreError("the disk is full; free some")
    assert ended.value.code == StoreError.exit_code == 3
    assert capsys.readouterr().err == "error: the disk is full; free some\n"
    left = outcome(output)
    assert (left["state"], left["error"], left["exit_code"]) == ("failed", "the disk is full; free some", 3)


def test_defect_keeps_its_traceback(store: Store, output: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), Task("toy", store.uri, output):
        raise KeyError("lost")
    assert "Traceback" in capsys.readouterr().err
    left = outcome(output)
    assert (left["state"], left["error"], left["exit_code"]) == ("failed", "KeyError: 'lost'", 70)


def test_sigterm_unwinds_the_task(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import pathlib, sys, time
        from reasongenrm.runs.task import Task

        class Output:
            path, metadata = sys.argv[1], {}

        with Task("toy", "s3://nowhere", Output()):
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
    assert json.loads((tmp_path / "outcome.json").read_text())["state"] == "running"


def test_task_shows_a_page_of_its_stage_where_it_is_asked_for(store: Store, output: Artifact) -> None:
    summary = Artifact(Path(output.path).with_name("summary"))
    for reused in (False, True):
        with Task("toy", store.uri, output) as task:
            ref = task.publish(make(task.store), summary=summary)
        page = Path(summary.path).read_text(encoding="utf-8")
        assert page.startswith("# toy: 3 in, 2 out\n")
        assert ref.digest in page
        assert ("Reused" in page) == reused
