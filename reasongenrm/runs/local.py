"""Runs the whole pipeline on this machine and reports progress: `reasongenrm run`.

The pipeline runs in a process of its own (pipelines/local.py), its tasks below that. KFP keeps no word of why a task
failed, and goes on with what does not depend on it; so each stage leaves an outcome (reasongenrm/runs/task.py), and the
first that failed stops everything with its own message and exit code. What people see and the record keeps are stages:
some tasks work on several.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from reasongenrm.config import RunConfig
from reasongenrm.errors import ReasonGenRMError, StoreError
from reasongenrm.processes.child import Child, how_it_ended
from reasongenrm.runs.task import DEFECT, ENDED, OUTCOME, STARTED, TaskOutcome
from reasongenrm.runs.tracking import TrackedRun
from reasongenrm.store.artifacts import Store
from reasongenrm.store.run_records import RunInputs, RunRecord, TaskRecord, end_run, new_run, save_run
from reasongenrm.store.scratch import scratch_folder

# What Python runs; one argument follows, the file with the arguments.
PIPELINE = ("-u", "-m", "reasongenrm.pipelines.local")
_TAIL_LINES = 15


class RunView(Protocol):
    """Who wants to know how a run goes."""

    def task_started(self, name: str, number: int, total: int) -> None:
        """A task has started, the `number`th of at most `total`."""

    def task_line(self, line: str) -> None:
        """The running task wrote a line."""

    def task_ended(self, task: TaskRecord) -> None:
        """The running task ended well."""


class TaskFailedError(ReasonGenRMError):
    """A task failed; the message is the stage's own, and so is the exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def open_store(store: str) -> Iterator[Store]:
    """Open the store that --store names: s3://bucket/prefix, or a folder, whose own server runs as long as the context.

    Raises:
        ConfigError: an s3:// URI without a bucket.
        StoreError: nobody answers, wrong credentials, no such bucket; or another process has the folder.
    """
    if store.lower().startswith("s3://"):
        opened = Store(store)
        opened.check()
        yield opened
        return
    from reasongenrm.store.seaweed import embedded_store

    with embedded_store(local_folder(store) / "store") as server:
        before = {name: os.environ.get(name) for name in server.env}
        os.environ.update(server.env)
        try:
            yield Store(server.uri)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def existing_store(store: str) -> Iterator[Store]:
    """Open a store to read what is in it, as `open_store` does; makes none.

    Raises:
        StoreError: there is no such folder, or no store in it; and as `open_store` does.
    """
    folder = local_folder(store) / "store"
    if not store.startswith("s3://") and not folder.is_dir():
        raise StoreError(
            f"{store}: there is no store here (no folder {folder}). Give --store the folder that `reasongenrm run` "
            "made, or s3://bucket/prefix."
        )
    with open_store(store) as opened:
        yield opened


def local_folder(store: str) -> Path:
    """Where a store's logs, scratch and reports go: the folder itself, or ./.reasongenrm for an s3:// store."""
    return (Path(".reasongenrm") if store.lower().startswith("s3://") else Path(store).expanduser()).resolve()


def run_local(inputs: RunInputs, config: RunConfig, store: Store, folder: Path, view: RunView) -> RunRecord:
    """Run the pipeline; what earlier runs finished is reused, what they began goes on.

    Args:
        folder: for scratch (removed at the end) and `logs/<run_id>.log`.

    Returns:
        The record, also kept in the store.

    Raises:
        TaskFailedError: a task failed.
        KeyboardInterrupt, SystemExit: the run was stopped; so are all its processes by then.
    """
    record = new_run(inputs, config)
    save_run(store, record)
    log_path = folder / "logs" / f"{record.run_id}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder("run", folder / "work") as work_dir, log_path.open("w", encoding="utf-8") as log:
        root = work_dir / "pipeline"
        root.mkdir()
        arguments = {"store_uri": store.uri, **inputs.model_dump(), "config": config.changes()}
        arguments_path = work_dir / "arguments.json"
        arguments_path.write_text(json.dumps({"pipeline_root": str(root), "arguments": arguments}), encoding="utf-8")
        follower = _Follower(record, store, root, log, view)
        tracked = TrackedRun()
        try:
            tracked.start(record.run_id)
            with _pipeline(arguments_path, work_dir) as pipeline:
                assert pipeline.process.stdout
                with pipeline.process.stdout as output:
                    follower.follow(output)
                pipeline.wait()
            follower.check_end(pipeline.process.returncode)
        except BaseException as error:
            tracked.end("FAILED" if isinstance(error, Exception) else "KILLED")
            ended = end_run(follower.record, "stopped", 130)
            if isinstance(error, Exception):
                ended = end_run(follower.record, "failed", getattr(error, "exit_code", 1), str(error))
            with contextlib.suppress(StoreError):  # a full or dead store is often why the run failed
                save_run(store, ended)
            raise
        tracked.end("FINISHED")
    record = end_run(follower.record, "finished", 0)
    save_run(store, record)
    return record


class _Follower:
    """Reads the pipeline's output and the tasks' outcomes, and keeps the run's record up to date."""

    def __init__(self, record: RunRecord, store: Store, root: Path, log: IO[str], view: RunView) -> None:
        self.record = record
        self._store, self._root, self._log, self._view = store, root, log, view
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._states: dict[Path, str] = {}
        self._names: dict[Path, str] = {}

    def follow(self, output: IO[str]) -> None:
        """Read until the pipeline's process ends.

        Raises:
            TaskFailedError: a task failed; the process still runs.
        """
        inside = False
        for line in output:
            self._log.write(line)
            self._log.flush()
            text = line.rstrip().removeprefix("    ")  # the runner indents what a task writes
            if text.startswith((STARTED, ENDED)):
                inside = text.startswith(STARTED)
                self._read_outcomes(starting=inside)
            else:
                if inside and text:
                    self._view.task_line(text)
                self._tail.append(text)

    def check_end(self, exit_code: int) -> None:
        """See that the pipeline ended well.

        Raises:
            TaskFailedError: it did not.
        """
        self._read_outcomes(starting=False)
        running = [path for path, state in self._states.items() if state == "running"]
        if running:
            raise self._killed(running[0])
        if exit_code:
            raise TaskFailedError(f"the pipeline's process {how_it_ended(exit_code)}. {self._last_lines()}", 1)

    def _read_outcomes(self, starting: bool) -> None:
        """Take up what the tasks have left; a task that is just `starting` may have ended already, but is yet to be
        heard."""
        for path in sorted(self._root.rglob(f"*.{OUTCOME}"), key=lambda path: path.stat().st_mtime_ns):
            outcome = TaskOutcome.model_validate_json(path.read_bytes())
            self._names[path] = outcome.task
            is_new = path not in self._states
            if is_new:
                died = [other for other, state in self._states.items() if state == "running"]
                if died:  # KFP went on to another task
                    raise self._killed(died[0])
                self._states[path] = "running"
                total = int((self._root / "num_stages").read_text(encoding="utf-8"))
                self._view.task_started(outcome.task, len(self._states), total)
            if outcome.state == self._states[path] or (is_new and starting):
                continue
            self._states[path] = outcome.state
            if outcome.state == "failed":
                raise self._failed(path, outcome)
            if outcome.ref is None:  # there was nothing to do
                continue
            task = TaskRecord(name=outcome.task, seconds=outcome.seconds, reused=outcome.reused, ref=outcome.ref)
            self.record = self.record.model_copy(update={"tasks": (*self.record.tasks, task)})
            save_run(self._store, self.record)
            self._view.task_ended(task)

    def _failed(self, path: Path, outcome: TaskOutcome) -> TaskFailedError:
        message = f"{outcome.error}"
        if outcome.exit_code == DEFECT:
            message = (
                f"{self._names[path]} broke: {outcome.error}. Not your doing, unless something is not installed (try "
                f"`reasongenrm doctor`). The traceback is in {self._log.name}."
            )
        return TaskFailedError(message, outcome.exit_code)

    def _killed(self, path: Path) -> TaskFailedError:
        return TaskFailedError(
            f"{self._names[path]}: its process ended without a word; most often the machine ran out of memory (see "
            "`dmesg`). Free some, or make batches smaller in the config, and run again; finished work is kept. "
            f"{self._last_lines()}",
            1,
        )

    def _last_lines(self) -> str:
        return "Its last lines:\n" + "\n".join(self._tail)


def _pipeline(arguments_path: Path, work_dir: Path) -> Child:
    """The process that runs the pipeline. It stays in our process group: a kill of the group ends all of it."""
    scratch = work_dir / "tmp"
    scratch.mkdir()
    return Child(
        "the pipeline's process",
        [sys.executable, *PIPELINE, str(arguments_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={
            **os.environ,
            "PYTHONUNBUFFERED": "1",  # a task's lines come as they are written
            "PYTHONSAFEPATH": "1",  # a folder "reasongenrm" where the user stands is not ours
            "TMPDIR": str(scratch),
        },
    )
