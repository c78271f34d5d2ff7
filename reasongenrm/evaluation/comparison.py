"""Judges held against each other on the same rows: paired differences, exact McNemar, and where they differ.

In go evaluations with their judgments, out comes a `JudgeComparison`; `reasongenrm compare` shows it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from reasongenrm.data.benchmarks import LABELS, ORDERS
from reasongenrm.errors import InputError
from reasongenrm.evaluation.intervals import Interval
from reasongenrm.evaluation.metrics import Difference, Evaluation, McNemar, RowResult, mcnemar, paired_difference
from reasongenrm.records import Order, Record, Verdict


@dataclass(frozen=True)
class JudgedRows:
    """One judge's figures, and its verdicts row by row."""

    evaluation: Evaluation
    results: Sequence[RowResult]


class ComparedJudge(Record):
    """One judge; `difference` and `test` are to the first judge of the comparison, which has none."""

    name: str
    model: str
    accuracy: float
    interval: Interval
    consistent_fraction: float
    unparsed_fraction: float
    difference: Difference | None
    test: McNemar | None


class DifferingRow(Record):
    """A row on which two judges at least gave different verdicts, in one of its orders or in both.

    `labels`: the right verdict in each order; `verdicts`: by judge, None for no verdict; `accuracies`: by judge, the
    mean over both orders of 1 (right), 0 (wrong) or 0.5 (no verdict).
    """

    row_id: str
    subset: str
    labels: dict[Order, Verdict]
    verdicts: dict[str, dict[Order, Verdict | None]]
    accuracies: dict[str, float]


class JudgeComparison(Record):
    """Judges in the order given, and the rows on which they differ in the order of the benchmark."""

    benchmark: str
    num_rows: int
    confidence: float
    judges: tuple[ComparedJudge, ...]
    rows: tuple[DifferingRow, ...]


def compare_judges(judged: Mapping[str, JudgedRows]) -> JudgeComparison:
    """Hold judges against the first one, row by row: rows that are hard for all cancel out.

    Args:
        judged: by the judge's name, two at least.

    Raises:
        InputError: fewer than two judges, or they judged different rows.
    """
    if len(judged) < 2:
        raise InputError(f"one judge ({', '.join(judged)}) cannot be compared; expected two or more. Name another.")
    for (name, ours), (other, theirs) in pairwise(judged.items()):
        if ours.evaluation.benchmark.rows_digest != theirs.evaluation.benchmark.rows_digest:
            raise InputError(
                f"{name} judged {_rows_of(ours)} and {other} {_rows_of(theirs)}; expected the same rows. Evaluate both "
                "on one benchmark, with the same limit and seed."
            )
    first = next(iter(judged.values()))
    confidence = first.evaluation.confidence
    judges = []
    for name, one in judged.items():
        found, is_first = one.evaluation, one is first
        judges.append(
            ComparedJudge(
                name=name,
                model=found.model,
                accuracy=found.accuracy,
                interval=found.interval,
                consistent_fraction=found.consistent_fraction,
                unparsed_fraction=found.unparsed_fraction,
                difference=None if is_first else paired_difference(one.results, first.results, confidence=confidence),
                test=None if is_first else mcnemar(one.results, first.results),
            )
        )
    return JudgeComparison(
        benchmark=first.evaluation.benchmark.name,
        num_rows=first.evaluation.benchmark.num_rows,
        confidence=confidence,
        judges=tuple(judges),
        rows=tuple(_differing(judged)),
    )


def _differing(judged: Mapping[str, JudgedRows]) -> list[DifferingRow]:
    by_judge = {name: {result.row_id: result for result in one.results} for name, one in judged.items()}
    rows = []
    for result in next(iter(judged.values())).results:
        found = {name: results[result.row_id] for name, results in by_judge.items()}
        if len({tuple(one.verdicts[order] for order in ORDERS) for one in found.values()}) > 1:
            rows.append(
                DifferingRow(
                    row_id=result.row_id,
                    subset=result.subset,
                    labels=dict(LABELS),
                    verdicts={name: dict(one.verdicts) for name, one in found.items()},
                    accuracies={name: one.accuracy for name, one in found.items()},
                )
            )
    return rows


def _rows_of(one: JudgedRows) -> str:
    return f"{one.evaluation.benchmark.num_rows:,} rows of {one.evaluation.benchmark.uri}"
