"""select_reasons (R* for SFT), select_preferences (pairs for DPO): which reasons are trained on.

In: judge prompts and scored reasons. Out: training examples or preferences. Pure functions over records, and the two
stages round them. A prompt without such reasons is dropped, and counted by cause.
"""

import random
from collections.abc import Sequence
from typing import Literal

from reasongenrm.config import PreferencesConfig, SelectConfig, Strategy
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.records import OPPOSITE, Drops, JudgePrompt, Preference, ScoredReason, TrainingExample, dump_records
from reasongenrm.store.artifacts import ArtifactRef, Store, read_records
from reasongenrm.store.stage import Stage


def by_prompt(prompts: Sequence[JudgePrompt], scored: Sequence[ScoredReason]) -> dict[str, list[ScoredReason]]:
    """Scored reasons of each prompt, in the order of their samples; prompts without one have an empty list.

    Raises:
        InputError: a reason's prompt is not among `prompts`.
    """
    reasons: dict[str, list[ScoredReason]] = {prompt.prompt_id: [] for prompt in prompts}
    for reason in sorted(scored, key=lambda reason: reason.sample):
        if reason.prompt_id not in reasons:
            raise InputError(
                f"scored.jsonl: sample {reason.sample} of prompt {reason.prompt_id}: no such prompt in prompts.jsonl. "
                "Give the prompts that these reasons were written for."
            )
        reasons[reason.prompt_id].append(reason)
    return reasons


def selection_score(reason: ScoredReason, config: SelectConfig) -> float:
    """What R* maximises, in (-1, 1]: "signed" P(R|U)(2P(A|U,R)-1), or "product" P(R|U)P(A|U,R).

    Source: docs/method.md, section 2; "signed" is the reference's code (reward_sft_dataset.py at 0887f2e), "product"
    the paper's formula (arXiv 2506.16712). A model that does not yet know the form [[A]] has P(A|U,R) below 1/2
    everywhere: there the signed score prefers the least fluent reason, the product still the most fluent one that leads
    to the label.
    """
    return reason.p_reason * reason.p_verdict if config.formula == "product" else reason.reason_score


def best_reasons(
    prompts: Sequence[JudgePrompt], scored: Sequence[ScoredReason], config: SelectConfig
) -> tuple[list[TrainingExample], Drops]:
    """R* of each prompt: its best reason, if that scores above `config.min_score`; of equals, the earliest sample.

    Returns:
        Examples in the order of the prompts, with the score that chose them; and the counts, in prompts: no_reason,
        score_too_low (the best is at `min_score` or below).

    Raises:
        InputError: a reason's prompt is not among `prompts`.

    Source: docs/method.md, section 2.
    """
    drops = Drops()
    examples = []
    reasons = by_prompt(prompts, scored)
    for prompt in prompts:
        drops.num_in += 1
        of_prompt = reasons[prompt.prompt_id]
        if not of_prompt:
            drops.drop("no_reason", f"prompt {prompt.prompt_id}")
            continue
        best = max(of_prompt, key=lambda reason: selection_score(reason, config))
        score = selection_score(best, config)
        if score <= config.min_score:
            drops.drop("score_too_low", f"prompt {prompt.prompt_id}: {score:.4f}")
            continue
        drops.num_out += 1
        examples.append(TrainingExample(prompt=prompt, reason=best.reason, verdict=prompt.label, reason_score=score))
    return examples, drops


Pick = Literal["highest", "lowest", "any"]


# How the chosen is picked among the correct, and the rejected among the incorrect reasons of a prompt. A score far from
# 0
# is a fluent reason, one near 0 an influent reason: reward_dpo_dataset.py at 0887f2e has the four picks by score (two
# of
# them commented out), its README the two random ones. Results of each on RewardBench: docs/method.md, section 5.
BEST_AGAINST_WORST: Strategy = "correct_fluent+incorrect_fluent"
STRATEGIES: dict[Strategy, tuple[Pick, Pick]] = {
    BEST_AGAINST_WORST: ("highest", "lowest"),
    "correct_fluent+incorrect_influent": ("highest", "highest"),
    "correct_fluent+random_incorrect": ("highest", "any"),
    "correct_influent+incorrect_fluent": ("lowest", "lowest"),
    "random+random": ("any", "any"),
}


def _picked(pick: Pick, reasons: Sequence[ScoredReason], numbers: random.Random) -> ScoredReason:
    if pick == "any":
        return numbers.choice(reasons)
    return (max if pick == "highest" else min)(reasons, key=lambda reason: reason.reason_score)


def choose_preferences(
    prompts: Sequence[JudgePrompt], scored: Sequence[ScoredReason], config: PreferencesConfig
) -> tuple[list[Preference], Drops]:
    """A chosen and a rejected reason of each prompt.

    Correct reasons score above `config.chosen_above`, incorrect ones below `config.rejected_below`; the strategy picks
    one of each. The chosen goes with the right verdict, the rejected with the wrong one. The default strategy also
    takes ranges that overlap (a small model is sure of nothing): the best reason against the worst, whatever their
    scores. Of equals, the earliest sample; what is random depends on `config.seed`, the prompt and its reasons alone.

    Returns:
        Preferences in the order of the prompts; and the counts, in prompts: no_reason, no_correct_reason,
        no_incorrect_reason, neither_correct_nor_incorrect, best_is_worst.

    Raises:
        ConfigError: a score could be correct and incorrect at once, under a strategy that is not best against worst.
        InputError: a reason's prompt is not among `prompts`.

    Source: docs/method.md, section 5; ReasonGenRM/src/dpo/reward_dpo_dataset.py at 0887f2e, which has one threshold for
    both.
    """
    if config.chosen_above < config.rejected_below and config.strategy != BEST_AGAINST_WORST:
        raise ConfigError(
            f"preferences.chosen_above is {config.chosen_above} and rejected_below {config.rejected_below}: a reason "
            "between them would be both. Expected chosen_above >= rejected_below, or the strategy "
            f"{BEST_AGAINST_WORST}."
        )
    pick_chosen, pick_rejected = STRATEGIES[config.strategy]
    drops = Drops()
    preferences = []
    reasons = by_prompt(prompts, scored)
    for prompt in prompts:
        drops.num_in += 1
        of_prompt = reasons[prompt.prompt_id]
        correct = [reason for reason in of_prompt if reason.reason_score > config.chosen_above]
        incorrect = [reason for reason in of_prompt if reason.reason_score < config.rejected_below]
        if not correct or not incorrect:
            scores = ", ".join(f"{reason.reason_score:.3f}" for reason in of_prompt)
            causes = {(True, False): "no_incorrect_reason", (False, True): "no_correct_reason"}
            cause = causes.get((bool(correct), bool(incorrect)), "neither_correct_nor_incorrect")
            drops.drop(cause if of_prompt else "no_reason", f"prompt {prompt.prompt_id}: {scores or 'none'}")
            continue
        numbers = random.Random(f"{config.seed}/{prompt.prompt_id}")
        chosen, rejected = _picked(pick_chosen, correct, numbers), _picked(pick_rejected, incorrect, numbers)
        if chosen.reason_score <= rejected.reason_score:  # only where the two ranges overlap
            drops.drop("best_is_worst", f"prompt {prompt.prompt_id}: {chosen.reason_score:.3f}")
            continue
        drops.num_out += 1
        preferences.append(
            Preference(
                prompt=prompt,
                chosen=chosen.reason,
                chosen_verdict=prompt.label,
                chosen_score=chosen.reason_score,
                rejected=rejected.reason,
                rejected_verdict=OPPOSITE[prompt.label],
                rejected_score=rejected.reason_score,
            )
        )
    return preferences, drops


def select_reasons(store: Store, config: SelectConfig, prompts: ArtifactRef, scored: ArtifactRef) -> ArtifactRef:
    """Stage: R* of each prompt, the examples for SFT (examples.jsonl).

    Raises:
        EmptyStageError: no prompt has a reason above `min_score`.
    """
    with Stage(store, "select_reasons", config, {"prompts": prompts, "scored": scored}) as stage:
        if stage.done:
            return stage.done
        examples, drops = best_reasons(*_read(prompts, scored), config)
        drops.require_some(
            "select_reasons",
            f"A prompt's best reason must score above select.min_score ({config.min_score}, formula "
            f"'{config.formula}'). Lower it, or distil better reasons.",
        )
        stage.add_bytes("examples.jsonl", dump_records(examples))
        scores = [example.reason_score for example in examples if example.reason_score is not None]
        num_a = sum(example.verdict == "[[A]]" for example in examples)
        metrics = {
            "num_reasons": len({example.reason for example in examples}),
            "score_mean": sum(scores) / len(scores),
            "label_a_fraction": num_a / len(examples),  # far from 1/2: the selection itself favours a place
        }
        return stage.finish(drops.counts(), metrics)


def select_preferences(
    store: Store, config: PreferencesConfig, prompts: ArtifactRef, scored: ArtifactRef
) -> ArtifactRef:
    """Stage: a chosen and a rejected reason of each prompt, the pairs for DPO (preferences.jsonl).

    Raises:
        ConfigError: the thresholds overlap.
        EmptyStageError: no prompt has a correct and an incorrect reason.
    """
    with Stage(store, "select_preferences", config, {"prompts": prompts, "scored": scored}) as stage:
        if stage.done:
            return stage.done
        preferences, drops = choose_preferences(*_read(prompts, scored), config)
        drops.require_some(
            "select_preferences",
            f"A prompt needs a reason that scores above preferences.chosen_above ({config.chosen_above}) and one below "
            f"preferences.rejected_below ({config.rejected_below}). Move them towards 0, or sample more reasons.",
        )
        stage.add_bytes("preferences.jsonl", dump_records(preferences))
        num = len(preferences)
        metrics = {
            "chosen_score_mean": sum(preference.chosen_score for preference in preferences) / num,
            "rejected_score_mean": sum(preference.rejected_score for preference in preferences) / num,
            "label_a_fraction": sum(preference.chosen_verdict == "[[A]]" for preference in preferences) / num,
        }
        return stage.finish(drops.counts(), metrics)


def _read(prompts: ArtifactRef, scored: ArtifactRef) -> tuple[list[JudgePrompt], list[ScoredReason]]:
    return read_records(prompts, "prompts.jsonl", JudgePrompt), read_records(scored, "scored.jsonl", ScoredReason)
