"""Judgments to metrics: accuracy with its interval, per subset, section and overall; consistency.

Pure functions over records: `evaluate` turns one judge's judgments into an `Evaluation`, `paired_difference` compares
two judges on the same rows. `evaluate.py` has the judging itself.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from reasongenrm.config import EvaluateConfig
from reasongenrm.data.benchmarks import LABELS, ORDERS, Benchmark, rows_digest
from reasongenrm.data.sections import SECTION_OF, SECTIONS, Coverage, subset_weights
from reasongenrm.errors import InputError
from reasongenrm.evaluation.calibration import Calibration, fit
from reasongenrm.evaluation.intervals import Interval, mean_interval, tidy
from reasongenrm.records import Judgment, Order, Record, Verdict
from reasongenrm.variants import JudgeStyle

ACCURACY_BOUNDS = (0.0, 1.0)  # of a row
DIFFERENCE_BOUNDS = (-1.0, 1.0)

# Two numbers are fitted, five times over: 20 judgments are 10 rows in both orders, 16 judgments a fit.
MIN_CALIBRATION_JUDGMENTS = 20


class BenchmarkInfo(Record):
    """Which benchmark an evaluation is of, and how much of it. `coverage` is None for other subsets than RewardBench's.

    `digest` is of the whole benchmark, `rows_digest` of the rows that were judged.
    """

    uri: str
    name: str
    digest: str
    rows_digest: str
    num_rows: int
    num_available_rows: int
    is_rewardbench: bool
    coverage: Coverage | None
    dropped: dict[str, int] = Field(default_factory=dict)  # rows that hold no preference, by cause; not available


class SubsetScore(Record):
    """Accuracy on one subset, in [0, 1]. `weight`: its share of the overall accuracy."""

    subset: str
    section: str | None
    num_rows: int
    weight: float
    accuracy: float
    interval: Interval


class SectionScore(Record):
    """Accuracy on one section, in [0, 1]: the mean of its present subsets, weighted as in `rewardbench.SECTIONS`."""

    section: str
    num_rows: int
    subsets: tuple[str, ...]
    absent_subsets: tuple[str, ...]
    accuracy: float
    interval: Interval


class HeldScore(Record):
    """Accuracy of a judge whose answer was held to a verdict, as the headline is computed."""

    accuracy: float
    interval: Interval


class Evaluation(Record):
    """What one judge did on one benchmark. Fractions are of rows or of judgments, in [0, 1]."""

    schema_version: Literal[1] = 1
    variant: str  # of `VARIANTS`, or any other name for a judge outside a run
    model: str
    style: JudgeStyle
    two_step: bool
    votes: int
    benchmark: BenchmarkInfo
    # The headline. RewardBench: plain mean of the sections; other benchmarks: plain mean of the subsets.
    accuracy: float
    interval: Interval
    confidence: float
    row_accuracy: float  # plain mean over all rows, whatever their subset
    sections: tuple[SectionScore, ...]
    subsets: tuple[SubsetScore, ...]
    consistent_accuracy: float  # rows with both orders right
    consistent_fraction: float  # rows whose two orders name the same answer
    flip_fraction: float  # rows whose two orders name different answers (the same letter twice)
    undecided_fraction: float  # rows with an order that has no verdict: unparsed, or a tie of votes
    share_a: float | None  # share of [[A]] among the parsed judgments; None if none was parsed
    num_judgments: int
    unparsed_fraction: float  # judgments without a verdict
    truncated_fraction: float  # judgments that the token limit cut off
    num_refused: int = 0  # judgments that the endpoint refused to give, such as by a content filter
    mean_prompt_tokens: float
    mean_output_tokens: float
    mean_seconds: float  # wall time a judgment, each in its batch or among its concurrent requests
    # What a reader must know to read the figures (a partial benchmark, a limit).
    notes: tuple[str, ...]
    # Of the judge's P([[A]]), with figures before and after, those after from rows held out of the fit; None if the
    # engine gave no probabilities, or of fewer than MIN_CALIBRATION_JUDGMENTS.
    calibration: Calibration | None = None
    # Of a judge in plain chat, asked once more for [[A]] or [[B]] and nothing else: what it knows, whatever it writes.
    # None for a trained judge, and for one behind an endpoint.
    held: HeldScore | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_resamples(cls, data: Any) -> Any:
        """The judge that is served may have an evaluation from when intervals were resampled; the gate reads it."""
        return (
            {name: value for name, value in data.items() if name != "num_bootstrap"}
            if "num_bootstrap" in data
            else data
        )


class Difference(Record):
    """Accuracy of one judge minus that of another on the same rows, with its paired interval."""

    accuracy: float
    interval: Interval

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval.low > 0 or self.interval.high < 0


class McNemar(Record):
    """Two judges on the same rows: on how many the first is more often right, or less often, than the second.

    `p_value`: two-sided, in (0, 1]: how probable a split at least as uneven is if both were equally likely to be ahead
    on a row on which they differ; 1 without such a row.
    """

    num_better: int
    num_worse: int
    p_value: float


@dataclass(frozen=True)
class RowResult:
    """One row judged in both orders; a verdict is the majority of the order's votes, None if there is none."""

    row_id: str
    subset: str
    verdicts: Mapping[Order, Verdict | None]

    @property
    def accuracy(self) -> float:
        """Mean over the two orders of 1 (right), 0 (wrong) or 0.5 (no verdict). Source: docs/method.md, section 7."""
        return sum(order_accuracy(verdict, LABELS[order]) for order, verdict in self.verdicts.items()) / len(ORDERS)

    @property
    def agreement(self) -> Literal["consistent", "flipped", "undecided"]:
        """Consistent orders name the same answer: the letter changes, as the answers changed places."""
        first, second = (self.verdicts[order] for order in ORDERS)
        return "undecided" if first is None or second is None else "flipped" if first == second else "consistent"


def order_accuracy(verdict: Verdict | None, label: Verdict) -> float:
    """1 for the right verdict, 0 for the wrong one, 0.5 for none: what a coin would get."""
    return 0.5 if verdict is None else float(verdict == label)


def majority(verdicts: Iterable[Verdict | None]) -> Verdict | None:
    """The verdict that most votes name. Unparsed votes abstain; a tie, or no vote left, is no verdict."""
    votes = Counter(verdict for verdict in verdicts if verdict is not None)
    if votes["[[A]]"] == votes["[[B]]"]:
        return None
    return "[[A]]" if votes["[[A]]"] > votes["[[B]]"] else "[[B]]"


def row_results(judgments: Iterable[Judgment]) -> list[RowResult]:
    """Judgments of one judge put together by row, in the order in which rows first appear.

    Raises:
        InputError: a row lacks one of its orders.
    """
    votes: dict[str, dict[Order, list[Verdict | None]]] = defaultdict(lambda: {order: [] for order in ORDERS})
    subsets: dict[str, str] = {}
    for judgment in judgments:
        votes[judgment.row_id][judgment.order].append(judgment.verdict)
        subsets[judgment.row_id] = judgment.subset
    missing = next(((row_id, order) for row_id, orders in votes.items() for order in ORDERS if not orders[order]), None)
    if missing:
        raise InputError(f"row {missing[0]}: no judgment in the order {missing[1]}; expected both. Evaluate again.")
    return [
        RowResult(row_id, subsets[row_id], {order: majority(found) for order, found in orders.items()})
        for row_id, orders in votes.items()
    ]


def evaluate(
    judgments: Sequence[Judgment],
    benchmark: Benchmark,
    config: EvaluateConfig,
    *,
    variant: str,
    model: str,
    style: JudgeStyle,
    model_digest: str | None = None,
    held: Sequence[Judgment] = (),
) -> Evaluation:
    """Figures of one judge on one benchmark.

    Intervals are over rows within each subset (`mean_interval`): a section's mix of subsets stays as it is.

    Args:
        judgments: both orders and all votes of every row of the benchmark.
        config: votes, two_step and confidence are used.
        model: the checkpoint's URI or the endpoint's model name.
        model_digest: of the checkpoint, for its calibration.
        held: judgments of the same rows with the answer held to a verdict; () without.

    Raises:
        InputError: the judgments are not those of the benchmark's rows.
    """
    results = row_results(judgments)
    judged, expected = {result.row_id for result in results}, {row.row_id for row in benchmark.rows}
    if judged != expected:
        raise InputError(
            f"{benchmark.uri}: {len(judged)} rows were judged, {len(expected)} were expected; the first that differs "
            f"is {min(judged ^ expected)}. Evaluate with the same benchmark, limit and seed as the judging."
        )
    subsets = benchmark.subsets()
    weights = subset_weights(subsets)
    values = _by_subset(subsets, results, [result.accuracy for result in results])
    overall = [weights[subset] for subset in subsets]

    def scored(shares: Sequence[float], values: Mapping[str, Sequence[float]] = values) -> dict[str, Any]:
        point = sum(share * _mean(values[subset]) for share, subset in zip(shares, subsets, strict=True))
        interval = mean_interval([values[s] for s in subsets], shares, config.confidence, ACCURACY_BOUNDS)
        return {"accuracy": tidy(point), "interval": interval}

    held_results = row_results(held)
    held_values = _by_subset(subsets, held_results, [result.accuracy for result in held_results])

    sections = []
    for section in dict.fromkeys(SECTION_OF[subset] for subset in subsets) if benchmark.is_rewardbench else ():
        inside = {s: float(SECTIONS[section][s]) for s in subsets if SECTION_OF[s] == section}
        sections.append(
            SectionScore(
                section=section,
                num_rows=sum(len(values[subset]) for subset in inside),
                subsets=tuple(inside),
                absent_subsets=tuple(subset for subset in SECTIONS[section] if subset not in inside),
                **scored([inside.get(subset, 0.0) / sum(inside.values()) for subset in subsets]),
            )
        )
    subset_scores = [
        SubsetScore(
            subset=subset,
            section=SECTION_OF.get(subset),
            num_rows=len(values[subset]),
            weight=weights[subset],
            **scored([float(other == subset) for other in subsets]),
        )
        for subset in subsets
    ]
    parsed = [judgment.verdict for judgment in judgments if judgment.verdict is not None]
    return Evaluation(
        variant=variant,
        model=model,
        style=style,
        two_step=config.two_step and style == "reason",
        votes=config.votes,
        benchmark=BenchmarkInfo(
            uri=benchmark.uri,
            name=benchmark.name,
            digest=benchmark.digest,
            rows_digest=rows_digest(benchmark.rows),
            num_rows=len(benchmark.rows),
            num_available_rows=benchmark.num_available_rows,
            is_rewardbench=benchmark.is_rewardbench,
            coverage=benchmark.coverage(),
            dropped=dict(sorted(benchmark.drops.causes.items())),
        ),
        **scored(overall),
        held=HeldScore(**scored(overall, held_values)) if held else None,
        confidence=config.confidence,
        row_accuracy=tidy(_mean(result.accuracy for result in results)),
        sections=tuple(sections),
        subsets=tuple(subset_scores),
        consistent_accuracy=_mean(result.accuracy == 1 for result in results),
        consistent_fraction=_mean(result.agreement == "consistent" for result in results),
        flip_fraction=_mean(result.agreement == "flipped" for result in results),
        undecided_fraction=_mean(result.agreement == "undecided" for result in results),
        share_a=_mean(verdict == "[[A]]" for verdict in parsed) if parsed else None,
        num_judgments=len(judgments),
        unparsed_fraction=1 - len(parsed) / len(judgments),
        truncated_fraction=_mean(judgment.truncated for judgment in judgments),
        num_refused=sum(judgment.refused for judgment in judgments),
        mean_prompt_tokens=_mean(judgment.num_prompt_tokens for judgment in judgments),
        mean_output_tokens=_mean(judgment.num_output_tokens for judgment in judgments),
        mean_seconds=_mean(judgment.seconds for judgment in judgments),
        notes=_notes(benchmark),
        calibration=calibrate(judgments, model_digest),
    )


def calibrate(judgments: Iterable[Judgment], model_digest: str | None) -> Calibration | None:
    """Fit the judge's P([[A]]) to the labels; rows are held out whole, both orders and all votes.

    Returns:
        None if fewer than MIN_CALIBRATION_JUDGMENTS have a probability.
    """
    known = [judgment for judgment in judgments if judgment.p_a is not None]
    row_ids = [judgment.row_id for judgment in known]
    if len(known) < MIN_CALIBRATION_JUDGMENTS or len(set(row_ids)) < 2:
        return None
    p = [judgment.p_a for judgment in known if judgment.p_a is not None]
    found = fit(p, [judgment.label == "[[A]]" for judgment in known], row_ids)
    return found.model_copy(update={"model_digest": model_digest})


def paired_difference(ours: Sequence[RowResult], theirs: Sequence[RowResult], *, confidence: float) -> Difference:
    """Overall accuracy of `ours` minus `theirs`, row by row: rows that are hard for both cancel out.

    Raises:
        InputError: the two did not judge the same rows.
    """
    differences = _row_differences(ours, theirs)
    present = {result.subset for result in ours}
    subsets = [s for s in SECTION_OF if s in present] or sorted(present)
    values = _by_subset(subsets, ours, differences)
    weights = [subset_weights(subsets)[subset] for subset in subsets]
    interval = mean_interval([values[s] for s in subsets], weights, confidence, DIFFERENCE_BOUNDS)
    point = sum(weight * _mean(values[subset]) for weight, subset in zip(weights, subsets, strict=True))
    return Difference(accuracy=tidy(point), interval=interval)


def mcnemar(ours: Sequence[RowResult], theirs: Sequence[RowResult]) -> McNemar:
    """Exact McNemar test of two judges on the same rows, each row of equal weight.

    A row judged in both orders is right by halves: the judge of the higher accuracy has it. With one order a row this
    is McNemar's test; with halves it is the sign test of the differences, its other name.

    Raises:
        InputError: the two did not judge the same rows.

    Source: McNemar, Note on the Sampling Error of the Difference between Correlated Proportions or Percentages,
    Psychometrika 12 (1947); exact, by the binomial distribution of the rows on which they differ.
    """
    differences = _row_differences(ours, theirs)
    num_better, num_worse = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
    num_differing = num_better + num_worse
    tail = sum(math.comb(num_differing, k) for k in range(min(num_better, num_worse) + 1))
    p_value = min(1.0, 2 * tail / 2**num_differing)
    return McNemar(num_better=num_better, num_worse=num_worse, p_value=p_value)


def _row_differences(ours: Sequence[RowResult], theirs: Sequence[RowResult]) -> list[float]:
    """Accuracy of `ours` minus `theirs`, in the order of `ours`."""
    other = {result.row_id: result for result in theirs}
    if other.keys() != {result.row_id for result in ours}:
        raise InputError(
            f"the judges were given different rows ({len(ours)} and {len(other)}); expected the same benchmark, limit "
            "and seed. Evaluate both on one benchmark."
        )
    return [result.accuracy - other[result.row_id].accuracy for result in ours]


def _by_subset(subsets: Iterable[str], results: Sequence[RowResult], values: Sequence[float]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {subset: [] for subset in subsets}
    for result, value in zip(results, values, strict=True):
        found[result.subset].append(value)
    return found


def _notes(benchmark: Benchmark) -> tuple[str, ...]:
    coverage = benchmark.coverage()
    notes = list(coverage.sentences()) if coverage else []
    if benchmark.drops.causes:
        dropped = ", ".join(f"{count} {cause}" for cause, count in sorted(benchmark.drops.causes.items()))
        notes.append(f"Rows of {benchmark.name} that hold no preference were left out: {dropped}.")
    if len(benchmark.rows) < benchmark.num_available_rows:
        notes.append(
            f"A limit chose {len(benchmark.rows):,} of the {benchmark.num_available_rows:,} rows in {benchmark.name}."
        )
    return tuple(notes)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
