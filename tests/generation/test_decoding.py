"""Picking tokens, worked by hand; what prompts have in common is computed once and changes nothing; the cache."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.cache_utils import Cache

from reasongenrm.generation.decoding import GROWTH_TOKENS, DecodingPrompt, GrowingLayer, decode, pick_tokens
from reasongenrm.generation.transformers import load_checkpoint
from tests.tiny import ARCHITECTURES, exact, exact_architecture, tiny_checkpoint

# Probabilities 0.5, 0.2, 0.3 in the order of the vocabulary.
LOGITS_13 = torch.tensor([[math.log(0.5), math.log(0.2), math.log(0.3)]])


def pick(uniform: float, temperature: float = 1.0, top_p: float = 1.0) -> int:
    return int(pick_tokens(LOGITS_13, temperature, top_p, [uniform]))


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.499, 0), (0.501, 1), (0.699, 1), (0.701, 2), (0.999999, 2)]
)
def test_token_is_where_the_cumulative_distribution_passes_the_number(uniform: float, token: int) -> None:
    assert pick(uniform) == token


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 0), (0.624, 0), (0.626, 2), (0.999999, 2)])
def test_top_p_draws_from_the_smallest_set_that_reaches_it(uniform: float, token: int) -> None:
    # 0.5 + 0.3 = 0.8 >= 0.7: the token of 0.2 is out; 0.5 / 0.8 = 0.625 divides the two that are left.
    assert pick(uniform, top_p=0.7) == token


def test_temperature_sharpens_the_distribution() -> None:
    # At temperature 1/2 the weights are 0.25, 0.04, 0.09 of 0.38: the first token's share is 0.6579.
    assert pick(0.657, temperature=0.5) == 0
    assert pick(0.659, temperature=0.5) == 1


def test_temperature_zero_takes_the_most_probable_whatever_the_number() -> None:
    assert {pick(uniform, temperature=0.0) for uniform in (0.0, 0.6, 0.99)} == {0}


def test_top_p_zero_takes_the_most_probable() -> None:
    assert {pick(uniform, top_p=0.0) for uniform in (0.0, 0.6, 0.99)} == {0}


def test_impossible_token_is_never_drawn() -> None:
    logits_12 = torch.tensor([[0.0, -math.inf]])
    assert int(pick_tokens(logits_12, 1.0, 1.0, [math.nextafter(1.0, 0.0)])) == 0


def test_each_row_follows_its_own_number() -> None:
    assert pick_tokens(LOGITS_13.repeat(3, 1), 1.0, 1.0, [0.1, 0.6, 0.9]).tolist() == [0, 1, 2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path: Path = tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "chatml", opening_role="reason")
    return exact(load_checkpoint(path, "float32")[0])


def prompts_of(*ids: list[int], num_rows: int = 2) -> list[DecodingPrompt]:
    """Prompts whose rows go on for 6 tokens."""
    return [DecodingPrompt(each, frozenset(), 6, range(10 * i, 10 * i + num_rows)) for i, each in enumerate(ids)]


@pytest.mark.parametrize(
    ("prompts", "num_computed"),
    [
        # All begin with 5 6 7: computed once, then at most 3 tokens of their own, to which the shorter ones are padded.
        (prompts_of([5, 6, 7, 8, 9, 10], [5, 6, 7, 8], [5, 6, 7, 11, 12]), 3 + 3 * 3),
        # The second is how the first begins: its last token stays its own.
        (prompts_of([5, 6, 7, 8], [5, 6, 7]), 2 + 2 * 2),
        (prompts_of([5, 6], [5, 6]), 1 + 2 * 1),
        (prompts_of([5, 6, 7], [6, 7]), 2 * 3),
        (prompts_of([5], [6]), 2 * 1),
        (prompts_of([5, 6, 7]), 3),
    ],
    ids=["three", "one-begins-the-other", "equal", "nothing-in-common", "one-token", "single"],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_prompts_that_begin_alike_are_continued_as_each_is_alone(
    model: Any, monkeypatch: pytest.MonkeyPatch, prompts: list[DecodingPrompt], num_computed: int, temperature: float
) -> None:
    computed: list[int] = []
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        computed.append(kwargs["input_ids"].numel())
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", forward)
        together = list(decode(model, prompts, 0, temperature, 1.0))
    num_rows = 2 * len(prompts)
    assert sum(computed) == num_computed + 5 * num_rows  # the sixth token of a row is not read
    for index, prompt in enumerate(prompts):
        alone = list(decode(model, [prompt], 0, temperature, 1.0))
        rows = slice(2 * index, 2 * index + 2)
        for step, one in zip(together, alone, strict=True):
            assert step.tokens[rows] == one.tokens
            # Sums over at most 128 float64 in two layers: some hundred units of 2e-16.
            torch.testing.assert_close(step.logits_RV[rows], one.logits_RV, rtol=0, atol=1e-12)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("prompts", [([5, 6, 7, 8, 9, 10, 11, 12], [5, 6, 7, 8, 9, 20]), ([5, 6, 7, 8, 9], [30, 6])])
def test_every_architecture_continues_prompts_together_as_each_alone(
    model_type: str, prompts: tuple[list[int], ...]
) -> None:
    """Sliding windows of 3 tokens: padding between a shared beginning and the rest must not push it out of sight."""
    model = exact_architecture(model_type).eval()
    written = [list(prompt) for prompt in prompts]
    together = [DecodingPrompt(prompt, frozenset(), 4, [1]) for prompt in prompts]
    for step in decode(model, together, 3, 0.0, 1.0):
        for row, token, logits_V in zip(step.rows, step.tokens, step.logits_RV, strict=True):
            with torch.no_grad():
                alone_V = model(torch.tensor([written[row]])).logits[0, -1]
            assert (alone_V - logits_V).abs().max().item() < 1e-10
            written[row].append(token)
    assert [len(row) for row in written] == [len(prompt) + 4 for prompt in prompts]


def states(num_rows: int, num_tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random keys and values of 2 heads of size 4."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(num_rows, 2, num_tokens, 4, generator=generator) for _ in range(2))
    return keys, values


def test_growing_cache_holds_what_concatenation_holds() -> None:
    cache = Cache(layer_class_to_replicate=GrowingLayer)
    keys, values = states(2, 5, seed=0)
    cache.update(keys, values, 0)
    cache.batch_repeat_interleave(2)
    keys, values = keys.repeat_interleave(2, dim=0), values.repeat_interleave(2, dim=0)
    for step in range(1, 2 * GROWTH_TOKENS + 3):
        if step in (3, GROWTH_TOKENS + 1):  # a row ends
            kept = torch.tensor([0, 2, 3][: keys.shape[0] - 1])
            cache.batch_select_indices(kept)
            keys, values = keys[kept], values[kept]
        more_keys, more_values = states(keys.shape[0], 1, seed=step)
        keys, values = torch.cat([keys, more_keys], dim=-2), torch.cat([values, more_values], dim=-2)
        got_keys, got_values = cache.update(more_keys, more_values, 0)
        assert torch.equal(got_keys, keys)
        assert torch.equal(got_values, values)
        assert cache.get_seq_length() == 5 + step


def test_a_token_is_written_in_place_between_growths() -> None:
    cache = Cache(layer_class_to_replicate=GrowingLayer)
    cache.update(*states(1, 5, seed=0), 0)
    places = [cache.update(*states(1, 1, seed=step), 0)[0].data_ptr() for step in range(GROWTH_TOKENS + 2)]
    assert len(set(places)) == 2
