import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.config import GateConfig
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.evaluation.decision import Champion, Decision, decide, decision_markdown
from reasongenrm.evaluation.intervals import Interval
from reasongenrm.evaluation.metrics import Difference, Evaluation
from tests.judges import benchmark_of, evaluated, oracle


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    """A perfect evaluation of a benchmark without sections, to change."""
    return evaluated(benchmark_of(tmp_path, {"sums": 20}), oracle)


def variants(evaluation: Evaluation, figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Evaluation]:
    """Evaluations with these figures; the interval is 5 points either way unless given."""
    return {
        variant: evaluation.model_copy(
            update={
                "variant": variant,
                "interval": Interval(low=changes["accuracy"] - 0.05, high=changes["accuracy"] + 0.05),
                **changes,
            }
        )
        for variant, changes in figures.items()
    }


def chosen(evaluation: Evaluation, figures: Mapping[str, Mapping[str, Any]], **thresholds: Any) -> Decision:
    return decide(GateConfig(**thresholds), variants(evaluation, figures), {})


def test_highest_accuracy_wins_among_those_that_pass(evaluation: Evaluation) -> None:
    decision = chosen(evaluation, {"base": {"accuracy": 0.5}, "sft": {"accuracy": 0.8}, "dpo": {"accuracy": 0.85}})
    assert (decision.winner, decision.passed) == ("dpo", True)
    assert decision.summary == "ReasonGenRM-dpo wins with 85.0 % and passes the gate as the best of 2 candidates."
    assert [candidate.variant for candidate in decision.candidates] == ["dpo", "sft"]


def test_candidate_that_passes_wins_over_a_more_accurate_one_that_does_not(evaluation: Evaluation) -> None:
    figures = {"base": {"accuracy": 0.5}, "sft": {"accuracy": 0.8}, "dpo": {"accuracy": 0.9, "unparsed_fraction": 0.2}}
    decision = chosen(evaluation, figures)
    assert (decision.winner, decision.passed) == ("sft", True)
    assert decision.remarks[0] == (
        "ReasonGenRM-dpo scores higher (90.0 %) but does not pass: no verdict in 20.0 % of the judgments (at most 5.0 "
        "% allowed)."
    )


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"interval": Interval(low=0.599, high=0.9)}, "accuracy"),
        ({"consistent_fraction": 0.599}, "consistency"),
        ({"unparsed_fraction": 0.051}, "unparsed"),
        ({"accuracy": 0.7, "interval": Interval(low=0.65, high=0.75)}, "beats_base"),
    ],
)
def test_each_threshold_alone_keeps_a_candidate_out(
    evaluation: Evaluation, changes: dict[str, Any], check: str
) -> None:
    figures = {"base": {"accuracy": 0.7}, "dpo": {"accuracy": 0.8, **changes}}
    decision = chosen(evaluation, figures, candidates=("dpo",))
    (candidate,) = decision.candidates
    assert not decision.passed
    assert [c.name for c in candidate.checks if not c.passed] == [check]
    assert "1 of its 4 checks speaks against it" in decision.summary


def test_figures_at_the_threshold_pass(evaluation: Evaluation) -> None:
    at_the_edge = {
        "accuracy": 0.7,
        "interval": Interval(low=0.6, high=0.8),
        "consistent_fraction": 0.6,
        "unparsed_fraction": 0.05,
    }
    assert chosen(evaluation, {"base": {"accuracy": 0.6999}, "sft": at_the_edge}, candidates=("sft",)).passed


@pytest.mark.parametrize(
    ("better", "figures"),
    [
        ("sft", {"sft": {"consistent_fraction": 0.9}, "dpo": {"consistent_fraction": 0.8}}),
        ("sft", {"sft": {"mean_output_tokens": 90.0}, "dpo": {"mean_output_tokens": 100.0}}),
        ("dpo", {"sft": {}, "dpo": {}}),
    ],
)
def test_equal_accuracy_is_decided_by_consistency_then_tokens_then_the_configs_order(
    evaluation: Evaluation, better: str, figures: dict[str, dict[str, Any]]
) -> None:
    same = {variant: {"accuracy": 0.8, **changes} for variant, changes in figures.items()}
    assert chosen(evaluation, same, candidates=("dpo", "sft"), beat_base=False).winner == better


def test_base_need_not_beat_itself(evaluation: Evaluation) -> None:
    decision = chosen(evaluation, {"base": {"accuracy": 0.8}}, candidates=("base",))
    assert decision.passed
    assert [check.name for check in decision.candidates[0].checks] == ["accuracy", "consistency", "unparsed"]


def test_genrm_that_scores_higher_is_remarked_on(evaluation: Evaluation) -> None:
    figures = {"base": {"accuracy": 0.5}, "genrm": {"accuracy": 0.9}, "sft": {"accuracy": 0.8}}
    decision = chosen(evaluation, figures, candidates=("sft",))
    assert decision.remarks == ("GenRM scores higher (90.0 %) but is not a candidate.",)


def test_difference_to_base_is_told_and_an_unclear_one_remarked_on(evaluation: Evaluation) -> None:
    evaluations = variants(evaluation, {"base": {"accuracy": 0.75}, "sft": {"accuracy": 0.8}})
    difference = Difference(accuracy=0.05, interval=Interval(low=-0.01, high=0.11))
    decision = decide(GateConfig(candidates=("sft",)), evaluations, {"sft": difference})
    assert decision.passed
    told = decision.candidates[0].checks[-1].text
    assert told == ("80.0 % is above the base model's 75.0 % (+5.0 points, 95 % interval -1.0 to +11.0, paired by row)")
    assert decision.remarks == (
        "The difference between ReasonGenRM-sft and the base model is not clear: its interval holds 0.",
    )


def test_gain_over_a_base_without_verdicts_says_so(evaluation: Evaluation) -> None:
    evaluations = variants(
        evaluation, {"base": {"accuracy": 0.5, "unparsed_fraction": 0.958}, "sft": {"accuracy": 0.8}}
    )
    told = decide(GateConfig(candidates=("sft",)), evaluations, {}).candidates[0].checks[-1].text
    assert told == (
        "80.0 % is above the base model's 50.0 %; that one gave no verdict in 95.8 % of its judgments, which count one "
        "half"
    )


def test_notes_of_the_benchmark_are_among_the_remarks(tmp_path: Path) -> None:
    partial = evaluated(benchmark_of(tmp_path, {"hep-go": 164}), oracle, variant="sft")
    decision = decide(GateConfig(candidates=("sft",), beat_base=False), {"sft": partial}, {})
    assert decision.remarks[0].startswith("Partial benchmark: 164 of")


def test_candidate_or_base_that_was_not_evaluated_is_named(evaluation: Evaluation) -> None:
    with pytest.raises(
        ConfigError, match=r"no evaluation of dpo, base \(found: sft\)\. .*set gate\.beat_base to false"
    ):
        chosen(evaluation, {"sft": {"accuracy": 0.8}})


def test_gate_without_candidates_is_refused(evaluation: Evaluation) -> None:
    with pytest.raises(ConfigError, match="'candidates' is empty; expected at least one of base, genrm, sft, dpo"):
        chosen(evaluation, {"base": {"accuracy": 0.8}}, candidates=())


def test_evaluations_of_different_rows_are_not_compared(tmp_path: Path) -> None:
    base = evaluated(benchmark_of(tmp_path, {"sums": 20}, "a.jsonl"), oracle, variant="base")
    sft = evaluated(benchmark_of(tmp_path, {"sums": 21}, "b.jsonl"), oracle, variant="sft")
    with pytest.raises(InputError, match=r"base was judged on 20 rows of .*a\.jsonl and sft on 21 rows of .*b\.jsonl"):
        decide(GateConfig(candidates=("sft",)), {"base": base, "sft": sft}, {})


def test_markdown_tells_every_reason_for_and_against(evaluation: Evaluation) -> None:
    figures = {
        "base": {"accuracy": 0.5},
        "sft": {"accuracy": 0.8},
        "dpo": {"accuracy": 0.9, "consistent_fraction": 0.1},
    }
    text = decision_markdown(chosen(evaluation, figures))
    assert "**ReasonGenRM-sft wins with 80.0 % and passes the gate" in text
    assert "## ReasonGenRM-dpo: 90.0 %, not passed" in text
    assert (
        "- **against**: the two orders name the same answer in 10.0 % of the rows (at least 60.0 % asked for)" in text
    )
    assert text.count("- for: ") == 4 + 3
    assert "## Remarks" in text


def test_decision_survives_its_json(evaluation: Evaluation) -> None:
    decision = chosen(evaluation, {"base": {"accuracy": 0.5}, "sft": {"accuracy": 0.8}, "dpo": {"accuracy": 0.85}})
    assert Decision.model_validate_json(decision.model_dump_json()) == decision


def champion(evaluation: Evaluation | None, model_digest: str = "sha256:" + "c" * 64) -> Champion:
    return Champion(
        service="judges/judge",
        variant="dpo",
        model_digest=model_digest,
        served_since="2026-11-24T10:00:00.000+00:00",
        evaluation=evaluation,
    )


@pytest.mark.parametrize(("theirs", "passed"), [(0.79, True), (0.8, False), (0.81, False)])
def test_candidate_must_be_above_the_judge_that_is_served(evaluation: Evaluation, theirs: float, passed: bool) -> None:
    figures = variants(
        evaluation, {"base": {"accuracy": 0.5}, "sft": {"accuracy": 0.8}, "served": {"accuracy": theirs}}
    )
    served = champion(figures.pop("served"))
    config = GateConfig(candidates=("sft",))
    decision = decide(config, figures, {}, served)
    (check,) = [check for check in decision.candidates[0].checks if check.name == "beats_champion"]
    assert (decision.passed, check.passed, decision.champion) == (passed, passed, served)
    assert check.text == (
        f"80.0 % is {'above' if passed else 'not above'} the {100 * theirs:.1f} % of the judge served now "
        "(judges/judge, ReasonGenRM-dpo)"
    )
    assert decide(GateConfig(candidates=("sft",), beat_champion=False), figures, {}, served).passed
    assert decide(config, figures, {}).passed
    assert "judges/judge: ReasonGenRM-dpo (sha256:cccccccccccc), since 2026-11-24" in decision_markdown(decision)


def test_candidate_does_not_replace_a_judge_that_it_cannot_be_compared_with(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    figures = variants(evaluation, {"base": {"accuracy": 0.5}, "sft": {"accuracy": 0.9}})
    other_rows = evaluated(benchmark_of(tmp_path, {"sums": 7}, "other.jsonl"), oracle)
    for served, why in (
        (champion(None), "has no evaluation on record"),
        (champion(other_rows), "was judged on 7 rows of .*other.jsonl, this one on 20 rows of .*cannot be compared"),
    ):
        decision = decide(GateConfig(candidates=("sft",)), figures, {}, served)
        (check,) = [check for check in decision.candidates[0].checks if not check.passed]
        assert re.search(why, check.text)
        assert "set gate.beat_champion to false to replace it all the same" in check.text
        assert not decision.passed


def test_candidate_that_is_served_already_need_not_beat_itself(evaluation: Evaluation) -> None:
    figures = variants(evaluation, {"base": {"accuracy": 0.5}, "sft": {"accuracy": 0.8}})
    served = champion(figures["sft"], "sha256:" + "5" * 64)
    config = GateConfig(candidates=("sft",))
    assert decide(config, figures, {}, served, {"sft": "sha256:" + "5" * 64}).passed
    assert not decide(config, figures, {}, served, {"sft": "sha256:" + "6" * 64}).passed
