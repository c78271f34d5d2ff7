from pathlib import Path

import pytest

from reasongenrm.data.benchmarks import Benchmark
from reasongenrm.evaluation.gallery import KINDS, case_kind, pick_cases
from reasongenrm.evaluation.metrics import row_results
from reasongenrm.records import JudgePrompt, Judgment, Verdict
from tests.judges import Judge, always_a, benchmark_of, contrarian, judged, oracle, silent


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    return benchmark_of(tmp_path, {"sums": 6, "products": 6})


@pytest.mark.parametrize(
    ("judge", "kind"), [(oracle, None), (always_a, "flipped"), (contrarian, "wrong"), (silent, "unparsed")]
)
def test_kind_of_a_row_says_how_it_went_wrong(benchmark: Benchmark, judge: Judge, kind: str | None) -> None:
    judgments = judged(benchmark, judge)
    assert {case_kind(result, judgments) for result in row_results(judgments)} == {kind}


def cut_off(judgment: Judgment) -> Judgment:
    return judgment.model_copy(update={"truncated": True})


def test_row_is_cut_off_only_where_the_cut_cost_the_verdict(benchmark: Benchmark) -> None:
    first, second = judged(benchmark, silent)[:2]
    right = first.model_copy(update={"verdict": first.label})
    (undecided,) = row_results([right, second])
    assert case_kind(undecided, [right, cut_off(second)]) == "truncated"
    assert case_kind(undecided, [cut_off(right), second]) == "unparsed"


def test_gallery_counts_all_and_shows_a_few_of_each_kind_from_different_subsets(benchmark: Benchmark) -> None:
    def judge(prompt: JudgePrompt, vote: int) -> Verdict | None:
        number = int(prompt.pair_id.rsplit("/", 1)[1])
        return [oracle, oracle, always_a, contrarian, contrarian, silent][number](prompt, vote)

    cases, counts = pick_cases(benchmark.rows, judged(benchmark, judge), "dpo", per_kind=2)
    assert counts == {"flipped": 2, "wrong": 4, "unparsed": 2, "truncated": 0}
    assert [case.kind for case in cases] == ["flipped"] * 2 + ["wrong"] * 2 + ["unparsed"] * 2
    for kind in KINDS[:3]:
        assert {case.subset for case in cases if case.kind == kind} == {"sums", "products"}
    assert {case.variant for case in cases} == {"dpo"}


def test_choice_is_the_same_whatever_the_order_of_the_rows(benchmark: Benchmark) -> None:
    judgments = judged(benchmark, always_a)
    forward, _ = pick_cases(benchmark.rows, judgments, "dpo", per_kind=3)
    backward, _ = pick_cases(benchmark.rows[::-1], judgments[::-1], "dpo", per_kind=3)
    assert forward == backward


def test_rows_too_long_to_read_come_last(benchmark: Benchmark) -> None:
    rows = [
        row.model_copy(update={"chosen": row.chosen * 500}) if row.row_id != "sums/4" else row
        for row in benchmark.rows[:6]
    ]
    cases, _ = pick_cases(rows, judged(benchmark, contrarian)[:12], "dpo", per_kind=1)
    assert [case.row_id for case in cases] == ["sums/4"]


def test_case_holds_what_a_reader_needs(benchmark: Benchmark) -> None:
    cases, _ = pick_cases(benchmark.rows, judged(benchmark, always_a, votes=3), "sft", per_kind=1)
    (case,) = cases
    first, second = case.orders
    assert case.question.startswith("What is ")
    assert case.chosen != case.rejected
    assert (first.order, first.label, first.verdict, first.votes) == ("chosen_first", "[[A]]", "[[A]]", ("[[A]]",) * 3)
    assert (second.order, second.label, second.verdict) == ("rejected_first", "[[B]]", "[[A]]")
    assert first.reason == "Counting on the fingers decides."
