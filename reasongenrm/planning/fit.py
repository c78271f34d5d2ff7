"""A law through measured points: seconds = a x FLOPs + start-up + b x activations + c x weights, nothing below 0.

In go points of one kind on one machine, out comes a `Law` that knows how far it is from each point, how well it
foretells a size that was left out, and how far it was measured. The errors are relative: a point of one second counts
as one of an hour.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from reasongenrm.planning.points import LIGHT, Kind, MeasuredPoint, Work
from reasongenrm.training.shapes import INFERENCE_BYTES, ModelShape

# Forward passes' worth of FLOPs: backward costs two; the reference model of DPO reads every token once.
PASSES: dict[Kind, int] = {"generate": 1, "evaluate": 1, "score": 1, "sft": 3, "dpo": 4}
# In the order in which they are taken in as points become more.
TERMS: dict[Kind, tuple[str, ...]] = {
    **dict.fromkeys(PASSES, ("flops", "start", "activations", "weights")),
    "prepare": ("rows", "start"),
    "select": ("rows", "start"),
    "store": ("bytes", "start"),
}


def amounts(kind: Kind, model: ModelShape | None, work: Work) -> dict[str, float]:
    """How much there is of each term of the kind's law.

    flops: of the least work, `ModelShape.forward_flops` times PASSES. activations: numbers that the layers hand on,
    tokens x layers x hidden size. weights: bytes of weights that are read, once to load them and once in every step
    that must wait for the one before it (a decoding step, an optimizer step). start: 1.
    """
    if model is None:
        return {"rows": float(work.num_rows), "bytes": float(work.num_bytes), "start": 1.0}
    prompt = work.prompt_tokens / work.num_prompts if work.num_prompts else 0.0
    reason = work.reason_tokens / work.num_reasons if work.num_reasons else 0.0
    forward = model.forward_flops(work.prompt_tokens, prompt / 2)
    forward += model.forward_flops(work.reason_tokens, prompt + reason / 2)
    return {
        "flops": PASSES[kind] * forward,
        "start": 1.0,
        "activations": float(PASSES[kind] * work.num_tokens * model.num_layers * model.hidden_size),
        "weights": float((1 + work.num_steps) * INFERENCE_BYTES * model.num_parameters),
    }


def main_term(kind: Kind) -> str:
    """The term that grows with the work: FLOPs, rows or bytes."""
    return TERMS[kind][0]


@dataclass(frozen=True)
class Growth:
    """seconds = start + constant x work^exponent: 1.0 is linear.

    Attributes:
        of_work: exponent of tokens (rows, bytes) at one model.
        of_parameters: exponent of parameters at one amount of tokens; None: fewer than three models.
        start_seconds: that do not grow.
    """

    of_work: float
    of_parameters: float | None
    start_seconds: float


@dataclass(frozen=True)
class Law:
    """What a kind of stage takes on one machine.

    Attributes:
        seconds_per: coefficient of each term, >= 0; a term that points do not support is not there.
        points: through which it goes.
        fitted_seconds: what it says about each of them.
        left_out_seconds: what the law says about each of them that is fitted without all points of that size; empty:
            there is but one size.
        growth: None: fewer than three sizes.
    """

    kind: Kind
    machine: str
    seconds_per: dict[str, float]
    points: tuple[MeasuredPoint, ...]
    fitted_seconds: tuple[float, ...]
    left_out_seconds: tuple[float, ...]
    growth: Growth | None

    def seconds(self, quantities: dict[str, float]) -> float:
        """Seconds on one GPU for so much of each term."""
        return sum(each * quantities[term] for term, each in self.seconds_per.items())

    @property
    def ratios(self) -> tuple[float, ...]:
        """Measured / fitted seconds of each point."""
        return tuple(p.seconds / fitted for p, fitted in zip(self.points, self.fitted_seconds, strict=True))

    @property
    def left_out_ratios(self) -> tuple[float, ...]:
        """Measured / foretold seconds of each point; empty: there is but one size."""
        return tuple(
            p.seconds / told for p, told in zip(self.points, self.left_out_seconds, strict=bool(self.left_out_seconds))
        )

    @property
    def spread(self) -> tuple[float, float] | None:
        """Factors to the low and the high end: the worst that leaving a size out foretold; None: nobody knows."""
        ratios = self.left_out_ratios
        return (min(1.0, *ratios), max(1.0, *ratios)) if ratios else None

    def to_json(self) -> dict[str, Any]:
        """For programs: coefficients, errors, growth, and every point beside what the law says about it."""
        told = zip(self.points, self.fitted_seconds, strict=True)
        return {
            "kind": self.kind,
            "machine": self.machine,
            "seconds_per": self.seconds_per,
            "spread": self.spread,
            "growth": self.growth and asdict(self.growth),
            "points": [{**point.model_dump(mode="json"), "fitted_seconds": fitted} for point, fitted in told],
        }

    @property
    def most_work(self) -> float:
        """Of the largest point: FLOPs, rows or bytes."""
        return max(amounts(self.kind, p.model, p.work)[main_term(self.kind)] for p in self.points)

    @property
    def most_parameters(self) -> int | None:
        """Of the largest model measured; None: the kind has no model."""
        return max((p.model.num_parameters for p in self.points if p.model), default=None)


def fit_law(points: Sequence[MeasuredPoint]) -> Law:
    """The law of points of one kind on one machine.

    It has one term less than there are sizes, at most as many as TERMS says and at least one, so that the points can
    contradict it. Coefficients minimise sum((fitted / measured - 1)^2) under coefficients >= 0.
    """
    assert points
    kind, machine = points[0].kind, points[0].machine
    assert {(point.kind, point.machine) for point in points} == {(kind, machine)}
    quantities = [amounts(kind, point.model, point.work) for point in points]
    sizes = [(point.model, point.work) for point in points]
    terms = TERMS[kind][: max(1, len(set(sizes)) - 1)]
    seconds_per = _solve(quantities, [point.seconds for point in points], terms)

    def told(coefficients: dict[str, float], number: int) -> float:
        return sum(each * quantities[number][term] for term, each in coefficients.items())

    left_out: list[float] = []
    for number, size in enumerate(sizes if len(set(sizes)) > 1 else []):
        others = [other for other, its_size in enumerate(sizes) if its_size != size]
        without = _solve([quantities[o] for o in others], [points[o].seconds for o in others], terms)
        left_out.append(told(without, number))
    return Law(
        kind=kind,
        machine=machine,
        seconds_per=seconds_per,
        points=tuple(points),
        fitted_seconds=tuple(told(seconds_per, number) for number in range(len(points))),
        left_out_seconds=tuple(left_out),
        growth=fit_growth(points),
    )


def _solve(quantities: Sequence[dict[str, float]], seconds: Sequence[float], terms: Sequence[str]) -> dict[str, float]:
    """Non-negative least squares in relative error, exact: with at most four terms every subset of them is tried."""
    best: tuple[float, dict[str, float]] | None = None
    for number in range(1, min(len(terms), len(seconds)) + 1):
        for subset in combinations(terms, number):
            rows = np.array(
                [[amount[term] / s for term in subset] for amount, s in zip(quantities, seconds, strict=True)]
            )
            scale = rows.max(axis=0)
            if not scale.all():
                continue
            found, _, rank, _ = np.linalg.lstsq(rows / scale, np.ones(len(seconds)))
            error = float(((rows / scale @ found - 1) ** 2).sum())
            # More terms only for a better fit: two that say the same would share what is one's.
            if rank == number and (found >= 0).all() and (best is None or error < best[0] - 1e-12):
                best = error, dict(zip(subset, (found / scale).tolist(), strict=True))
    assert best, "the first term alone always fits: all amounts and seconds are above 0"
    return best[1]


def fit_growth(points: Sequence[MeasuredPoint]) -> Growth | None:
    """How seconds grow over points of one kind on one machine, whatever the law says; None below three sizes of work.

    log(seconds - start) = constant + of_work x log(tokens) + of_parameters x log(parameters), by least squares in
    relative error; `start` is searched for where there are at least two points more than exponents.
    """
    seconds = np.array([point.seconds for point in points])
    work = np.array([_grows(point) for point in points])
    parameters = np.array([point.model.num_parameters if point.model else 1 for point in points], dtype=float)
    num_models = len(set(parameters))
    if len(set(work)) < 3:
        return None
    columns = [np.ones(len(points)), np.log(work), *([np.log(parameters)] if num_models > 1 else [])]
    logs = np.stack(columns, axis=1)
    starts = np.linspace(0, float(seconds.min()), 200, endpoint=False) if len(points) > len(columns) + 1 else [0.0]
    best = (np.inf, 0.0, np.zeros(len(columns)))
    for start in map(float, starts):
        found, *_ = np.linalg.lstsq(logs, np.log(seconds - start))
        error = float(np.square((start + np.exp(logs @ found)) / seconds - 1).sum())
        if error < best[0] - 1e-12:
            best = error, start, found
    _, start, found = best
    return Growth(
        of_work=float(found[1]), of_parameters=float(found[2]) if num_models > 2 else None, start_seconds=start
    )


def _grows(point: MeasuredPoint) -> float:
    return float(getattr(point.work, LIGHT.get(point.kind, "num_tokens")))
