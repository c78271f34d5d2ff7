"""The growing KV cache against plain concatenation."""

import torch

from reasongenrm.generation.cache import GROWTH_TOKENS, growing_cache


def states(num_rows: int, num_tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random keys and values of 2 heads of size 4."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(num_rows, 2, num_tokens, 4, generator=generator) for _ in range(2))
    return keys, values


def test_growing_cache_holds_what_concatenation_holds() -> None:
    cache = growing_cache()
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
    cache = growing_cache()
    cache.update(*states(1, 5, seed=0), 0)
    places = [cache.update(*states(1, 1, seed=step), 0)[0].data_ptr() for step in range(GROWTH_TOKENS + 2)]
    assert len(set(places)) == 2
