"""R* and DPO pairs, chosen by hand-worked scores; the two stages on a real store."""

from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasongenrm.config import PreferencesConfig, SelectConfig, Strategy
from reasongenrm.errors import ConfigError, EmptyStageError, InputError
from reasongenrm.reasons.select import STRATEGIES, best_reasons, choose_preferences, select_preferences, select_reasons
from reasongenrm.records import (
    JudgePrompt,
    Message,
    Preference,
    ScoredReason,
    TrainingExample,
    dump_records,
    parse_records,
)
from reasongenrm.store.artifacts import ArtifactRef, Store, read_file
from reasongenrm.store.stage import Stage


def prompt(prompt_id: str = "p", label: str = "[[A]]") -> JudgePrompt:
    return JudgePrompt.model_validate(
        {
            "prompt_id": prompt_id,
            "pair_id": prompt_id,
            "question": (Message(role="user", content="1 + 1?"),),
            "answer_a": "2",
            "answer_b": "3",
            "label": label,
        }
    )


def reason(sample: int, p_reason: float, p_verdict: float, prompt_id: str = "p") -> ScoredReason:
    return ScoredReason(
        prompt_id=prompt_id,
        sample=sample,
        reason=f"reason {sample} of {prompt_id}",
        p_reason=p_reason,
        p_verdict=p_verdict,
        reason_score=p_reason * (2 * p_verdict - 1),
        num_reason_tokens=4,
    )


def by_scores(*scores: float, prompt_id: str = "p") -> list[ScoredReason]:
    """Reasons whose scores are these: p_reason 1, p_verdict (score + 1) / 2."""
    reasons = [reason(sample, 1.0, (score + 1) / 2, prompt_id) for sample, score in enumerate(scores)]
    return [r.model_copy(update={"reason_score": score}) for r, score in zip(reasons, scores, strict=True)]


def samples(examples: Sequence[TrainingExample]) -> list[str | None]:
    return [example.reason for example in examples]


def test_r_star_is_the_reason_of_the_highest_score() -> None:
    # 0.4 * 0.8 = 0.32; 0.9 * 0.2 = 0.18; 0.9 * -0.8 = -0.72
    reasons = [reason(0, 0.9, 0.6), reason(1, 0.4, 0.9), reason(2, 0.9, 0.1)]
    (example,), drops = best_reasons([prompt()], reasons, SelectConfig())
    assert (example.reason, example.verdict) == ("reason 1 of p", "[[A]]")
    assert example.reason_score == pytest.approx(0.32)
    assert drops.counts() == {"num_in": 1, "num_out": 1}


def test_product_takes_the_fluent_reason_where_the_signed_score_takes_the_influent_one() -> None:
    # All P(A|U,R) below 1/2. Signed: 0.8 * -0.8 = -0.64 against 0.2 * -0.84 = -0.168. Product: 0.08 against 0.016.
    reasons = [reason(0, 0.8, 0.1), reason(1, 0.2, 0.08)]
    (signed,), _ = best_reasons([prompt()], reasons, SelectConfig(formula="signed", min_score=-1))
    (product,), _ = best_reasons([prompt()], reasons, SelectConfig(formula="product", min_score=0))
    assert (signed.reason, product.reason) == ("reason 1 of p", "reason 0 of p")
    assert signed.reason_score == pytest.approx(-0.168)
    assert product.reason_score == pytest.approx(0.08)


def test_score_at_the_threshold_is_dropped_and_above_it_kept() -> None:
    prompts = [prompt("at"), prompt("above")]
    reasons = [*by_scores(0.1, prompt_id="at"), *by_scores(0.1001, prompt_id="above")]
    examples, drops = best_reasons(prompts, reasons, SelectConfig(min_score=0.1))
    assert samples(examples) == ["reason 0 of above"]
    assert drops.counts() == {"num_in": 2, "num_out": 1, "num_dropped_score_too_low": 1}


def test_prompt_without_a_reason_is_dropped_and_counted() -> None:
    examples, drops = best_reasons([prompt("p"), prompt("q")], by_scores(0.5), SelectConfig())
    assert samples(examples) == ["reason 0 of p"]
    assert drops.counts() == {"num_in": 2, "num_out": 1, "num_dropped_no_reason": 1}


def test_of_equal_scores_the_earliest_sample_is_taken_whatever_the_order_of_the_file() -> None:
    reasons = by_scores(0.2, 0.5, 0.5)
    for order in (reasons, reasons[::-1]):
        assert samples(best_reasons([prompt()], order, SelectConfig())[0]) == ["reason 1 of p"]


def test_examples_come_in_the_order_of_the_prompts_with_their_own_labels() -> None:
    prompts = [prompt("q", "[[B]]"), prompt("p", "[[A]]")]
    reasons = [*by_scores(0.5, prompt_id="p"), *by_scores(0.3, prompt_id="q")]
    examples, _ = best_reasons(prompts, reasons, SelectConfig())
    assert [(example.prompt.prompt_id, example.verdict) for example in examples] == [("q", "[[B]]"), ("p", "[[A]]")]


def test_reason_of_an_unknown_prompt_is_an_error() -> None:
    with pytest.raises(InputError, match=r"sample 0 of prompt other: no such prompt in prompts\.jsonl"):
        best_reasons([prompt()], by_scores(0.5, prompt_id="other"), SelectConfig())


# In the order of the samples; correct: samples 0, 1, 2; incorrect: 4, 5, 6; 3 is neither.
SCORES = (0.2, 0.7, 0.11, 0.1, -0.3, -0.8, -0.15)


@pytest.mark.parametrize(
    ("strategy", "chosen", "rejected"),
    [
        ("correct_fluent+incorrect_fluent", {1}, {5}),
        ("correct_fluent+incorrect_influent", {1}, {6}),
        ("correct_fluent+random_incorrect", {1}, {4, 5, 6}),
        ("correct_influent+incorrect_fluent", {2}, {5}),
        ("random+random", {0, 1, 2}, {4, 5, 6}),
    ],
)
def test_strategy_picks_its_reasons(strategy: Strategy, chosen: set[int], rejected: set[int]) -> None:
    picked: tuple[set[str], set[str]] = set(), set()
    for seed in range(40):  # of 3 reasons each appears: the chance that one does not is 3 * (2/3)**40 < 1e-6
        config = PreferencesConfig(strategy=strategy, seed=seed)
        (pair,), _ = choose_preferences([prompt()], by_scores(*SCORES), config)
        picked[0].add(pair.chosen)
        picked[1].add(pair.rejected)
    assert picked == ({f"reason {n} of p" for n in chosen}, {f"reason {n} of p" for n in rejected})


def test_every_strategy_of_the_config_is_there() -> None:
    assert set(STRATEGIES) == set(get_args(Strategy))


@pytest.mark.parametrize(("label", "wrong"), [("[[A]]", "[[B]]"), ("[[B]]", "[[A]]")])
def test_chosen_goes_with_the_right_verdict_and_rejected_with_the_wrong_one(label: str, wrong: str) -> None:
    (pair,), drops = choose_preferences([prompt(label=label)], by_scores(0.4, -0.6), PreferencesConfig())
    assert pair == Preference.model_validate(
        {
            "prompt": prompt(label=label),
            "chosen": "reason 0 of p",
            "chosen_verdict": label,
            "chosen_score": 0.4,
            "rejected": "reason 1 of p",
            "rejected_verdict": wrong,
            "rejected_score": -0.6,
        }
    )
    assert drops.counts() == {"num_in": 1, "num_out": 1}


def test_scores_at_the_thresholds_are_neither_correct_nor_incorrect() -> None:
    prompts = [prompt(name) for name in ("both", "at_chosen", "at_rejected", "at_both", "none")]
    reasons = [
        *by_scores(0.11, -0.11, prompt_id="both"),
        *by_scores(0.1, -0.11, prompt_id="at_chosen"),
        *by_scores(0.11, -0.1, prompt_id="at_rejected"),
        *by_scores(0.1, -0.1, prompt_id="at_both"),
    ]
    pairs, drops = choose_preferences(prompts, reasons, PreferencesConfig())
    assert [pair.prompt.prompt_id for pair in pairs] == ["both"]
    assert drops.counts() == {
        "num_in": 5,
        "num_out": 1,
        "num_dropped_no_correct_reason": 1,
        "num_dropped_no_incorrect_reason": 1,
        "num_dropped_neither_correct_nor_incorrect": 1,
        "num_dropped_no_reason": 1,
    }


def test_thresholds_that_overlap_are_refused_where_a_pick_could_be_both() -> None:
    config = PreferencesConfig(strategy="random+random", chosen_above=-0.2, rejected_below=0.2)
    with pytest.raises(ConfigError, match=r"chosen_above is -0\.2 and rejected_below 0\.2"):
        choose_preferences([prompt()], [], config)


def test_thresholds_that_overlap_take_the_best_against_the_worst_wherever_they_lie() -> None:
    config = PreferencesConfig(chosen_above=-1, rejected_below=1)
    pairs, _ = choose_preferences([prompt()], by_scores(0.3, 0.5, 0.4), config)
    assert [(pair.chosen_score, pair.rejected_score) for pair in pairs] == [(0.5, 0.3)]
    for scores in ([0.3], [0.3, 0.3]):
        none, drops = choose_preferences([prompt()], by_scores(*scores), config)
        assert none == []
        assert drops.causes == {"best_is_worst": 1}


def test_random_picks_depend_on_seed_and_prompt_alone() -> None:
    config = PreferencesConfig(strategy="random+random", seed=5)
    names = [f"p{number}" for number in range(8)]
    reasons = [reason for name in names for reason in by_scores(*SCORES, prompt_id=name)]
    pairs, _ = choose_preferences([prompt(name) for name in names], reasons, config)
    alone, _ = choose_preferences([prompt("p7")], [r for r in reasons if r.prompt_id == "p7"][::-1], config)
    assert alone == pairs[7:]
    assert len({pair.chosen.split(" of ")[0] for pair in pairs}) > 1
    other_seed, _ = choose_preferences([prompt(n) for n in names], reasons, config.model_copy(update={"seed": 6}))
    assert other_seed != pairs


@given(
    scores=st.lists(st.floats(-1, 1), max_size=8),
    strategy=st.sampled_from(get_args(Strategy)),
    above=st.floats(0, 0.5),
    below=st.floats(-0.5, 0),
)
def test_there_is_a_pair_exactly_where_a_correct_and_an_incorrect_reason_are(
    scores: list[float], strategy: Strategy, above: float, below: float
) -> None:
    config = PreferencesConfig(strategy=strategy, chosen_above=above, rejected_below=below)
    pairs, drops = choose_preferences([prompt()], by_scores(*scores), config)
    assert bool(pairs) == (any(score > above for score in scores) and any(score < below for score in scores))
    assert all(pair.chosen_score > above and pair.rejected_score < below for pair in pairs)
    assert drops.num_in == drops.num_out + sum(drops.causes.values()) == 1


def publish(store: Store, prompts: Sequence[JudgePrompt], scored: Sequence[ScoredReason]) -> list[ArtifactRef]:
    refs = []
    for name, records in (("prompts", prompts), ("scored", scored)):
        with Stage(store, f"make_{name}", SelectConfig(), {}) as stage:
            stage.add_bytes(f"{name}.jsonl", dump_records(records))
            refs.append(stage.finish({"num_in": len(records), "num_out": len(records)}))
    return refs


def test_stages_write_what_was_selected_with_its_figures(store: Store) -> None:
    prompts = [prompt("p", "[[A]]"), prompt("q", "[[B]]"), prompt("r", "[[B]]"), prompt("s")]
    scored = [
        *by_scores(0.5, -0.5, prompt_id="p"),
        *by_scores(0.3, -0.7, prompt_id="q"),
        *by_scores(-0.9, prompt_id="r"),
    ]
    refs = publish(store, prompts, scored)
    ref = select_reasons(store, SelectConfig(), *refs)
    examples = parse_records(read_file(ref, "examples.jsonl"), TrainingExample, "examples.jsonl")
    assert samples(examples) == ["reason 0 of p", "reason 0 of q"]
    assert ref.counts == {"num_in": 4, "num_out": 2, "num_dropped_no_reason": 1, "num_dropped_score_too_low": 1}
    assert ref.metrics == {"num_reasons": 2, "score_mean": pytest.approx(0.4), "label_a_fraction": 0.5}
    ref = select_preferences(store, PreferencesConfig(), *refs)
    pairs = parse_records(read_file(ref, "preferences.jsonl"), Preference, "preferences.jsonl")
    assert [pair.rejected for pair in pairs] == ["reason 1 of p", "reason 1 of q"]
    assert ref.metrics == {
        "chosen_score_mean": pytest.approx(0.4),
        "rejected_score_mean": pytest.approx(-0.6),
        "label_a_fraction": 0.5,
    }


def test_stages_with_nothing_left_name_the_threshold_and_write_nothing(store: Store) -> None:
    refs = publish(store, [prompt()], by_scores(0.05))
    with pytest.raises(
        EmptyStageError, match=r"1 score_too_low \(first: prompt p: 0\.0500\).*select\.min_score \(0\.1"
    ):
        select_reasons(store, SelectConfig(), *refs)
    with pytest.raises(EmptyStageError, match=r"neither_correct.*chosen_above \(0\.1\).*rejected_below \(-0\.1\)"):
        select_preferences(store, PreferencesConfig(), *refs)
    assert not store.list("select_")
