"""Judges on the same rows: differences, tests and differing rows, worked by hand."""

from pathlib import Path

import pytest

from reasongenrm.config import EvaluateConfig
from reasongenrm.data.benchmarks import Benchmark
from reasongenrm.errors import InputError
from reasongenrm.evaluation.comparison import JudgedRows, compare_judges
from reasongenrm.evaluation.metrics import evaluate, row_results
from tests.evaluation.test_metrics import A, B, scripted
from tests.judges import Judge, benchmark_of, judged, oracle


def judged_rows(benchmark: Benchmark, judge: Judge) -> JudgedRows:
    judgments = judged(benchmark, judge)
    evaluation = evaluate(judgments, benchmark, EvaluateConfig(), variant="sft", model="m", style="reason")
    return JudgedRows(evaluation, row_results(judgments))


def test_judges_are_held_against_the_first(tmp_path: Path) -> None:
    benchmark = benchmark_of(tmp_path, {"sums": 4})
    # Rows: right; wrong; the same letter twice; right in one order, silent in the other.
    weak = judged_rows(benchmark, scripted((A, B), (B, A), (A, A), (A, None)))
    # The same letter twice, but the other one: the same accuracy, another judgment.
    other = judged_rows(benchmark, scripted((A, B), (B, A), (B, B), (A, None)))
    found = compare_judges({"weak": weak, "best": judged_rows(benchmark, oracle), "other": other})
    first, best, alike = found.judges
    assert (first.accuracy, first.difference, first.test) == (0.5625, None, None)  # (1 + 0 + 0.5 + 0.75) / 4
    assert best.difference is not None
    assert best.test is not None
    assert best.difference.accuracy == 0.4375
    assert best.difference.interval.low < 0.4375 < best.difference.interval.high
    assert (best.test.num_better, best.test.num_worse, best.test.p_value) == (3, 0, 0.25)  # 2 / 2^3
    assert alike.test is not None
    assert alike.difference is not None
    assert (alike.difference.accuracy, alike.test.num_better, alike.test.p_value) == (0, 0, 1)
    assert [row.row_id for row in found.rows] == ["sums/1", "sums/2", "sums/3"]
    assert found.rows[1].accuracies == {"weak": 0.5, "best": 1, "other": 0.5}
    assert [[*verdicts.values()] for verdicts in found.rows[2].verdicts.values()] == [[A, None], [A, B], [A, None]]
    assert [*found.rows[0].labels.values()] == [A, B]
    assert (found.num_rows, found.confidence, found.benchmark) == (4, 0.95, "bench.jsonl")


def test_other_rows_and_a_single_judge_are_refused(tmp_path: Path) -> None:
    few = judged_rows(benchmark_of(tmp_path, {"sums": 4}), oracle)
    many = judged_rows(benchmark_of(tmp_path, {"sums": 5}, "other.jsonl"), oracle)
    with pytest.raises(InputError, match=r"a judged 4 rows of .*bench\.jsonl and b 5 rows of .*other\.jsonl; expected"):
        compare_judges({"a": few, "b": many})
    with pytest.raises(InputError, match=r"one judge \(a\) cannot be compared"):
        compare_judges({"a": few})
