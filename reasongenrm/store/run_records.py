"""The record of a run: its inputs, its progress, its results. One `runs/<run_id>.json` in the store.

It is written when the run starts, after each of its tasks, and when it ends; a run that was killed stays "running"
there.
"""

import secrets
from datetime import UTC, datetime
from typing import Any, Literal

from reasongenrm import __version__
from reasongenrm.config import InputsConfig, RunConfig
from reasongenrm.errors import ConfigError, StoreError, validated
from reasongenrm.http_client import parse_address, without_login
from reasongenrm.records import Record
from reasongenrm.store.artifacts import ArtifactRef, Store

RunState = Literal["running", "finished", "failed", "stopped"]


class RunInputs(Record):
    """What a run starts from."""

    preferences_uri: str
    benchmark_uri: str
    model_uri: str
    teacher_uri: str


class TaskRecord(Record):
    """One task of a run that ended well."""

    name: str
    seconds: float
    reused: bool
    ref: ArtifactRef


class RunRecord(Record):
    """A run, from its inputs to the gate's decision."""

    schema_version: Literal[1] = 1
    run_id: str
    state: RunState
    code_version: str
    started_at: str
    ended_at: str | None = None
    inputs: RunInputs
    config: dict[str, Any]
    tasks: tuple[TaskRecord, ...] = ()
    error: str | None = None
    exit_code: int | None = None

    @property
    def decision(self) -> ArtifactRef | None:
        """The gate's decision, if the run came so far."""
        return self.output("select_winner")

    def output(self, stage: str) -> ArtifactRef | None:
        """What the (last) task of a stage made, None if there was none."""
        refs = [task.ref for task in self.tasks if task.ref.stage == stage]
        return refs[-1] if refs else None

    def evaluations(self) -> dict[str, ArtifactRef]:
        """Variant -> its evaluation."""
        refs = [task.ref for task in self.tasks if task.ref.stage == "evaluate_rewardbench"]
        return {str(ref.metrics["variant"]): ref for ref in refs}


def choose_inputs(
    section: InputsConfig,
    preferences: str | None = None,
    benchmark: str | None = None,
    model: str | None = None,
    teacher: str | None = None,
) -> RunInputs:
    """What a run starts from: what is given, else what its config says; without a teacher, the model teaches itself.

    Raises:
        ConfigError: neither says; names the options. Or an address holds a password, or a teacher's cannot be used.
    """
    chosen = {
        "preferences": preferences or section.preferences,
        "benchmark": benchmark or section.benchmark,
        "model": model or section.model,
    }
    missing = [name for name, uri in chosen.items() if uri is None]
    if missing:
        options, keys = (", ".join(f"{start}{name}" for name in missing) for start in ("--", "inputs."))
        raise ConfigError(f"the run has no {', '.join(missing)}. Give {options}, or write {keys} into the config file.")
    teacher = chosen["teacher"] = teacher or section.teacher or str(chosen["model"])
    for name, uri in chosen.items():
        if "://" in str(uri) and without_login(str(uri)) != uri:
            raise ConfigError(
                f"the run's {name} is {without_login(str(uri))!r} with a user or a password before the host, which its "
                "record and Kubeflow's would keep. Leave them out; a teacher's key goes into OPENAI_API_KEY."
            )
    if teacher.lower().startswith(("http://", "https://")):
        parse_address(teacher)
    return RunInputs.model_validate({f"{name}_uri": uri for name, uri in chosen.items()})


def new_run_id() -> str:
    """A name for a run that starts now; they sort by time."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def new_run(inputs: RunInputs, config: RunConfig) -> RunRecord:
    """A run that starts now."""
    return RunRecord(
        run_id=new_run_id(),
        state="running",
        code_version=__version__,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        inputs=inputs,
        config=config.model_dump(mode="json", exclude={"inputs", "resources"}),
    )


def end_run(record: RunRecord, state: RunState, exit_code: int, error: str | None = None) -> RunRecord:
    """The same run, ended now."""
    ended_at = datetime.now(UTC).isoformat(timespec="seconds")
    return record.model_copy(update={"state": state, "ended_at": ended_at, "exit_code": exit_code, "error": error})


def save_run(store: Store, record: RunRecord) -> None:
    """Write the record, over an earlier one of the same run."""
    store.put_bytes(f"runs/{record.run_id}.json", record.model_dump_json(indent=2).encode())


def list_runs(store: Store) -> list[RunRecord]:
    """Every run of a store, oldest first.

    Raises:
        StoreError: a record is damaged, or was written by a newer version.
    """
    runs = []
    for name in store.list("runs/"):
        expected = "a run record of this version. Use the version of reasongenrm that wrote it, or delete the object."
        with validated(store.uri_of(name), expected, StoreError):
            runs.append(RunRecord.model_validate_json(store.get_bytes(name)))
    return runs
