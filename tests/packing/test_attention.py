"""Packed attention gives the numbers of separate sequences: log-probabilities and gradients, float64, 1e-10."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from torch.nn.functional import scaled_dot_product_attention

from reasongenrm.packing.attention import Segments, _mask, packed_attention
from reasongenrm.packing.kernels import prepare_for_packed_rows
from reasongenrm.packing.trees import Branch, Tree, pack
from tests.tiny import ARCHITECTURES, FAMILIES, Family, exact_architecture, exact_model, tiny_checkpoint

SHAPES = ((7, (3, 5, 1)), (1, (4,)), (1, (2, 3)), (9, (6,)), (12, (1, 8)))  # prefix, branches


@pytest.fixture
def trees() -> list[Tree]:
    numbers = random.Random(0)

    def ids(count: int) -> list[int]:
        return [numbers.randrange(100) for _ in range(count)]

    return [
        Tree(ids(prefix), tuple(Branch(tokens, tokens) for tokens in map(ids, branches))) for prefix, branches in SHAPES
    ]


def separate(model: Any, trees: list[Tree]) -> list[torch.Tensor]:
    """Sum of log-probabilities of each branch, a forward pass each."""
    sums = []
    for tree in trees:
        for branch in tree.branches:
            ids = torch.tensor([*tree.prefix, *branch.ids])
            logprobs = model(ids[None]).logits[0].log_softmax(-1)
            picked = logprobs[:-1].gather(-1, ids[1:, None])[:, 0]
            sums.append(picked[len(tree.prefix) - 1 :].sum())
    return sums


def packed(model: Any, trees: list[Tree]) -> list[torch.Tensor]:
    row = pack(trees)
    logits = model(
        input_ids=torch.from_numpy(row.input_ids)[None],
        position_ids=torch.from_numpy(row.position_ids)[None],
        segments=Segments.of(row),
        use_cache=False,
    ).logits[0]
    targets, branches = torch.from_numpy(row.targets), torch.from_numpy(row.branches)
    picked = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[:, None])[:, 0]
    return [picked[(branches == number) & (targets >= 0)].sum() for number in range(row.num_branches)]


def gradient(model: Any, sums: list[torch.Tensor]) -> torch.Tensor:
    """Of a loss that weighs every branch differently."""
    model.zero_grad()
    sum((weight + 1) * value for weight, value in enumerate(sums)).backward()  # type: ignore[union-attr]
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_gradients_are_those_of_separate_sequences(
    family: Family, tmp_path: Path, trees: list[Tree]
) -> None:
    tiny_checkpoint(tmp_path, family)
    model = exact_model(tmp_path)
    plain = separate(model, trees)
    plain_gradient = gradient(model, plain)
    prepare_for_packed_rows(model)
    found = packed(model, trees)
    assert (torch.stack(found) - torch.stack(plain)).abs().max().item() < 1e-10
    assert (gradient(model, found) - plain_gradient).norm() < 1e-10 * plain_gradient.norm()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_architecture_gives_the_numbers_of_separate_sequences(model_type: str, trees: list[Tree]) -> None:
    model = exact_architecture(model_type)
    plain = separate(model, trees)
    plain_gradient = gradient(model, plain)
    prepare_for_packed_rows(model)
    found = packed(model, trees)
    assert (torch.stack(found) - torch.stack(plain)).abs().max().item() < 1e-10
    assert (gradient(model, found) - plain_gradient).norm() < 1e-10 * plain_gradient.norm()


def test_a_branch_that_saw_its_sibling_would_be_noticed(tmp_path: Path, trees: list[Tree]) -> None:
    """The comparison above can fail: one key too many is enough."""
    tiny_checkpoint(tmp_path, "chatml")
    model = exact_model(tmp_path)
    plain = separate(model, trees)
    prepare_for_packed_rows(model)
    row = pack(trees)
    assert row.keys is not None
    last = row.key_starts[3]  # the first key of the third branch of the first tree
    row.keys[last] = row.query_starts[1]  # its sibling's first token instead of the prefix's
    segments = Segments.of(row)
    logits = model(
        input_ids=torch.from_numpy(row.input_ids)[None],
        position_ids=torch.from_numpy(row.position_ids)[None],
        segments=segments,
        use_cache=False,
    ).logits[0]
    mask = torch.from_numpy((row.branches == 2) & (row.targets >= 0))
    picked = logits.log_softmax(-1).gather(-1, torch.from_numpy(row.targets).clamp(min=0)[:, None])[:, 0][mask]
    assert (picked.sum() - plain[2]).abs().item() > 1e-6


def test_queries_see_up_to_themselves_counted_from_the_end() -> None:
    assert _mask(2, 4, None, torch.device("cpu")).tolist() == [[True, True, True, False], [True] * 4]
    assert _mask(2, 4, 2, torch.device("cpu")).tolist() == [[False, True, True, False], [False, False, True, True]]


@pytest.mark.parametrize("window", [None, 3, 100])
def test_sliding_window_counts_the_shared_prefix(window: int | None) -> None:
    torch.manual_seed(0)
    row = pack([Tree([1, 2, 3, 4, 5], (Branch([6, 7, 8], [6, 7, 8]), Branch([9], [9])))])
    states = [torch.randn(1, heads, row.num_tokens, 8, dtype=torch.float64) for heads in (4, 2, 2)]
    out, weights = packed_attention(
        torch.nn.Identity(), *states, None, 0.3, segments=Segments.of(row), sliding_window=window
    )
    assert weights is None
    assert row.keys is not None
    for segment in range(3):
        queries = slice(*row.query_starts[segment : segment + 2])
        keys = row.keys[slice(*row.key_starts[segment : segment + 2])]
        q, k, v = states[0][:, :, queries], states[1][:, :, keys], states[2][:, :, keys]
        places = torch.arange(len(keys))
        distance = places[len(keys) - q.shape[2] :, None] - places
        seen = (distance >= 0) & (distance < (window or 1000))
        expected = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=0.3, enable_gqa=True)
        assert torch.allclose(out[0, queries].transpose(0, 1), expected[0], atol=1e-12)


def test_padding_and_dropout_are_refused() -> None:
    row = pack([Tree([1], (Branch([2], [2]),))])
    states = [torch.zeros(1, 1, 1, 4)] * 3
    segments: Segments = Segments.of(row)
    with pytest.raises(AssertionError, match="no padding"):
        packed_attention(torch.nn.Identity(), *states, torch.ones(1, 1), 1.0, segments=segments)
    with pytest.raises(AssertionError, match="dropout"):
        packed_attention(torch.nn.Identity(), *states, None, 1.0, 0.1, segments=segments)


def test_segments_of_a_row_go_to_a_device_as_tensors_do() -> None:
    row = pack([Tree([1, 2], (Branch([3, 4], [3, 4]), Branch([5], [5])))])
    segments = Segments.of(row)
    assert segments.sizes == [(1, 1), (2, 3), (1, 2)]
    assert segments.query_starts.dtype == segments.key_starts.dtype == torch.int32
    moved = send_to_device({"segments": segments}, torch.device("meta"))["segments"]
    assert {moved.query_starts.device.type, moved.key_starts.device.type, moved.keys.device.type} == {"meta"}
    assert moved.sizes == segments.sizes
