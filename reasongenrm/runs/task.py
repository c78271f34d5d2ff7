"""What a pipeline task does around a stage function: read references, publish the result, report the end.

`components/*` call this, on a laptop and in a pod. Only a short address travels through KFP (references.py); a failed
stage leaves its own message and exit code in `<stage>.outcome.json` next to its output, because KFP itself keeps
neither. A task may work on several stages, one after another.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from traceback import print_exception
from types import FrameType, TracebackType
from typing import Any, Literal, Protocol

from reasongenrm.errors import InputError, ReasonGenRMError
from reasongenrm.processes.cpu_math import configure_cpu_math
from reasongenrm.processes.mounted_secrets import read_mounted_secrets
from reasongenrm.records import Record
from reasongenrm.runs.references import read_reference, read_settings, write_reference, write_settings
from reasongenrm.runs.tracking import TrackedRun
from reasongenrm.store.artifacts import ArtifactRef, Store, open_artifact, read_file
from reasongenrm.store.run_records import RunInputs

OUTCOME = "outcome.json"  # after the number and the name of the stage
DEFECT = 70  # exit code (EX_SOFTWARE) of what no ReasonGenRMError foresaw
# First words of a stage's first and last line; what a local run shows of a task's log is what stands between them.
STARTED, ENDED = "reasongenrm task started:", "reasongenrm task ended:"


class KfpArtifact(Protocol):
    """What is needed of a KFP artifact: where its file is."""

    @property
    def path(self) -> str:
        """Local path of the artifact's file."""


class KfpMetrics(Protocol):
    """What is needed of a KFP Metrics artifact."""

    def log_metric(self, metric: str, value: float) -> None:
        """Show one number in the UI."""


class TaskOutcome(Record):
    """How a stage stands: written when it starts, again when it ends."""

    task: str
    state: Literal["running", "done", "failed"]
    seconds: float = 0.0
    reused: bool = False
    ref: ArtifactRef | None = None
    error: str | None = None
    exit_code: int = 0


class Task:
    """Context of one stage in a pipeline task.

    A ReasonGenRMError of the stage ends the process with the error's message and exit code instead of a traceback; any
    other exception with its traceback and DEFECT. SIGTERM (an evicted pod, a stopped run) unwinds the stage, which
    cleans up.

    Args:
        name: of the stage, with what tells it from others of the same stage in brackets: "train_sft (sft)".
        output_path: of an output of the task. A string output gets the address of what the stage publishes; the outcome
            is written next to it.
        **inputs: addresses that earlier tasks have published; none for a run's first stage, which calls `begin`.

    Attributes:
        inputs: the artifacts, under the same names.
    """

    def __init__(self, name: str, output_path: str, **inputs: str) -> None:
        self.name = name
        self.inputs: dict[str, ArtifactRef] = {}
        self._addresses, self._output_path = inputs, Path(output_path)
        # The second of two stages has an outcome of its own.
        stage = name.replace(" ", "-").replace("(", "").replace(")", "")
        self._outcome_path = self._output_path.with_name(f"{stage}.{OUTCOME}")
        self._started_at = datetime.now(UTC)
        self._settings_uri: str | None = None
        self._ref: ArtifactRef | None = None
        self._reused = False
        self._tracked = TrackedRun()

    def __enter__(self) -> "Task":
        configure_cpu_math()
        _quiet_logs()
        read_mounted_secrets()
        self._previous_handler = signal.signal(signal.SIGTERM, _stop)
        self._started, self._started_at = time.monotonic(), datetime.now(UTC)
        self._leave(TaskOutcome(task=self.name, state="running"))
        _say(f"{STARTED} {self.name}")
        try:
            self._tracked.start(self.name)
            self._read_inputs()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._previous_handler)
        seconds = round(time.monotonic() - self._started, 3)
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        self._tracked.end("FINISHED" if error is None else "KILLED" if stopped else "FAILED")
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(128 + signal.SIGINT) from None
        if isinstance(error, SystemExit):
            return
        if error is None:
            self._leave(TaskOutcome(task=self.name, state="done", seconds=seconds, reused=self._reused, ref=self._ref))
            _say(f"{ENDED} {self.name}")
            return
        if isinstance(error, ReasonGenRMError):
            message, exit_code = str(error), error.exit_code
        else:
            print_exception(error)
            message, exit_code = f"{type(error).__name__}: {error}", DEFECT
        self._leave(TaskOutcome(task=self.name, state="failed", seconds=seconds, error=message, exit_code=exit_code))
        _say(f"{ENDED} {self.name} failed")  # the last that a local run waits for
        print(f"error: {message}", file=sys.stderr, flush=True)  # noqa: T201 - the last line of the pod's log
        raise SystemExit(exit_code) from error

    def begin(self, store_uri: str, config: Mapping[str, Any], **uris: str) -> None:
        """Begin a run: check its settings and write them into the store, for all tasks.

        Args:
            store_uri: s3://bucket/prefix where the artifacts go.
            config: sections by name; KFP made a float of every int in it.
            **uris: of `RunInputs`.

        Raises:
            ConfigError: a key or a value that does not fit.
        """
        self._open(write_settings(Store(store_uri), RunInputs(**uris), config))

    def publish(self, ref: ArtifactRef, metrics: KfpMetrics | None = None, prefix: str = "") -> str:
        """Hand the stage's artifact to the next tasks.

        Args:
            metrics: gets the artifact's numbers, one by one.
            prefix: of their names, where several stages of a task share one `metrics`.

        Returns:
            The address that travels.
        """
        self._ref = ref
        self._reused = datetime.fromisoformat(open_artifact(ref).created_at) < self._started_at
        assert self._settings_uri is not None
        address = write_reference(self.store, self._settings_uri, ref)
        self._output_path.write_text(address, encoding="utf-8")
        self._tracked.log(ref)
        if metrics is not None:
            for name, value in ref.metrics.items():
                if isinstance(value, int | float):
                    metrics.log_metric(f"{prefix}{name}", float(value))
        return address

    def skip(self, why: str) -> None:
        """Say that there is nothing to do; the output gets the reason in place of an address."""
        _say(f"{self.name}: {why}")
        self._output_path.write_text(why, encoding="utf-8")

    def copy(self, ref: ArtifactRef, files: Mapping[str, KfpArtifact]) -> None:
        """Copy small files of a published artifact to KFP artifacts whose content the UI shows."""
        for name, artifact in files.items():
            Path(artifact.path).write_bytes(read_file(ref, name))

    def _read_inputs(self) -> None:
        for name, address in self._addresses.items():
            reference = read_reference(address)
            if self._settings_uri not in (None, reference.settings_uri):
                raise InputError(
                    f"{self.name}: input {name} ({address}) is of the run {reference.settings_uri}, the others of "
                    f"{self._settings_uri}; expected inputs of one run. Run the pipeline again."
                )
            self.inputs[name] = reference.artifact
            if self._settings_uri is None:
                self._open(reference.settings_uri)

    def _open(self, settings_uri: str) -> None:
        settings = read_settings(settings_uri)
        self._settings_uri = settings_uri
        self.store, self.config, self.uris = Store(settings.store_uri), settings.stages, settings.inputs

    def _leave(self, outcome: TaskOutcome) -> None:
        """Write the outcome so that a reader sees the old file or the new one."""
        self._outcome_path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._outcome_path.with_suffix(".partial")
        partial.write_text(outcome.model_dump_json(), encoding="utf-8")
        partial.replace(self._outcome_path)


def _quiet_logs() -> None:
    """KFP's executor lets every library log at INFO; and a progress bar in a log is a line for every step."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("reasongenrm").setLevel(logging.INFO)
    os.environ.setdefault("TQDM_DISABLE", "1")


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a line of the task's log
