"""Measured points: how long a piece of work took, on which machine, by which code. Every plan comes from them.

`points.json` beside this module is shipped; `reasongenrm plan --points FILE` adds one's own. A file of points is

    {"points": [{"kind": "sft", "machine": "h100", "model": "1.5B", "seconds": 92.1, "version": "0.1.0",
                 "date": "2026-11-27", "command": "python -m benchmarks ...", "work": {"num_prompts": 400,
                 "prompt_tokens": 400000, "num_reasons": 400, "reason_tokens": 200000, "num_steps": 25}}]}

Write one with `Points(points=[MeasuredPoint(...), ...]).write(path)`; `python -m benchmarks.growth` does so for
this machine. What counts as work is the least that has to be done (`Work`), however the code does it: code that
computes a prompt twice is slower, not busier. A rate ("46,200 tokens/s") is a point of one second.
"""

import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from reasongenrm.errors import InputError
from reasongenrm.training.shapes import SHAPES, ModelShape

# generate: reasons are written (distil, sample). evaluate: greedy judgments, one a prompt. prepare: pairs become
# prompts. select: of scored reasons some are taken. store: a model is checked and copied into the store.
Kind = Literal["generate", "score", "sft", "dpo", "evaluate", "prepare", "select", "store"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# What light stages grow with, instead of tokens and a model.
LIGHT: dict[Kind, str] = {"prepare": "num_rows", "select": "num_rows", "store": "num_bytes"}
Amount = Annotated[int, Field(ge=0)]


class Work(BaseModel):
    """The size of a piece of work. What does not apply is 0.

    Attributes:
        num_prompts: judge prompts; of dpo, pairs. Training counts each as often as it is trained on.
        prompt_tokens: of all prompts together, each once however many reasons stand behind it.
        num_reasons: sequences behind the prompts: written, scored, or trained on (two a DPO pair).
        reason_tokens: of all these together, verdicts included.
        num_steps: that follow one another: decoding steps (reason_tokens / sequences in flight), optimizer steps.
        num_rows: records that a light stage reads.
        num_bytes: of a model that is copied into the store.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_prompts: Amount = 0
    prompt_tokens: Amount = 0
    num_reasons: Amount = 0
    reason_tokens: Amount = 0
    num_steps: Amount = 0
    num_rows: Amount = 0
    num_bytes: Amount = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model at least once."""
        return self.prompt_tokens + self.reason_tokens


def _named(value: Any) -> Any:
    """A shape by its name in SHAPES, or as it is."""
    if not isinstance(value, str):
        return value
    if value not in SHAPES:
        raise ValueError(
            f"no shape is named {value!r}; expected one of {', '.join(SHAPES)}, or an object with a shape's fields"
        )
    return SHAPES[value]


def _name(shape: ModelShape | None) -> Any:
    known = next((name for name, known in SHAPES.items() if known == shape), None)
    return known or (shape and shape.model_dump())


class MeasuredPoint(BaseModel):
    """One measurement.

    Attributes:
        machine: name of a `Machine`.
        model: one of SHAPES by name, or a shape; None for LIGHT kinds.
        seconds: wall time on one GPU (or on the CPU), start and end of the stage included.
        version: of this code; None: a prototype or another program, which says what is possible rather than what is.
        command: that gave it, or where it is from.
        date: YYYY-MM or YYYY-MM-DD.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    machine: str
    model: Annotated[ModelShape | None, BeforeValidator(_named), PlainSerializer(_name)] = None
    work: Work
    seconds: Annotated[float, Field(gt=0)]
    version: str | None
    command: str
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]

    @model_validator(mode="after")
    def _whole(self) -> "MeasuredPoint":
        amount = LIGHT.get(self.kind, "prompt_tokens")
        if not getattr(self.work, amount):
            raise ValueError(f"a point of kind {self.kind} needs work.{amount} above 0")
        if (self.model is None) != (self.kind in LIGHT):
            raise ValueError(f"a point of kind {self.kind} {'has no' if self.model else 'needs a'} model")
        return self


class Machine(BaseModel):
    """What a point was measured on: one GPU, or a CPU.

    Attributes:
        name: what `--gpu` takes.
        memory_bytes: of one GPU; None: a CPU, where nothing is spread over several.
        like: another machine, of the same chip, whose points are taken for a kind that was not measured here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    memory_bytes: Annotated[float, Field(gt=0)] | None
    like: str | None = None


class Points(BaseModel):
    """A file of points, and the machines that they name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    machines: tuple[Machine, ...] = ()
    points: tuple[MeasuredPoint, ...] = ()

    def write(self, path: Path) -> None:
        """Write the file, a point a line."""
        machines = ",\n".join(f"  {machine.model_dump_json()}" for machine in self.machines)
        points = ",\n".join(
            "  " + json.dumps(_without_zeros(point.model_dump(mode="json")), ensure_ascii=False)
            for point in self.points
        )
        path.write_text(f'{{"machines": [\n{machines}\n],\n"points": [\n{points}\n]}}\n', encoding="utf-8")

    def __add__(self, other: "Points") -> "Points":
        """Both files' points; where both have a machine, or points of a kind on one, the other's replace these."""
        machines = {machine.name: machine for machine in (*self.machines, *other.machines)}
        replaced = {(point.machine, point.kind) for point in other.points}
        kept = [point for point in self.points if (point.machine, point.kind) not in replaced]
        return Points(machines=tuple(machines.values()), points=(*kept, *other.points))

    def machine(self, name: str) -> Machine:
        """A machine by name.

        Raises:
            InputError: no file describes it.
        """
        found = next((machine for machine in self.machines if machine.name == name), None)
        if found is None:
            known = ", ".join(machine.name for machine in self.machines)
            raise InputError(
                f"--gpu {name}: no machine with this name; expected one of {known}. Measure one of your own "
                '(python -m benchmarks.growth), describe it under "machines" in its file, and give that as --points.'
            )
        return found

    def of(self, machine: str, kind: Kind) -> list[MeasuredPoint]:
        """Points of one kind on one machine."""
        return [point for point in self.points if point.machine == machine and point.kind == kind]


def _without_zeros(point: dict[str, Any]) -> dict[str, Any]:
    """A point without the amounts and the model that it does not have."""
    work = {name: amount for name, amount in point["work"].items() if amount}
    return {name: value for name, value in point.items() if name != "model" or value is not None} | {"work": work}


def read_points(path: Path) -> Points:
    """Read a file of points.

    Raises:
        InputError: there is no such file, or it is not one of points; names every mistake.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; expected measured points. Write them: python -m benchmarks.growth --output {path}"
        )
    return _parse(path.read_bytes(), str(path))


def shipped_points() -> Points:
    """The points that come with this package."""
    return _parse((resources.files("reasongenrm.planning") / "points.json").read_bytes(), "points.json")


def _parse(data: bytes, where: str) -> Points:
    try:
        points = Points.model_validate_json(data)
    except ValidationError as error:
        mistakes = "; ".join(
            f"{'.'.join(map(str, found['loc'])) or 'file'}: {found['msg']}" for found in error.errors()
        )
        raise InputError(f'{where}: {mistakes}. Expected {{"points": [...]}}, see docs/planning.md.') from error
    return points
