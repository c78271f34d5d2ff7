"""The plan of batches: which rows a step sees, and how its micro-batches keep to the limit of tokens."""

from collections import Counter

import pytest

from reasongenrm.config import SFTConfig
from reasongenrm.packing.batches import draw_order, example_tree, num_trained, pair_tree, plan_batches
from reasongenrm.packing.trees import IGNORED, pack

LIMIT = 100  # tokens of a forward pass


def config(**settings: object) -> SFTConfig:
    return SFTConfig.model_validate({"train_batch_size": 4, **settings})


def test_every_row_is_seen_once_an_epoch_and_the_last_batch_is_filled_up() -> None:
    plan = plan_batches([10, 20, 30, 40, 50, 60], config(num_train_epochs=2), 1, LIMIT)
    assert plan.num_steps == 3  # 2 epochs x 6 rows / 4 a batch
    assert Counter(plan.order) == dict.fromkeys(range(6), 2)
    assert sorted(plan.order[:6]) == sorted(plan.order[6:]) == list(range(6))
    assert plan.order[:6] != plan.order[6:]
    filled = plan_batches([10] * 5, config(num_train_epochs=1), 1, LIMIT)
    assert filled.num_steps == 2  # 5 rows / 4 a batch: the second batch takes 3 rows of the next epoch
    assert len(filled.order) == 8
    assert set(filled.order) == set(range(5))


def test_max_steps_overrides_the_epochs() -> None:
    assert plan_batches([10] * 5, config(max_steps=7), 1, LIMIT).num_steps == 7


def test_order_depends_on_the_seed_and_not_on_processes_or_micro_batches() -> None:
    lengths = list(range(1, 21))
    order = plan_batches(lengths, config(), 1, LIMIT).order
    assert plan_batches(lengths, config(), 2, 20).order == order == draw_order(20, config())
    assert plan_batches(lengths, config(seed=1), 1, LIMIT).order != order


def test_epoch_and_tokens_of_a_step_count_what_was_seen() -> None:
    plan = plan_batches([1, 10, 100, 1000, 10000, 100000], config(num_train_epochs=2), 1, LIMIT)
    assert plan.epoch(3) == 2.0
    assert plan.num_tokens(3) == 2 * 111111
    assert plan.num_tokens(1) == sum(plan.lengths[row] for row in plan.order[:4])


def test_a_step_is_one_forward_pass_where_all_its_tokens_fit() -> None:
    plan = plan_batches([25] * 8, config(num_train_epochs=1), 1, LIMIT)
    assert plan.num_micro_batches == 1
    assert [len(rows) for _, rows in plan.micro_batches()] == [4, 4]


def test_micro_batches_keep_to_the_limit_in_every_step_and_hold_each_row_of_the_step_once() -> None:
    lengths = [60, 50, 40, 30, 20, 10, 90, 80]
    plan = plan_batches(lengths, config(num_train_epochs=3), 1, LIMIT)
    found: dict[int, list[int]] = {}
    for step, rows in plan.micro_batches():
        assert sum(lengths[row] for row in rows) <= 100
        found.setdefault(step, []).extend(rows)
    assert {step: sorted(rows) for step, rows in found.items()} == {
        step: sorted(plan.rows_of_step(step)) for step in range(plan.num_steps)
    }
    assert plan.max_tokens <= 100


def test_a_row_longer_than_the_limit_is_a_forward_pass_by_itself() -> None:
    plan = plan_batches([500, 10, 10, 10], config(num_train_epochs=1), 1, LIMIT)
    # 530 tokens are at least six passes by number, but four rows make no more than four.
    assert plan.num_micro_batches == 4
    assert plan.max_tokens == 500


@pytest.mark.parametrize(("num_processes", "expected"), [(1, 1), (2, 2), (3, 3), (4, 4)])
def test_every_process_has_as_many_micro_batches(num_processes: int, expected: int) -> None:
    assert plan_batches([10] * 8, config(), num_processes, LIMIT).num_micro_batches == expected
    # 4 rows of 60 tokens: two passes would hold 120 each.
    assert (
        plan_batches([60] * 8, config(), num_processes, LIMIT).num_micro_batches
        == {1: 4, 2: 4, 3: 3, 4: 4}[num_processes]
    )


def test_the_first_token_of_an_example_is_never_predicted() -> None:
    row = {"input_ids": [1, 2, 3], "labels": [1, IGNORED, 3]}
    assert num_trained(row["labels"]) == 1
    tree = example_tree(row)
    assert (tree.prefix, tree.branches[0].ids, tree.branches[0].targets) == ([1], [2, 3], [IGNORED, 3])


def test_a_pair_is_two_branches_of_which_every_token_counts() -> None:
    tree = pair_tree({"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5]})
    assert [list(branch.targets) for branch in tree.branches] == [[3, 4], [5]]
    assert pack([tree]).num_tokens == 1 + 2 + 1
