"""Measured throughputs: how long a piece of work took, on which machine.

Every figure of a plan rests on one of them. `measurements.json` next to this module is shipped; `reasongenrm plan
--measurements FILE` adds your own. What counts as work is the least that has to be done (`Workload`), however the code
does it: code that computes a prompt twice is slower, it does no more work.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from reasongenrm.errors import InputError, validated
from reasongenrm.records import Record
from reasongenrm.training.shapes import SHAPES, ModelShape

# write_reasons: of the teacher or the policy. evaluate: greedy judgments, one per prompt. select_reasons: either
# selection among scored reasons. import_model: a model is checked and copied into the store.
WorkKind = Literal[
    "import_model",
    "prepare_pairs",
    "select_reasons",
    "write_reasons",
    "score_reasons",
    "train_sft",
    "train_dpo",
    "evaluate",
]
# What work without a model is counted in.
LIGHT: dict[WorkKind, str] = {"import_model": "num_bytes", "prepare_pairs": "num_rows", "select_reasons": "num_rows"}
# Forward passes' worth of FLOPs of the others: backward costs two; DPO's reference model reads every token once.
PASSES: dict[WorkKind, int] = {"write_reasons": 1, "score_reasons": 1, "train_sft": 3, "train_dpo": 4, "evaluate": 1}
SHIPPED = Path(__file__).with_name("measurements.json")
CPU = "cpu"  # the machine on which light work was measured
Amount = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Workload(Record):
    """The size of a piece of work. What does not apply is 0."""

    num_prompts: Amount = 0  # judge prompts; of DPO, pairs. Training counts each as often as it is trained on
    prompt_tokens: Amount = 0  # of all prompts together, each once however many reasons follow it
    num_reasons: Amount = 0  # sequences after the prompts: written, scored, or trained on (two per DPO pair)
    reason_tokens: Amount = 0  # of all these together, verdicts included
    num_rows: Amount = 0  # records that a light stage reads
    num_bytes: Amount = 0  # of a model that is copied into the store

    def __add__(self, other: "Workload") -> "Workload":
        return Workload(**{name: value + getattr(other, name) for name, value in self})

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model at least once."""
        return self.prompt_tokens + self.reason_tokens

    def amount(self, kind: WorkKind, model: ModelShape | None) -> float:
        """What seconds are proportional to: FLOPs with a model; rows or bytes without."""
        if model is None:
            return float(getattr(self, LIGHT[kind]))
        prompt = self.prompt_tokens / max(1, self.num_prompts)
        reason = self.reason_tokens / max(1, self.num_reasons)
        forward = model.forward_flops(self.prompt_tokens, prompt / 2)
        return PASSES[kind] * (forward + model.forward_flops(self.reason_tokens, prompt + reason / 2))


def _named(value: Any) -> Any:
    """A shape by its name in SHAPES, or as it is."""
    if isinstance(value, str) and value not in SHAPES:
        raise ValueError(f"no shape is named {value!r}; expected one of {', '.join(SHAPES)}, or a shape's fields")
    return SHAPES[value] if isinstance(value, str) else value


class Measurement(Record):
    """One measurement."""

    kind: WorkKind
    machine: str  # name of a `Machine`
    # One of SHAPES by name, or a shape; None for LIGHT kinds.
    model: Annotated[ModelShape | None, BeforeValidator(_named)] = None
    work: Workload
    seconds: Positive  # wall time on one GPU (or on the CPU)
    version: str | None = None  # of this code; None: a prototype or another program
    command: str  # that gave it, or where it is from
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]  # YYYY-MM or YYYY-MM-DD

    @model_validator(mode="after")
    def _whole(self) -> "Measurement":
        amount = LIGHT.get(self.kind, "prompt_tokens")
        if not getattr(self.work, amount):
            raise ValueError(f"a measurement of {self.kind} needs work.{amount} above 0")
        if (self.model is None) != (self.kind in LIGHT):
            raise ValueError(f"a measurement of {self.kind} {'has no' if self.model else 'needs a'} model")
        return self

    @property
    def throughput(self) -> float:
        """FLOP/s, rows/s or bytes/s."""
        return self.work.amount(self.kind, self.model) / self.seconds


class Machine(Record):
    """What was measured on: one GPU, or a CPU."""

    name: str  # what `--gpu` takes
    title: str
    memory_bytes: Positive | None = None  # of one GPU; None: a CPU, where nothing is spread over several
    # Of one GPU in dense bfloat16, from its data sheet: measurements of another GPU are scaled by the ratio of both.
    # None: only what was measured on this machine counts.
    peak_tflops: Positive | None = None


class Measurements(Record):
    """A file of measurements, and the machines that they name."""

    machines: tuple[Machine, ...] = ()
    measurements: tuple[Measurement, ...] = ()

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(self.model_dump_json(indent=2, exclude_defaults=True) + "\n", encoding="utf-8")

    def __add__(self, other: "Measurements") -> "Measurements":
        """Both files; where both have a machine, or measurements of a kind on one, the other's replace these."""
        machines = {machine.name: machine for machine in (*self.machines, *other.machines)}
        replaced = {(one.machine, one.kind) for one in other.measurements}
        kept = [one for one in self.measurements if (one.machine, one.kind) not in replaced]
        return Measurements(machines=tuple(machines.values()), measurements=(*kept, *other.measurements))

    def machine(self, name: str) -> Machine:
        """A machine by name.

        Raises:
            InputError: no file describes it.
        """
        known = {machine.name: machine for machine in self.machines}
        if name not in known:
            raise InputError(
                f"--gpu {name}: no machine with this name; expected one of {', '.join(known)}. Describe it under "
                '"machines" in a file of --measurements: name, title, memory_bytes and peak_tflops are enough '
                "(docs/planning.md)."
            )
        return known[name]

    def nearest(self, kind: WorkKind, model: ModelShape | None, machine: Machine) -> tuple[Measurement, float, float]:
        """The measurement that an estimate rests on, with the ratios of the parameters and of the machines' peaks.

        The machine itself goes before another whose peak is known, the nearest size before others, and more work
        before less. Light work falls back to CPU.

        Raises:
            InputError: there is none.
        """
        found = []
        for one in self.measurements:
            peak = self.machine(one.machine).peak_tflops
            here = one.machine == machine.name
            elsewhere = one.machine == CPU if kind in LIGHT else bool(peak and machine.peak_tflops)
            if one.kind != kind or not (here or elsewhere):
                continue
            peak_scale = machine.peak_tflops / peak if peak and machine.peak_tflops else 1.0
            model_scale = model.num_parameters / one.model.num_parameters if model and one.model else 1.0
            order = not here, abs(math.log(model_scale)), -one.work.amount(kind, one.model)
            found.append((order, one, model_scale, peak_scale))
        if not found:
            raise InputError(
                f"plan: no measurement of {kind} on {machine.name}; expected one there, or on a machine with "
                "peak_tflops if this one has it. Measure it (python -m benchmarks stages) and give the file as "
                "--measurements, or take another --gpu."
            )
        return min(found, key=lambda each: each[0])[1:]


def read_measurements(path: Path = SHIPPED) -> Measurements:
    """Read a file of measurements, by default the shipped one.

    Raises:
        InputError: there is no such file, or its content does not fit; names a mistake.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; write measurements: python -m benchmarks stages --output {path}")
    with validated(str(path), '{"measurements": [...]}, see docs/planning.md.'):
        return Measurements.model_validate_json(path.read_bytes())
