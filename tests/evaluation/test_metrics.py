import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasongenrm.config import EvaluateConfig
from reasongenrm.data.benchmarks import Benchmark, BenchmarkRow
from reasongenrm.errors import InputError
from reasongenrm.evaluation.calibration import Calibration
from reasongenrm.evaluation.evaluate import evaluation_files, evaluation_metrics
from reasongenrm.evaluation.metrics import (
    Evaluation,
    McNemar,
    RowResult,
    calibrate,
    evaluate,
    majority,
    mcnemar,
    order_accuracy,
    paired_difference,
    row_results,
)
from reasongenrm.records import OPPOSITE, JudgePrompt, Judgment, Verdict
from tests.judges import Judge, always_a, benchmark_of, contrarian, evaluated, judged, oracle, silent

A: Verdict = "[[A]]"
B: Verdict = "[[B]]"
VERDICTS: tuple[Verdict | None, ...] = (A, B, None)


def scripted(*verdicts: tuple[Verdict | None, Verdict | None]) -> Judge:
    """A judge that says (chosen first, rejected first) for row 0, 1, ... of whatever subset."""

    def judge(prompt: JudgePrompt, vote: int) -> Verdict | None:  # noqa: ARG001
        return verdicts[int(prompt.pair_id.rsplit("/", 1)[1])][prompt.label == B]

    return judge


def test_oracle_scores_one_and_is_consistent(tmp_path: Path) -> None:
    evaluation = evaluated(benchmark_of(tmp_path, {"hep-go": 3, "donotanswer": 2}), oracle)
    assert evaluation.accuracy == evaluation.row_accuracy == 1
    # Rows weigh alike within a section, and sections 1/2 each: the weightiest row is one of 2 of donotanswer's. As many
    # rows as 2 / (1/2) = 4, all right: Wilson's 4 / (4 + 1.96^2) to 1.
    assert evaluation.interval.low == pytest.approx(4 / (4 + 1.959964**2), abs=1e-6)
    assert evaluation.interval.high == 1
    assert [section.accuracy for section in evaluation.sections] == [1, 1]
    assert evaluation.consistent_accuracy == evaluation.consistent_fraction == 1
    assert (evaluation.flip_fraction, evaluation.undecided_fraction, evaluation.share_a) == (0, 0, 0.5)


def test_contrarian_scores_zero_and_is_consistent(tmp_path: Path) -> None:
    evaluation = evaluated(benchmark_of(tmp_path, {"sums": 3}), contrarian)
    assert evaluation.accuracy == evaluation.consistent_accuracy == 0
    assert (evaluation.consistent_fraction, evaluation.flip_fraction, evaluation.share_a) == (1, 0, 0.5)


def test_judge_that_always_says_a_scores_half_and_flips_every_row(tmp_path: Path) -> None:
    evaluation = evaluated(benchmark_of(tmp_path, {"sums": 4}), always_a)
    assert (evaluation.accuracy, evaluation.flip_fraction, evaluation.share_a) == (0.5, 1, 1)
    assert (evaluation.consistent_fraction, evaluation.consistent_accuracy) == (0, 0)


def test_silent_judge_scores_half_and_has_no_share_of_a(tmp_path: Path) -> None:
    evaluation = evaluated(benchmark_of(tmp_path, {"sums": 4}), silent)
    assert (evaluation.accuracy, evaluation.unparsed_fraction, evaluation.undecided_fraction) == (0.5, 1, 1)
    assert evaluation.share_a is None
    assert (evaluation.consistent_fraction, evaluation.flip_fraction) == (0, 0)


def test_unparsed_order_counts_half_of_its_half(tmp_path: Path) -> None:
    # Rows: right twice = 1; right and unparsed = 0.75; wrong and unparsed = 0.25; flipped = 0.5. Mean 2.5 / 4.
    judge = scripted((A, B), (A, None), (B, None), (A, A))
    evaluation = evaluated(benchmark_of(tmp_path, {"sums": 4}), judge)
    assert evaluation.accuracy == 0.625
    assert evaluation.consistent_accuracy == evaluation.consistent_fraction == 0.25
    assert (evaluation.flip_fraction, evaluation.undecided_fraction) == (0.25, 0.5)
    assert evaluation.unparsed_fraction == 2 / 8
    assert evaluation.share_a == 4 / 6


def test_sections_weigh_their_subsets_and_overall_weighs_the_sections(tmp_path: Path) -> None:
    # donotanswer: rows 1 and 0.5 = 0.75 (weight 136); xstest-should-refuse: row 0 = 1 (weight 154); hep-go: rows 1,
    # 0.5, 0 = 0.5.
    benchmark = benchmark_of(tmp_path, {"donotanswer": 2, "xstest-should-refuse": 1, "hep-go": 3})
    evaluation = evaluated(benchmark, scripted((A, B), (B, B), (B, A)))
    safety, reasoning = evaluation.sections
    assert (safety.section, reasoning.section) == ("Safety", "Reasoning")
    assert safety.accuracy == pytest.approx((136 * 0.75 + 154 * 1.0) / 290)
    assert reasoning.accuracy == pytest.approx(0.5)
    assert evaluation.accuracy == pytest.approx((safety.accuracy + 0.5) / 2)
    assert evaluation.row_accuracy == pytest.approx((1 + 0.5 + 1 + 1 + 0.5 + 0) / 6)
    assert {s.subset: s.accuracy for s in evaluation.subsets} == pytest.approx(
        {"donotanswer": 0.75, "xstest-should-refuse": 1, "hep-go": 0.5}
    )
    assert "math-prm" in reasoning.absent_subsets
    assert (safety.num_rows, reasoning.num_rows) == (3, 3)


def test_benchmark_with_subsets_of_its_own_takes_their_plain_mean(tmp_path: Path) -> None:
    evaluation = evaluated(benchmark_of(tmp_path, {"large": 3, "small": 1}), scripted((A, B), (B, A), (B, A)))
    assert evaluation.sections == ()
    assert evaluation.accuracy == pytest.approx((1 / 3 + 1) / 2)
    assert evaluation.row_accuracy == 0.5
    assert [s.weight for s in evaluation.subsets] == [0.5, 0.5]


def test_tokens_seconds_and_truncation_are_means_over_judgments(tmp_path: Path) -> None:
    benchmark = benchmark_of(tmp_path, {"sums": 1})
    first, second = judged(benchmark, oracle)
    judgments = [first, second.model_copy(update={"num_output_tokens": 30, "seconds": 1.5, "truncated": True})]
    evaluation = evaluate(judgments, benchmark, EvaluateConfig(), variant="sft", model="m", style="reason")
    assert (evaluation.mean_prompt_tokens, evaluation.mean_output_tokens, evaluation.mean_seconds) == (100, 20, 1)
    assert (evaluation.truncated_fraction, evaluation.num_judgments) == (0.5, 2)


def test_a_partial_benchmark_is_said_in_the_notes(tmp_path: Path) -> None:
    notes = " ".join(evaluated(benchmark_of(tmp_path, {"hep-go": 164, "donotanswer": 2}), oracle).notes)
    assert notes.startswith("Partial benchmark: 166 of RewardBench's 2,985 rows")
    assert evaluated(benchmark_of(tmp_path, {"sums": 10}), oracle).notes == ()


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([A], A),
        ([A, B, A], A),
        ([A, B], None),
        ([A, None, None], A),
        ([None, B, B, A], B),
        ([A, B, None], None),
        ([None, None], None),
    ],
)
def test_majority_ignores_unparsed_votes_and_a_tie_is_no_verdict(
    votes: list[Verdict | None], expected: Verdict | None
) -> None:
    assert majority(votes) == expected


def test_majority_vote_decides_the_order_and_counts_every_vote_as_a_judgment(tmp_path: Path) -> None:
    benchmark = benchmark_of(tmp_path, {"sums": 2})

    def judge(prompt: JudgePrompt, vote: int) -> Verdict | None:
        # chosen first: right, right, wrong = right; rejected first: right, unparsed, wrong = tie = half.
        if prompt.label == A:
            return B if vote == 2 else A
        return (B, None, A)[vote]

    evaluation = evaluated(benchmark, judge, votes=3)
    assert evaluation.accuracy == 0.75
    assert (evaluation.num_judgments, evaluation.unparsed_fraction) == (12, pytest.approx(1 / 6))
    assert evaluation.undecided_fraction == 1


def test_row_that_lacks_an_order_is_refused(tmp_path: Path) -> None:
    judgments = judged(benchmark_of(tmp_path, {"sums": 2}), oracle)
    with pytest.raises(InputError, match=r"row sums/1: no judgment in the order rejected_first"):
        row_results(judgments[:-1])


def test_judgments_of_other_rows_are_refused(tmp_path: Path) -> None:
    judgments = judged(benchmark_of(tmp_path, {"sums": 2}), oracle)
    more = benchmark_of(tmp_path, {"sums": 3})
    with pytest.raises(InputError, match=r"2 rows were judged, 3 were expected; the first that differs is sums/2"):
        evaluate(judgments, more, EvaluateConfig(), variant="sft", model="m", style="reason")


def probable(judgments: list[Judgment], of_label: float) -> list[Judgment]:
    """The same judgments, each with so much probability on its label."""
    return [
        judgment.model_copy(update={"p_a": of_label if judgment.label == A else 1 - of_label}) for judgment in judgments
    ]


def test_probabilities_are_calibrated_on_rows_that_were_held_out(tmp_path: Path) -> None:
    benchmark = benchmark_of(tmp_path, {"hep-go": 20})
    config = EvaluateConfig()
    # Right in 15 rows of 20 and always sure of it at 0.99: three quarters is what it should say.
    right, wrong = probable(judged(benchmark, oracle), 0.99), probable(judged(benchmark, contrarian), 0.01)
    judgments = [*right[:30], *wrong[30:]]
    found = evaluate(judgments, benchmark, config, variant="dpo", model="m", style="reason", model_digest="sha256:1")
    calibration = found.calibration
    assert calibration is not None
    assert (calibration.num_judgments, calibration.cross_validated, calibration.model_digest) == (40, True, "sha256:1")
    # 20 A and 20 B; labels smoothed to 21/22 and 1/22: (15 * 21 + 5 * 1) / 22 / 20 = 0.727 for either letter.
    assert calibration.apply(0.99) == pytest.approx(320 / 440, abs=1e-6)
    assert calibration.nll_before == pytest.approx(-(30 * math.log(0.99) + 10 * math.log(0.01)) / 40)
    assert calibration.nll_after < calibration.nll_before
    assert calibration.ece_after < calibration.ece_before == pytest.approx(0.24)
    files = evaluation_files(found, judgments, benchmark)
    assert Calibration.model_validate_json(files["judge_calibration.json"]) == calibration
    assert evaluation_metrics(found)["ece_after"] == calibration.ece_after


def test_few_or_unknown_probabilities_are_not_calibrated(tmp_path: Path) -> None:
    benchmark = benchmark_of(tmp_path, {"hep-go": 10})
    known = probable(judged(benchmark, oracle), 0.9)
    assert calibrate(known, None) is not None
    assert calibrate(known[:-1], None) is None
    evaluation = evaluated(benchmark, oracle)
    assert evaluation.calibration is None
    assert "judge_calibration.json" not in evaluation_files(evaluation, judged(benchmark, oracle), benchmark)
    assert "ece_after" not in evaluation_metrics(evaluation)


def test_evaluation_survives_its_json(tmp_path: Path) -> None:
    evaluation = evaluated(benchmark_of(tmp_path, {"hep-go": 2, "donotanswer": 1}), always_a)
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation
    resampled = {**evaluation.model_dump(mode="json"), "num_bootstrap": 10000}  # as a judge served before has it
    assert Evaluation.model_validate_json(json.dumps(resampled)) == evaluation


def test_interval_is_narrower_with_less_confidence(tmp_path: Path) -> None:
    benchmark = benchmark_of(tmp_path, {"sums": 40})
    judge = scripted(*[(A, B), (B, B)] * 20)
    wide, narrow = (evaluated(benchmark, judge, confidence=confidence).interval for confidence in (0.99, 0.5))
    assert wide.low < narrow.low < 0.75 < narrow.high < wide.high


def results(*accuracies: tuple[Verdict | None, Verdict | None]) -> list[RowResult]:
    return [
        RowResult(f"sums/{n}", "sums", {"chosen_first": first, "rejected_first": second})
        for n, (first, second) in enumerate(accuracies)
    ]


def test_paired_difference_is_taken_row_by_row() -> None:
    # Rows: 1 - 0.5, 0.5 - 0.5, 0 - 0: mean 1/6. Variance of the mean (1/9 + 1/36 + 1/36) / 2 / 3 = 1/36, k = 3.8415 / 3
    # = 1.2805: (1/6 -+ 1.96 sqrt(1/36 + 1.2805 / 3)) / 2.2805 = -0.5064 to 0.6526.
    ours, theirs = results((A, B), (A, A), (B, A)), results((A, A), (B, B), (B, A))
    difference = paired_difference(ours, theirs, confidence=0.95)
    assert difference.accuracy == pytest.approx(1 / 6)
    assert (difference.interval.low, difference.interval.high) == pytest.approx((-0.5064, 0.6526), abs=2e-4)
    assert not difference.is_clear


def test_difference_of_every_row_is_clear() -> None:
    ours, theirs = results(*[(A, B)] * 9), results(*[(A, A)] * 9)
    difference = paired_difference(ours, theirs, confidence=0.95)
    assert (difference.accuracy, difference.is_clear) == (0.5, True)
    assert 0 < difference.interval.low < 0.5 < difference.interval.high < 1


def test_two_judges_without_a_difference_may_yet_differ() -> None:
    # Tango's interval for 60 rows without one on which they differ: -+ 3.8415 / (60 + 3.8415) = 0.0602.
    both = results(*[(A, B)] * 60)
    difference = paired_difference(both, both, confidence=0.95)
    assert (difference.interval.low, difference.interval.high) == pytest.approx((-0.0602, 0.0602), abs=1e-4)
    assert (difference.accuracy, difference.is_clear) == (0, False)


@pytest.mark.parametrize(
    ("num_better", "num_worse", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * 1 / 2
        (5, 0, 0.0625),  # 2 * 1 / 32
        (2, 10, 158 / 4096),  # 2 * (1 + 12 + 66) / 2^12
        (3, 3, 1.0),  # 2 * (1 + 6 + 15 + 20) / 64 is more than 1
    ],
)
def test_mcnemar_is_exact_over_the_rows_on_which_judges_differ(num_better: int, num_worse: int, p_value: float) -> None:
    right, half, wrong = (A, B), (A, A), (B, A)
    same = [right, half, wrong]
    ours = results(*same, *[right] * num_better, *[wrong] * num_worse)
    theirs = results(*same, *[half] * num_better, *[right] * num_worse)
    assert mcnemar(ours, theirs) == McNemar(num_better=num_better, num_worse=num_worse, p_value=p_value)
    assert mcnemar(theirs, ours).p_value == p_value


def test_mcnemar_of_different_rows_is_refused() -> None:
    with pytest.raises(InputError, match="different rows"):
        mcnemar(results((A, B), (A, B)), results((A, B)))


def test_judges_of_different_rows_are_not_compared() -> None:
    with pytest.raises(InputError, match=r"different rows \(2 and 1\); expected the same benchmark, limit and seed"):
        paired_difference(results((A, B), (A, B)), results((A, B)), confidence=0.95)


def rows_in_subsets(subsets: Sequence[str]) -> Benchmark:
    rows = [
        BenchmarkRow(row_id=f"{subset}/{n}", subset=subset, question=(), chosen="yes", rejected="no")
        for n, subset in enumerate(subsets)
    ]
    return Benchmark("made.jsonl", tuple(rows), len(rows), "sha256:0")


tables = st.lists(
    st.tuples(
        st.sampled_from(["hep-go", "hep-rust", "donotanswer", "math-prm"]),
        st.sampled_from([*product(VERDICTS, VERDICTS)]),
    ),
    min_size=1,
    max_size=20,
)
Table = list[tuple[str, tuple[Verdict | None, Verdict | None]]]


def figures(benchmark: Benchmark, judgments: Sequence[Judgment]) -> Evaluation:
    config = EvaluateConfig()
    return evaluate(judgments, benchmark, config, variant="dpo", model="m", style="reason")


@settings(max_examples=60)
@given(tables)
def test_fractions_of_rows_add_up_and_bound_each_other(table: Table) -> None:
    benchmark = rows_in_subsets([subset for subset, _ in table])
    e = figures(benchmark, judged(benchmark, scripted(*[verdicts for _, verdicts in table])))
    assert e.consistent_fraction + e.flip_fraction + e.undecided_fraction == pytest.approx(1)
    assert 0 <= e.consistent_accuracy <= e.consistent_fraction <= 1
    assert 0 <= e.interval.low <= e.interval.high <= 1
    assert min(s.accuracy for s in e.subsets) - 1e-9 <= e.accuracy <= max(s.accuracy for s in e.subsets) + 1e-9
    assert sum(s.weight for s in e.subsets) == pytest.approx(1)


@settings(max_examples=60)
@given(tables)
def test_swapping_the_labels_turns_right_into_wrong_and_leaves_steadiness_alone(table: Table) -> None:
    benchmark = rows_in_subsets([subset for subset, _ in table])
    judge = scripted(*[verdicts for _, verdicts in table])

    def opposite(prompt: JudgePrompt, vote: int) -> Verdict | None:
        verdict = judge(prompt, vote)
        return None if verdict is None else OPPOSITE[verdict]

    one, other = figures(benchmark, judged(benchmark, judge)), figures(benchmark, judged(benchmark, opposite))
    assert one.accuracy == pytest.approx(1 - other.accuracy)
    assert [s.accuracy for s in one.subsets] == pytest.approx([1 - s.accuracy for s in other.subsets])
    assert one.consistent_fraction == other.consistent_fraction
    assert one.flip_fraction == other.flip_fraction
    if one.share_a is not None and other.share_a is not None:
        assert one.share_a == pytest.approx(1 - other.share_a)


@settings(max_examples=60)
@given(tables, st.randoms(use_true_random=False))
def test_order_of_the_judgments_does_not_matter(table: Table, random) -> None:  # type: ignore[no-untyped-def]
    benchmark = rows_in_subsets([subset for subset, _ in table])
    judgments = judged(benchmark, scripted(*[verdicts for _, verdicts in table]))
    shuffled = random.sample(judgments, len(judgments))
    assert figures(benchmark, shuffled).accuracy == pytest.approx(figures(benchmark, judgments).accuracy)


def test_no_verdict_is_worth_what_a_coin_gets() -> None:
    assert [order_accuracy(verdict, B) for verdict in (A, B, None)] == [0, 1, 0.5]
