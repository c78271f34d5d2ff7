"""Sizes worked by hand; and docs/install.md says what the module computes."""

import subprocess
import sys
from pathlib import Path

import pytest

from reasongenrm.sizing import (
    FAST,
    JUDGE_7B,
    JUDGE_14B,
    SLOW,
    TEACHER_70B,
    ModelShape,
    Speed,
    Workload,
    generation_hours,
    gpus_needed,
    gpus_to_serve,
    gpus_to_train,
    hours_table,
    kv_bytes_per_token,
    memory_table,
    run_times,
    scoring_hours,
    serving_bytes,
    training_bytes,
    training_hours,
)

# One billion parameters, two layers of width 10, one K/V head of 5, 100 tokens in the vocabulary.
SMALL = ModelShape("small", 1e9, 2, 10, 1, 5, 100)
INSTALL = (Path(__file__).parents[1] / "docs" / "install.md").read_text(encoding="utf-8")


def test_kv_cache_holds_keys_and_values_of_every_layer_in_two_bytes() -> None:
    assert kv_bytes_per_token(SMALL) == 2 * 2 * 1 * 5 * 2
    assert kv_bytes_per_token(JUDGE_7B) == 56 * 1024  # 2 x 28 x 4 x 128 x 2


def test_serving_needs_weights_and_the_cache_of_all_that_is_in_flight() -> None:
    assert serving_bytes(SMALL, num_sequences=3, tokens_each=7) == 2e9 + 3 * 7 * 40


def test_training_states_are_shared_out_but_activations_are_not() -> None:
    activations = 50 * (2 * 2 * 10 + 8 * 100)
    assert training_bytes(SMALL, num_gpus=1, tokens_per_gpu=50) == 16e9 + activations
    assert training_bytes(SMALL, num_gpus=4, tokens_per_gpu=50) == 4e9 + activations


def test_gpus_are_a_power_of_two_and_a_tenth_of_each_is_left_free() -> None:
    assert gpus_needed(lambda num_gpus: 72e9 / num_gpus) == 1
    assert gpus_needed(lambda num_gpus: 72.1e9 / num_gpus) == 2
    assert gpus_needed(lambda num_gpus: 3 * 72e9 / num_gpus) == 4
    with pytest.raises(ValueError, match="on each of 64 GPUs; expected at most 67 GiB"):
        gpus_needed(lambda _num_gpus: 73e9)


def test_a_7b_trains_on_two_a_14b_on_four_and_a_70b_teacher_answers_on_four() -> None:
    # 7.62e9 x 16 = 122 GB, so one is too few; 14.77e9 x 16 = 236 GB: 118 on each of two; 141 GB of weights + 43 of cache.
    assert (gpus_to_train(JUDGE_7B, 4096), gpus_to_train(JUDGE_14B, 4096)) == (2, 4)
    assert (gpus_to_serve(JUDGE_14B, 32, 4096), gpus_to_serve(TEACHER_70B, 32, 4096)) == (1, 4)


def test_hours_fall_with_gpus_and_grow_with_parameters() -> None:
    speed = Speed(generated_tokens=1000, judgments=1, scored_reasons=10, training_mfu=0.5)
    measured = ModelShape("measured", 7.6e9, 1, 1, 1, 1, 1)
    double = ModelShape("double", 15.2e9, 1, 1, 1, 1, 1)
    assert generation_hours(measured, 3.6e6, 1, speed) == pytest.approx(1)
    assert generation_hours(double, 3.6e6, 1, speed) == pytest.approx(2)
    assert generation_hours(measured, 3.6e6, 4, speed) == pytest.approx(1 / 3.2)  # 4 GPUs x 0.8
    assert scoring_hours(double, 36_000, speed) == pytest.approx(2)
    # 6 x 7.6e9 x 1e9 = 4.56e19 FLOPs at 0.5 x 790e12: 115,443 s; two GPUs do 1.8 times as much.
    assert training_hours(measured, 1e9, 6, 1, speed) == pytest.approx(115_443 / 3600, rel=1e-5)
    assert training_hours(measured, 1e9, 6, 2, speed) == pytest.approx(115_443 / 3600 / 1.8, rel=1e-5)


def test_work_of_80_000_pairs_is_16_reasons_each_and_half_of_them_trained_on() -> None:
    work = Workload()
    assert (work.num_reasons, work.row_tokens) == (1_280_000, 1_505)
    times = {time.stage: time for time in run_times(JUDGE_7B, TEACHER_70B, 2, 4, work, SLOW)}
    # 6.4e8 tokens at 20,900 x 7.6 / 70.55 x 4 x 0.8 = 7,205 a second.
    assert times["distill_reasons (the teacher's)"].hours == pytest.approx(6.4e8 / 7_205 / 3600, rel=1e-3)
    # 40,000 rows x 1,505 tokens x 2 epochs x 6 x 7.62e9 at 0.087 x 790e12 x 1.8.
    assert times["train_sft (sft)"].hours == pytest.approx(1.204e8 * 6 * 7.62e9 / (0.087 * 790e12 * 1.8) / 3600)
    assert times["train_dpo"].hours / times["train_sft (sft)"].hours == pytest.approx(
        8 / 6
    )  # same tokens, one epoch of two
    assert [times[stage].num_gpus for stage in ("distill_reasons (the teacher's)", "train_dpo", "sample_reasons")] == [
        4,
        2,
        1,
    ]


def test_faster_code_is_faster_in_scoring_and_training_alone() -> None:
    fast, slow = (run_times(JUDGE_7B, TEACHER_70B, 2, 4, Workload(), speed) for speed in (FAST, SLOW))
    faster = [low.stage for low, high in zip(fast, slow, strict=True) if low.hours < high.hours]
    assert [stage.split()[0] for stage in faster] == [
        "score_reasons",
        "train_sft",
        "train_sft",
        "score_reasons",
        "train_dpo",
    ]


@pytest.mark.parametrize("table", [memory_table, hours_table])
def test_install_page_has_the_table_that_is_computed(table) -> None:
    assert table() in INSTALL
    assert "computed, not measured" in INSTALL


def test_module_prints_both_tables() -> None:
    ran = subprocess.run([sys.executable, "-m", "reasongenrm.sizing"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{memory_table()}\n\n{hours_table()}\n"
