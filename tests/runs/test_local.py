"""A run on this machine: what it shows and keeps, how it fails, and that nothing of it outlives it."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from reasongenrm.config import RunConfig
from reasongenrm.errors import ConfigError, StoreError
from reasongenrm.runs import local as local_run
from reasongenrm.runs.local import TaskFailedError, local_folder, open_store, run_local
from reasongenrm.store.artifacts import Store
from reasongenrm.store.run_records import RunInputs, RunRecord, TaskRecord, list_runs
from tests.waiting import HANG_SECONDS

DEMO = Path(__file__).parents[2] / "examples" / "demo"

SCRIPTED = str(Path(__file__).with_name("scripted_pipeline.py"))


class View:
    """Remembers what a run told; on the line of a hanging task it does as Ctrl-C does."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.hanging: list[int] = []

    def task_started(self, name: str, number: int, total: int) -> None:
        self.events.append(f"{number}/{total} {name}")

    def task_line(self, line: str) -> None:
        self.events.append(line.strip())
        if "hanging" in line:
            self.hanging = [int(pid) for pid in line.split()[1:]]
            raise KeyboardInterrupt

    def task_ended(self, task: TaskRecord) -> None:
        self.events.append(f"{task.name} {'reused' if task.reused else 'done'}")


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_run, "PIPELINE", ("-u", SCRIPTED))


def run(script: str, store: Store, folder: Path, view: View, **data: str) -> RunRecord:
    inputs = RunInputs(
        **{"preferences_uri": "p", "benchmark_uri": "b", "model_uri": script, "teacher_uri": "t", **data}
    )
    return run_local(inputs, RunConfig(), store, folder, view)


def test_run_tells_each_task_and_what_it_says_and_nothing_of_the_runner(store: Store, tmp_path: Path) -> None:
    view = View()
    record = run("work work", store, tmp_path, view)
    told = [event for event in view.events if "wrote" not in event and event != "task_0: 2 in, 1 out"]
    assert told == [
        "1/2 task_0",
        "task_0 says work",
        "task_0 done",
        "2/2 task_1",
        "task_1 says work",
        "task_1: 2 in, 1 out",
        "task_1 done",
    ]
    assert (record.state, record.exit_code) == ("finished", 0)
    assert [task.ref.stage for task in record.tasks] == ["task_0", "task_1"]
    assert list_runs(store) == [record]
    assert "noise of the runner" in (tmp_path / "logs" / f"{record.run_id}.log").read_text()


def test_stage_with_nothing_to_do_says_so_and_is_not_recorded(store: Store, tmp_path: Path) -> None:
    view = View()
    record = run("work skip", store, tmp_path, view)
    assert [task.name for task in record.tasks] == ["task_0"]
    assert record.state == "finished"
    assert view.events[-2:] == ["task_1 says skip", "task_1: nothing to do here"]


def test_scratch_is_gone_after_a_run(store: Store, tmp_path: Path) -> None:
    run("work", store, tmp_path, View())
    assert list((tmp_path / "work").iterdir()) == []


def test_second_run_reuses_what_the_first_one_made(store: Store, tmp_path: Path) -> None:
    first = run("work work", store, tmp_path, View())
    second = run("work work work", store, tmp_path, View())
    assert [task.reused for task in second.tasks] == [True, True, False]
    assert [task.ref for task in second.tasks[:2]] == [task.ref for task in first.tasks]


def test_failed_task_ends_the_run_with_its_own_message_and_exit_code(store: Store, tmp_path: Path) -> None:
    view = View()
    with pytest.raises(TaskFailedError, match=r"^the disk is full; free some$") as failed:
        run("work fail work", store, tmp_path, view)
    assert failed.value.exit_code == 3
    assert "3/3 task_2" not in view.events
    (record,) = list_runs(store)
    assert (record.state, record.exit_code, record.error) == ("failed", 3, "the disk is full; free some")
    assert [task.name for task in record.tasks] == ["task_0"]


def test_defect_is_told_with_where_its_traceback_is(store: Store, tmp_path: Path) -> None:
    with pytest.raises(TaskFailedError, match=r"task_0 broke: KeyError: 'lost'\..*reasongenrm doctor") as failed:
        run("break", store, tmp_path, View())
    log = Path(str(failed.value).rpartition(" is in ")[2].rstrip("."))
    assert failed.value.exit_code == 70
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize("script", ["die", "die work"])
def test_task_that_was_killed_is_told_from_one_that_failed(store: Store, tmp_path: Path, script: str) -> None:
    with pytest.raises(TaskFailedError, match=r"task_0: its process ended without a word; most often .* out of memory"):
        run(script, store, tmp_path, View())


def test_crash_of_the_runner_shows_its_last_words(store: Store, tmp_path: Path) -> None:
    with pytest.raises(TaskFailedError, match=r"exit code 1\. Its last lines:\n(.*\n)*the runner itself crashed"):
        run("work crash", store, tmp_path, View())


def test_stopped_run_leaves_no_process_and_no_scratch(store: Store, tmp_path: Path) -> None:
    view = View()
    with pytest.raises(KeyboardInterrupt):
        run("work hang", store, tmp_path, view)
    assert len(view.hanging) == 2
    assert not any(psutil.pid_exists(pid) for pid in view.hanging)
    assert list((tmp_path / "work").iterdir()) == []
    (record,) = list_runs(store)
    assert (record.state, record.error, len(record.tasks)) == ("stopped", None, 1)


def test_scratch_of_killed_runs_is_removed_and_that_of_live_ones_kept(store: Store, tmp_path: Path) -> None:
    killed, alive = (tmp_path / "work" / f"reasongenrm-run-{name}" for name in ("killed", "alive"))
    for folder in (killed, alive):
        folder.mkdir(parents=True)
        (folder / "lock").touch()
    with (alive / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("work", store, tmp_path, View())
    assert list((tmp_path / "work").iterdir()) == [alive]


def test_folder_of_a_store_is_the_store_or_beside_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_folder("here") == tmp_path / "here"
    assert local_folder("s3://bucket/prefix") == tmp_path / ".reasongenrm"


def test_store_in_a_folder_is_served_while_open_and_leaves_the_environment_as_it_was(tmp_path: Path) -> None:
    before = dict(os.environ)
    with open_store(str(tmp_path / "kept")) as store:
        store.put_bytes("hello", b"world")
    assert dict(os.environ) == before
    with open_store(str(tmp_path / "kept")) as store:
        assert store.get_bytes("hello") == b"world"


def test_store_that_cannot_be_reached_is_an_error_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_REGION", "nowhere-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    with pytest.raises(StoreError, match=r"nobody answers at http://127\.0\.0\.1:9"), open_store("s3://bucket/prefix"):
        pass
    with pytest.raises(ConfigError, match="expected s3://bucket"), open_store("s3://"):
        pass


@pytest.mark.parametrize(("stop", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_to_the_command_stops_its_tasks_and_its_store(
    tmp_path: Path, stop: signal.Signals, exit_code: int
) -> None:
    program = "from reasongenrm import cli\nfrom reasongenrm.runs import local\n"
    program += f"local.PIPELINE = ('-u', {SCRIPTED!r})\ncli.main()"
    demo = Path(__file__).parents[2] / "examples" / "demo"
    command = [sys.executable, "-c", program, "run", "--model", "work hang", "--store", str(tmp_path), "--teacher", "t"]
    command += ["--set", "deploy.apply=false"]
    command += ["--preferences", str(demo / "preferences.jsonl"), "--benchmark", str(demo / "benchmark.jsonl")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    while "hanging" not in process.stderr.readline():
        assert process.poll() is None
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 4  # the store's server, the pipeline, a task and its child
    process.send_signal(stop)
    told = process.stderr.read()
    assert process.wait(HANG_SECONDS) == exit_code
    assert "Traceback" not in told
    assert psutil.wait_procs(family, HANG_SECONDS)[1] == []
    process.stderr.close()


def test_kfp_run_fails_with_the_words_of_the_stage(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real pipeline
    view = View()
    data = {f"{name}_uri": str(DEMO / f"{name}.jsonl") for name in ("preferences", "benchmark")}
    with pytest.raises(TaskFailedError, match=r"^/nowhere/model: no such folder; expected .*Check the path") as failed:
        run("/nowhere/model", store, tmp_path, view, **data)
    assert failed.value.exit_code == 2
    assert view.events == ["1/17 import_model"]


def test_folder_named_as_ours_where_the_user_stands_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "reasongenrm").mkdir()
    (tmp_path / "reasongenrm" / "__init__.py").write_text("raise SystemExit('theirs')")
    found = subprocess.run(
        [sys.executable, "-c", "import reasongenrm.pipelines.local as local; print(local.__name__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "reasongenrm.pipelines.local\n"
