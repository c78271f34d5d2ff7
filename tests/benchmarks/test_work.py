"""The synthetic work: equal for equal seeds, of the lengths that a shape asks for, and counted by hand."""

import statistics
from array import array

import torch

from benchmarks.shapes import SHAPES, make_model
from benchmarks.work import (
    SAMPLES,
    Draw,
    dpo_amounts,
    dpo_columns,
    scoring_amount,
    scoring_rows,
    sft_amounts,
    sft_columns,
    training_work,
)
from reasongenrm.config import ScoreConfig
from reasongenrm.packing.trees import IGNORED
from reasongenrm.planning.measurements import Workload
from reasongenrm.reasons.candidates import Candidate, Row
from reasongenrm.records import Reason

MICRO = SHAPES["micro"]


def test_the_model_has_the_parameters_that_the_shape_counts() -> None:
    model = make_model(MICRO, torch.device("cpu"), torch.float32)
    assert sum(weights.numel() for weights in model.parameters()) == MICRO.model.num_parameters
    assert model.config._attn_implementation == "sdpa"


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    first, again, other = (make_model(MICRO, torch.device("cpu"), torch.float32, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_lengths_are_log_normal_round_their_median_and_within_their_bounds() -> None:
    lengths = Draw(SHAPES["qwen2.5-1.5b"], 0).lengths(1_200, 4_000, 64, 8_192)
    assert 1_150 < statistics.median(lengths) < 1_250
    # e^(mean + sigma^2 / 2): 1,200 x e^0.18 = 1,437
    assert 1_380 < statistics.mean(lengths) < 1_490
    assert min(lengths) >= 64
    assert max(lengths) <= 8_192


def test_sft_rows_learn_the_end_of_each_row() -> None:
    columns = sft_columns(MICRO, 8)
    assert columns == sft_columns(MICRO, 8)
    assert columns != sft_columns(MICRO, 8, seed=1)
    for ids, labels in zip(columns["input_ids"], columns["labels"], strict=True):
        num_prompt = labels.count(IGNORED)
        assert 0 < num_prompt < len(ids)
        assert labels == [IGNORED] * num_prompt + ids[num_prompt:]


def test_sft_steps_count_prompt_and_reason_tokens() -> None:
    columns = {
        "input_ids": [[1, 2, 3], [4, 5], [6, 7, 8, 9]],
        "labels": [[IGNORED, 2, 3], [IGNORED, 5], [IGNORED, IGNORED, 8, 9]],
    }
    first, second = sft_amounts({name: rows[:2] for name, rows in columns.items()}, 1)
    assert (first.tokens, second.tokens) == (3, 2)
    (both,) = sft_amounts({name: rows[1:] for name, rows in columns.items()}, 2)
    assert (both.tokens, both.examples) == (6, 2)
    assert both.work == Workload(num_prompts=2, prompt_tokens=3, num_reasons=2, reason_tokens=3)


def test_dpo_steps_count_a_prompt_for_both_sides_and_once_as_work() -> None:
    columns = {"prompt_ids": [[1, 2, 3]], "chosen_ids": [[4, 5]], "rejected_ids": [[6]]}
    (amount,) = dpo_amounts(columns, 1)
    assert (amount.tokens, amount.examples) == (9, 1)
    assert amount.work == Workload(num_prompts=1, prompt_tokens=3, num_reasons=2, reason_tokens=3)
    assert training_work(columns, 1, 1).lengths == [6]


def test_steps_are_counted_in_the_order_that_ours_draws() -> None:
    columns = {"input_ids": [[1], [2, 2], [3, 3, 3]], "labels": [[1], [2, 2], [3, 3, 3]]}
    work = training_work(columns, 2, 3)
    assert sorted(work.order[:3]) == sorted(work.order[3:]) == [0, 1, 2]
    assert [amount.tokens for amount in work.amounts] == [
        work.lengths[first] + work.lengths[second]
        for first, second in zip(work.order[::2], work.order[1::2], strict=True)
    ]


def test_pairs_fit_into_the_longest_sequence() -> None:
    columns = dpo_columns(MICRO, 50)
    for side in ("chosen_ids", "rejected_ids"):
        for prompt, reason in zip(columns["prompt_ids"], columns[side], strict=True):
            assert 0 < len(prompt) + len(reason) <= MICRO.lengths.longest


def test_scoring_counts_a_prompt_once_for_all_its_reasons() -> None:
    reason = Reason(prompt_id="0", sample=0, reason="", model="", num_tokens=2, finish_reason="stop")
    candidates = tuple(Candidate(reason, array("i", ids), 2, 1) for ids in ([1, 2, 3, 4], [1, 2, 3, 4, 5]))
    amount = scoring_amount([Row(array("i", [9] * 10), candidates)])
    assert (amount.tokens, amount.examples) == (19, 2)
    assert amount.work == Workload(num_prompts=1, prompt_tokens=10, num_reasons=2, reason_tokens=9)
    assert (amount + amount).work.prompt_tokens == 20


def test_a_row_of_every_shape_fits_into_one_forward_pass() -> None:
    """Otherwise a prompt would be computed, and counted, more than once."""
    for shape in SHAPES.values():
        rows = scoring_rows(shape, 4)
        assert all(len(row.candidates) == SAMPLES for row in rows)
        assert max(row.num_tokens for row in rows) <= (shape.max_batch_tokens or ScoreConfig().max_batch_tokens)
