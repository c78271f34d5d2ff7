"""What a benchmark measured, as records: one JSON file a run.

`Way` is one way of doing a part's work (ours, a peer's), `Part` compares the ways of one kind of work, `Report` is the
file. The arithmetic of the derived figures is here, once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from reasongenrm.planning.measurements import Workload

PartName = Literal["sft", "dpo", "scoring", "equality"]
TRAINING_FLOPS, INFERENCE_FLOPS = 6, 2  # of a parameter and token: forward and backward, forward alone
OURS = "ours"


class Figures(BaseModel):
    """Base of all records: unknown fields are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(Figures):
    """Where and with what it was measured.

    Attributes:
        device: the GPU's name, or the CPU architecture and its cores.
        peak_tflops: of one process's device, measured in this run by a large matrix product (10^12 FLOP/s).
        peak_how: that product.
        versions: of Python and the libraries.
        commit: of the repository, "+" at its end if files were changed; None outside a repository.
        load_average: of the last minute, at the start; what else the machine did.
    """

    device: str
    num_processes: int
    peak_tflops: float
    peak_how: str
    versions: dict[str, str]
    commit: str | None
    load_average: float


class Step(Figures):
    """One measured optimizer step, or one batch of scoring; over all processes.

    Attributes:
        tokens: of the work, padding left out.
        examples: SFT examples, DPO pairs, or reasons.
        work: the same as `reasongenrm plan` counts it.
    """

    seconds: float
    tokens: int
    examples: int
    work: Workload


class Measured(Figures):
    """The figures of one way.

    Attributes:
        tokens_per_second: over all steps and processes, padding left out.
        slowest, fastest: tokens per second of single steps.
        examples_per_second: examples, pairs or reasons.
        mfu: FLOPs of the tokens against the measured peak, in [0, 1]: model FLOPs utilisation.
        peak_memory_gib: most that one process held: of the GPU, else resident.
        before_seconds: what has to be done once before the first step (DPO: the reference model's log-probabilities),
            and
        before_examples: the number of examples of `before`; 0 if there are none.
        tokens_per_second_with_before: the same with each example's share of it.
    """

    num_steps: int
    seconds: float
    num_tokens: int
    num_examples: int
    tokens_per_second: float
    slowest: float
    fastest: float
    examples_per_second: float
    mfu: float
    peak_memory_gib: float
    before_seconds: float = 0.0
    before_examples: int = 0
    tokens_per_second_with_before: float
    steps: tuple[Step, ...]


class Way(Figures):
    """One way of doing the work.

    Attributes:
        name: "ours", or the peer's.
        settings: what was set, in the way's own names.
        status, message: what went wrong, or why it was left out.
    """

    name: str
    status: Literal["measured", "failed", "skipped"]
    settings: dict[str, str | int | float | bool | None] = {}
    message: str = ""
    measured: Measured | None = None


class Ratio(Figures):
    """Ours against a peer in one run, in tokens per second.

    Attributes:
        ratio: over the steps that both have measured, where these are the same work, or else over all of each way's
            own: rows differ from step to step, and who is faster gets to more of them.
        ratio_with_before: with `Measured.before_seconds`.
    """

    peer: str
    ratio: float
    ratio_with_before: float


class Apart(Figures):
    """How far two computations of the same numbers are apart.

    Attributes:
        what: a loss, a gradient, log-probabilities.
        ours: of ours from the plain ways, the larger one.
        spread: of two plain ways from each other: one sequence at a time, and padded batches.
        error_ours, error_plain: of ours, and of the worse of the plain ways, from the same numbers in a wider type.
        holds: ours is no farther off than the plain ways are, with something to spare for chance (`equality.CHANCE`).
    """

    what: str
    unit: str
    ours: float
    spread: float
    error_ours: float
    error_plain: float
    holds: bool


class Part(Figures):
    """One kind of work done in several ways, or compared."""

    part: PartName
    shape: str
    num_parameters: int
    dtype: str
    ways: tuple[Way, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    apart: tuple[Apart, ...] = ()
    failed: str = ""


class Report(Figures):
    """Everything that one run measured."""

    command: str
    started: str
    seconds: float
    machine: Machine
    parts: tuple[Part, ...]

    @property
    def failures(self) -> list[str]:
        """What failed, and what is not equal."""
        found = []
        for part in self.parts:
            found += [f"{part.part}: {part.failed}"] if part.failed else []
            found += [f"{part.part}, {way.name}: {way.message}" for way in part.ways if way.status == "failed"]
            found += [f"{part.part}, {apart.what}: not equal" for apart in part.apart if not apart.holds]
        return found

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_report(path: Path) -> Report:
    """A file that `Report.write` wrote."""
    return Report.model_validate_json(path.read_bytes())


def mfu(
    num_parameters: int, flops_per_parameter: int, tokens_per_second: float, peak_tflops: float, num_processes: int
) -> float:
    """Model FLOPs utilisation: flops_per_parameter x parameters x tokens/s, against the peak of all processes.

    Attention's own FLOPs, recomputed activations and the reference model's forward pass are not counted.

    Returns:
        In [0, 1], or above where a way computes less than the plain method.
    """
    return flops_per_parameter * num_parameters * tokens_per_second / (peak_tflops * 1e12 * num_processes)


def summarise(
    steps: Sequence[Step],
    *,
    num_parameters: int,
    flops_per_parameter: int,
    machine: Machine,
    peak_memory_gib: float,
    before_seconds: float = 0.0,
    before_examples: int = 0,
) -> Measured:
    """The figures of some steps.

    Args:
        steps: at least one.
        before_seconds: see `Measured`.
    """
    seconds, tokens = sum(step.seconds for step in steps), sum(step.tokens for step in steps)
    examples = sum(step.examples for step in steps)
    before_each = before_seconds / max(1, before_examples)
    rates = [step.tokens / step.seconds for step in steps]
    return Measured(
        num_steps=len(steps),
        seconds=seconds,
        num_tokens=tokens,
        num_examples=examples,
        tokens_per_second=_rate(steps),
        slowest=min(rates),
        fastest=max(rates),
        examples_per_second=examples / seconds,
        mfu=mfu(num_parameters, flops_per_parameter, tokens / seconds, machine.peak_tflops, machine.num_processes),
        peak_memory_gib=peak_memory_gib,
        before_seconds=before_seconds,
        before_examples=before_examples,
        tokens_per_second_with_before=_rate(steps, before_each),
        steps=tuple(steps),
    )


def ratios(ways: Sequence[Way]) -> tuple[Ratio, ...]:
    """Ours against every peer that was measured."""
    found = {way.name: way.measured for way in ways if way.measured is not None}
    ours = found.pop(OURS, None)
    if ours is None:
        return ()
    return tuple(_ratio(name, ours, peer) for name, peer in found.items())


def _ratio(name: str, ours: Measured, peer: Measured) -> Ratio:
    ours_steps, peer_steps = ours.steps, peer.steps
    same = list(zip(ours_steps, peer_steps, strict=False))  # until the first that ends
    if all(left.work == right.work for left, right in same):
        ours_steps, peer_steps = zip(*same, strict=True)
    ours_each, peer_each = (way.before_seconds / max(1, way.before_examples) for way in (ours, peer))
    return Ratio(
        peer=name,
        ratio=_rate(ours_steps) / _rate(peer_steps),
        ratio_with_before=_rate(ours_steps, ours_each) / _rate(peer_steps, peer_each),
    )


def _rate(steps: Sequence[Step], before_each: float = 0.0) -> float:
    """Tokens per second; `before_each` is the seconds that every example has cost before."""
    seconds = sum(step.seconds + before_each * step.examples for step in steps)
    return sum(step.tokens for step in steps) / seconds
