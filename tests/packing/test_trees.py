"""Packed rows: where every token lies, and what it predicts, by hand; and balance of bins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasongenrm.packing.trees import IGNORED, NO_BRANCH, Branch, Tree, balance, pack

N = IGNORED


def test_one_branch_is_the_sequence_without_its_last_token() -> None:
    row = pack([Tree([7], (Branch([8, 9, 5], [N, 9, 5]),))])
    assert row.input_ids.tolist() == [7, 8, 9]
    assert row.position_ids.tolist() == [0, 1, 2]
    assert row.targets.tolist() == [N, 9, 5]
    assert row.branches.tolist() == [0, 0, 0]
    assert row.keys is None
    assert row.query_starts.tolist() == row.key_starts.tolist() == [0, 3]


def test_branches_share_all_of_their_prefix_but_its_last_token() -> None:
    row = pack([Tree([1, 2, 3], (Branch([10, 11], [10, 11]), Branch([20], [20])))])
    assert row.input_ids.tolist() == [1, 2, 3, 10, 3]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 2]
    assert row.targets.tolist() == [N, N, 10, 11, 20]
    assert row.branches.tolist() == [NO_BRANCH, NO_BRANCH, 0, 0, 1]
    assert row.query_starts.tolist() == [0, 2, 4, 5]
    assert row.key_starts.tolist() == [0, 2, 6, 9]
    assert row.keys is not None
    assert row.keys.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 4]


def test_keys_and_branches_count_on_from_tree_to_tree() -> None:
    pair = Tree([1, 2], (Branch([3], [3]), Branch([4], [4])))
    row = pack([Tree([9], (Branch([8, 7], [8, 7]),)), pair])
    assert row.input_ids.tolist() == [9, 8, 1, 2, 2]
    assert row.branches.tolist() == [0, 0, NO_BRANCH, 1, 2]
    assert row.num_branches == 3
    assert row.keys is not None
    assert row.keys.tolist() == [0, 1, 2, 2, 3, 2, 4]


def test_prefix_of_one_token_has_nothing_to_share() -> None:
    row = pack([Tree([1], (Branch([3], [3]), Branch([4, 5], [4, 5])))])
    assert row.input_ids.tolist() == [1, 1, 4]
    assert row.position_ids.tolist() == [0, 0, 1]
    assert row.keys is None


@given(
    st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=4)), min_size=1, max_size=4)
)
def test_a_row_has_as_many_tokens_as_its_trees_say_and_predicts_every_branch_whole(
    shapes: list[tuple[int, list[int]]],
) -> None:
    trees = [
        Tree(list(range(length)), tuple(Branch(list(range(n)), list(range(n))) for n in sizes))
        for length, sizes in shapes
    ]
    row = pack(trees)
    assert row.num_tokens == sum(len(tree.prefix) - 1 + sum(len(one.ids) for one in tree.branches) for tree in trees)
    branches = [list(branch.ids) for tree in trees for branch in tree.branches]
    for number, ids in enumerate(branches):
        assert [
            t
            for t, owner in zip(row.targets.tolist(), row.branches.tolist(), strict=True)
            if owner == number and t != N
        ] == ids


def test_balance_puts_the_largest_where_least_is() -> None:
    assert balance([5, 9, 4, 3, 3], 2) == [[1, 3], [0, 2, 4]]  # 9; 5; 5 + 4; 9 + 3; 9 + 3


@pytest.mark.parametrize("num_bins", [1, 2, 3])
def test_no_bin_is_empty(num_bins: int) -> None:
    bins = balance([0, 0, 7], num_bins)
    assert len(bins) == num_bins
    assert all(bins)
    assert sorted(item for items in bins for item in items) == [0, 1, 2]
