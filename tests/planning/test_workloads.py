"""The work of a run worked by hand. (That no stage is forgotten: tests/components/test_adapters.py.)"""

from typing import Any

import pytest

from reasongenrm.config import RunConfig
from reasongenrm.planning.measurements import Workload
from reasongenrm.planning.workloads import Assumptions, StageWorkload, run_workloads
from reasongenrm.training.shapes import SHAPES

JUDGE, TEACHER = SHAPES["7B"], SHAPES["70B"]
ASSUMED = Assumptions(num_pairs=1_000, prompt_tokens=100, reason_tokens=50, kept_fraction=0.25)


def stages(config: RunConfig, assumed: Assumptions = ASSUMED) -> dict[str, StageWorkload]:
    return {stage.stage: stage for stage in run_workloads(config, assumed, JUDGE, TEACHER)}


def changed(**sections: dict[str, Any]) -> RunConfig:
    """A configuration with a sample of the reference's numbers and these changes."""
    return RunConfig.model_validate({"pairs": {"order": "random"}, **sections})


def test_work_of_a_run_follows_from_pairs_samples_tokens_and_epochs() -> None:
    found = stages(changed())
    written = Workload(num_prompts=1_000, prompt_tokens=100_000, num_reasons=16_000, reason_tokens=800_000)
    for stage in (
        "distill_reasons",
        "sample_reasons",
        "score_reasons (of the teacher)",
        "score_reasons (of the policy)",
    ):
        assert found[stage].work == written
    assert (found["distill_reasons"].model, found["sample_reasons"].model) == (TEACHER, JUDGE)
    # 250 kept prompts, two epochs. A verdict has 5 tokens.
    assert found["train_sft (sft)"].work == Workload(
        num_prompts=500, prompt_tokens=50_000, num_reasons=500, reason_tokens=27_500
    )
    assert found["train_sft (genrm)"].work.reason_tokens == 2_500
    # One epoch, two reasons per pair, without the verdict.
    assert found["train_dpo"].work == Workload(
        num_prompts=250, prompt_tokens=25_000, num_reasons=500, reason_tokens=25_000
    )
    # RewardBench in both orders.
    assert found["evaluate_rewardbench (dpo)"].work == Workload(
        num_prompts=5_970, prompt_tokens=597_000, num_reasons=5_970, reason_tokens=5_970 * 55
    )
    assert found["evaluate_rewardbench (genrm)"].work.reason_tokens == 5_970 * 5
    assert found["select_reasons"].work == Workload(num_rows=16_000)


def test_mirrored_pairs_double_everything_but_the_evaluation() -> None:
    once, twice = stages(changed()), stages(changed(pairs={"order": "mirrored"}))
    for stage in ("distill_reasons", "train_sft (sft)", "score_reasons (of the policy)", "train_dpo"):
        assert twice[stage].work.num_tokens == 2 * once[stage].work.num_tokens
    assert twice["evaluate_rewardbench (sft)"] == once["evaluate_rewardbench (sft)"]


def test_limits_steps_and_votes_of_the_configuration_count() -> None:
    found = stages(
        changed(
            pairs={"order": "random", "limit": 400},
            sample={"limit": 100, "max_tokens": 20, "num_samples": 2},
            sft={"max_steps": 7, "train_batch_size": 4},
            evaluate={"limit": 30, "votes": 3},
        )
    )
    assert found["distill_reasons"].work.num_prompts == 400
    assert found["sample_reasons"].work == Workload(
        num_prompts=100, prompt_tokens=10_000, num_reasons=200, reason_tokens=4_000
    )
    assert found["train_dpo"].work.num_prompts == 25
    assert found["train_sft (sft)"].work.num_prompts == 28  # 7 steps of 4
    assert (
        found["evaluate_rewardbench (sft)"].work.num_prompts,
        found["evaluate_rewardbench (sft)"].work.num_reasons,
    ) == (
        60,
        180,
    )


def test_a_teacher_behind_an_endpoint_takes_no_hours_but_its_reasons_are_kept() -> None:
    found = {stage.stage: stage for stage in run_workloads(changed(), ASSUMED, JUDGE, None)}["distill_reasons"]
    assert (found.kind, found.model) == (None, None)
    assert found.kept_bytes == 16_000 * (50 * 4.6 + 250)


def test_the_store_holds_weights_twice_bfloat16_and_two_checkpoints_while_training() -> None:
    found = stages(changed(sft={"save_steps": 2}, dpo={"save_steps": 3, "logging_steps": 1}))
    weights = 2 * JUDGE.num_parameters
    assert found["import_model"].kept_bytes == weights
    assert (found["train_sft (sft)"].kept_bytes, found["train_sft (sft)"].passing_bytes) == (weights, 12 * weights)
    assert found["train_dpo"].passing_bytes == 0  # two steps: over before the first checkpoint
    assert stages(changed(sft={"dtype": "float32"}))["train_sft (sft)"].kept_bytes == 2 * weights


@pytest.mark.parametrize("kept", [0.0, 0.0001])
def test_at_least_one_row_is_trained_on(kept: float) -> None:
    assumed = Assumptions(num_pairs=10, kept_fraction=kept)
    assert stages(changed(), assumed)["train_dpo"].work.num_prompts == 1
