"""Picks wrong judgments that are worth reading.

In go the rows and the judgments of one judge; out come a few cases of every kind of failure, from different subsets,
and how many of each kind there were.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from reasongenrm.data.benchmarks import LABELS, ORDERS, BenchmarkRow
from reasongenrm.data.prompts import question_text
from reasongenrm.evaluation.metrics import RowResult, majority, row_results
from reasongenrm.records import Judgment, Order, Record, Verdict

CaseKind = Literal["flipped", "wrong", "unparsed", "truncated"]
KINDS: tuple[CaseKind, ...] = get_args(CaseKind)

# Rows whose texts are longer than this come last: a gallery is read by people.
READABLE_CHARS = 3000


class OrderCase(Record):
    """One order of a case: what was said. With several votes, `reason` and `answer` are those of the first vote."""

    order: Order
    label: Verdict
    verdict: Verdict | None
    votes: tuple[Verdict | None, ...]
    reason: str | None
    answer: str
    truncated: bool


class Case(Record):
    """One row that a judge got wrong, with everything needed to understand how."""

    kind: CaseKind
    variant: str
    row_id: str
    subset: str
    question: str
    chosen: str
    rejected: str
    chosen_model: str
    rejected_model: str
    orders: tuple[OrderCase, ...]


def case_kind(result: RowResult, judgments: Iterable[Judgment]) -> CaseKind | None:
    """How a row went wrong; None if both orders are right.

    "truncated": an order has no verdict and was cut off by the token limit; "unparsed": an order has no verdict;
    "flipped": the orders name different answers; "wrong": both name the wrong one.
    """
    if result.accuracy == 1:
        return None
    if result.agreement == "undecided":
        undecided = {order for order, verdict in result.verdicts.items() if verdict is None}
        was_cut = any(judgment.truncated and judgment.order in undecided for judgment in judgments)
        return "truncated" if was_cut else "unparsed"
    return "flipped" if result.agreement == "flipped" else "wrong"


def pick_cases(
    rows: Sequence[BenchmarkRow], judgments: Sequence[Judgment], variant: str, per_kind: int
) -> tuple[tuple[Case, ...], dict[CaseKind, int]]:
    """Up to `per_kind` cases of every kind, each from another subset as long as there is one, and the counts by kind.

    The choice depends on nothing but the rows and the judgments.
    """
    row_of = {row.row_id: row for row in rows}
    judged: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        judged[judgment.row_id].append(judgment)
    found: dict[CaseKind, list[BenchmarkRow]] = {kind: [] for kind in KINDS}
    for result in row_results(judgments):
        kind = case_kind(result, judged[result.row_id])
        if kind is not None:
            found[kind].append(row_of[result.row_id])
    cases = [_case(kind, variant, row, judged[row.row_id]) for kind in KINDS for row in _varied(found[kind])[:per_kind]]
    return tuple(cases), {kind: len(found[kind]) for kind in KINDS}


def _varied(rows: Iterable[BenchmarkRow]) -> list[BenchmarkRow]:
    """Readable rows first, the subsets taking turns; an arbitrary but fixed choice within a subset."""
    turns: Counter[str] = Counter()
    turn_of = {}
    for row in sorted(rows, key=_fixed_lot):
        turn_of[row.row_id] = turns[row.subset]
        turns[row.subset] += 1
    return sorted(rows, key=lambda row: (turn_of[row.row_id], _fixed_lot(row)))


def _fixed_lot(row: BenchmarkRow) -> tuple[bool, str]:
    num_chars = len(row.chosen) + len(row.rejected) + sum(len(message.content) for message in row.question)
    return num_chars > READABLE_CHARS, hashlib.sha256(row.row_id.encode()).hexdigest()


def _case(kind: CaseKind, variant: str, row: BenchmarkRow, judgments: Sequence[Judgment]) -> Case:
    copied = ("row_id", "subset", "chosen", "rejected", "chosen_model", "rejected_model")
    return Case(
        kind=kind,
        variant=variant,
        question=question_text(row.question),
        orders=tuple(_order_case(order, [j for j in judgments if j.order == order]) for order in ORDERS),
        **{name: getattr(row, name) for name in copied},
    )


def _order_case(order: Order, judgments: Iterable[Judgment]) -> OrderCase:
    votes = sorted(judgments, key=lambda judgment: judgment.vote)
    verdicts = tuple(judgment.verdict for judgment in votes)
    return OrderCase(
        order=order,
        label=LABELS[order],
        verdict=majority(verdicts),
        votes=verdicts,
        reason=votes[0].reason,
        answer=votes[0].answer,
        truncated=any(judgment.truncated for judgment in votes),
    )
