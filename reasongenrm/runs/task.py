"""What a pipeline task does around a stage function: read references, publish the result, report the end.

`components/*` call this, on a laptop and in a pod. Only a small reference (`ArtifactRef`) travels through KFP; a failed
task leaves the stage's own message and exit code in `outcome.json` next to its output, because KFP itself keeps
neither.
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
from typing import Any, Literal, Protocol, TypeVar

from reasongenrm.config import Section, parse_section
from reasongenrm.errors import ReasonGenRMError
from reasongenrm.processes.cpu_math import configure_cpu_math
from reasongenrm.records import Record
from reasongenrm.runs.stage_summary import stage_summary
from reasongenrm.store.artifacts import ArtifactRef, Store, open_artifact, read_file

OUTCOME = "outcome.json"
DEFECT = 70  # exit code (EX_SOFTWARE) of what no ReasonGenRMError foresaw
# First words of a task's first and last line; what a local run shows of a task's log is what stands between them.
STARTED, ENDED = "reasongenrm task started:", "reasongenrm task ended:"

S = TypeVar("S", bound=Section)


class KfpArtifact(Protocol):
    """What is needed of a KFP artifact: where its file is, and its metadata."""

    metadata: dict[str, Any]

    @property
    def path(self) -> str:
        """Local path of the artifact's file."""


class KfpMetrics(Protocol):
    """What is needed of a KFP Metrics artifact."""

    def log_metric(self, metric: str, value: float) -> None:
        """Show one number in the UI."""


class TaskOutcome(Record):
    """How a task stands: written when it starts, again when it ends."""

    task: str
    state: Literal["running", "done", "failed"]
    seconds: float = 0.0
    reused: bool = False
    ref: ArtifactRef | None = None
    error: str | None = None
    exit_code: int = 0


class Task:
    """Context of one pipeline task.

    A ReasonGenRMError of the stage ends the process with the error's message and exit code instead of a traceback; any
    other exception with its traceback and DEFECT. SIGTERM (an evicted pod, a stopped run) unwinds the stage, which
    cleans up.

    Args:
        name: of the stage.
        store_uri: s3://bucket/prefix where the stage's artifact goes.
        output: the task's main output; `outcome.json` is written next to it.
    """

    def __init__(self, name: str, store_uri: str, output: KfpArtifact) -> None:
        self.name, self.store = name, Store(store_uri)
        self._output, self._outcome_path = output, Path(output.path).with_name(OUTCOME)
        self._started_at = datetime.now(UTC)
        self._ref: ArtifactRef | None = None
        self._reused = False

    def __enter__(self) -> "Task":
        configure_cpu_math()
        _quiet_logs()
        self._previous_handler = signal.signal(signal.SIGTERM, _stop)
        self._started, self._started_at = time.monotonic(), datetime.now(UTC)
        self._leave(TaskOutcome(task=self.name, state="running"))
        _say(f"{STARTED} {self.name}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._previous_handler)
        seconds = round(time.monotonic() - self._started, 3)
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

    def section(self, kind: type[S], values: dict[str, Any]) -> S:
        """Validate the stage's config section again: KFP made a float of every int in it.

        Raises:
            ConfigError: a key or a value that does not fit.
        """
        return parse_section(kind, values, self.name)

    def input(self, artifact: KfpArtifact) -> ArtifactRef:
        """The reference that an earlier task published.

        Raises:
            InputError: the file is not a reference.
        """
        return ArtifactRef.read(Path(artifact.path))

    def inputs(self, artifacts: Mapping[str, KfpArtifact]) -> dict[str, ArtifactRef]:
        """Several references by name (see `input`)."""
        return {name: self.input(artifact) for name, artifact in artifacts.items()}

    def copy(self, ref: ArtifactRef, files: Mapping[str, KfpArtifact]) -> None:
        """Copy small files of a published artifact to KFP artifacts whose content the UI shows."""
        for name, artifact in files.items():
            Path(artifact.path).write_bytes(read_file(ref, name))

    def publish(
        self, ref: ArtifactRef, metrics: KfpMetrics | None = None, summary: KfpArtifact | None = None
    ) -> ArtifactRef:
        """Hand the stage's artifact to the next tasks, and show it in the UI: its address and its counts as metadata.

        Args:
            metrics: gets the artifact's numbers, one by one.
            summary: gets a page of Markdown (stage_summary.py).
        """
        manifest = open_artifact(ref)
        self._ref = ref
        self._reused = datetime.fromisoformat(manifest.created_at) < self._started_at
        ref.write(Path(self._output.path))
        self._output.metadata.update({"uri": ref.uri, "digest": ref.digest, "reused": self._reused, **ref.counts})
        if metrics is not None:
            for name, value in ref.metrics.items():
                if isinstance(value, int | float):
                    metrics.log_metric(name, float(value))
        if summary is not None:
            Path(summary.path).write_text(stage_summary(manifest, self._reused), encoding="utf-8")
        return ref

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
