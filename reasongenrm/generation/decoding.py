"""The decoding loop of the in-process engine and the small server: one token per row and step.

What all prompts begin with is computed once, and a prompt once for all its rows. Rows that have ended leave the batch.
Each row draws from random numbers of its own, so that a row is a function of its prompt, its seed and the batch it was
planned into, and of nothing else.

Legend: P prompts, N rows per prompt, R rows still being written (at most P * N), T tokens so far, S tokens that all
prompts begin with, V vocabulary.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers.cache_utils import Cache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROWTH_TOKENS = 64


class GrowingLayer(DynamicLayer):
    """Keys and values of one attention layer, shape (R, heads, T, head size): views of buffers with room at the end.

    The cache so grows in steps, and a token does not copy all before it. transformers' DynamicCache concatenates at
    every token: with SmolLM2-135M on a CPU, 16 rows and 300 to 600 tokens, a fifth to a third of each step's time.
    """

    keys: torch.Tensor
    values: torch.Tensor
    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append; returns all keys and values."""
        start = self.get_seq_length()
        if start == 0:
            return super().update(key_states, value_states, *args, **kwargs)  # the prompt, stored as it comes
        stop = start + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < stop:
            self._buffers = (_with_room(self.keys, stop), _with_room(self.values, stop))
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:stop, :] = new
        self.keys, self.values = self._buffers[0][..., :stop, :], self._buffers[1][..., :stop, :]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row; the copies have no room yet."""
        super().batch_repeat_interleave(repeats)
        self._buffers = None

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows; the copies have no room yet."""
        super().batch_select_indices(indices)
        self._buffers = None


def _with_room(kept: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """A copy with room for the given number of tokens and GROWTH_TOKENS more."""
    rows, heads, held, size = kept.shape
    buffer = kept.new_empty((rows, heads, num_tokens + GROWTH_TOKENS, size))
    buffer[..., :held, :] = kept
    return buffer


@dataclass(frozen=True)
class DecodingPrompt:
    """A prompt and the rows to be written for it."""

    ids: Sequence[int]  # token ids, shape (T_prompt,), T_prompt >= 1
    stop_ids: frozenset[int]  # tokens that end a row; the stop token is part of the row
    max_tokens: int  # of each row, at least 1
    seeds: Sequence[int]  # one per row; all prompts of a call have equally many


@dataclass(frozen=True)
class Step:
    """What one step wrote: `tokens[i]` and `logits_RV[i]` belong to row `rows[i]` (prompt index * N + sample).

    The logits are the model's own, whatever the tokens were limited to.
    """

    rows: list[int]
    tokens: list[int]
    logits_RV: torch.Tensor


def pick_tokens(logits_RV: torch.Tensor, temperature: float, top_p: float, uniforms_R: Sequence[float]) -> torch.Tensor:
    """Pick one token a row: the most probable at temperature 0, else by inverting the cumulative distribution.

    Args:
        logits_RV: shape (R, V).
        temperature: >= 0.
        top_p: in [0, 1]; only the smallest set of most probable tokens with at least this probability is drawn from.
        uniforms_R: one number in [0, 1) a row; it alone decides the token.

    Returns:
        Token ids, shape (R,).
    """
    if temperature == 0:
        return logits_RV.argmax(dim=-1)
    # float64: a cumulative sum over 128,000 float32 probabilities is off by more than rare tokens weigh.
    probs_RV = torch.softmax(logits_RV.double() / temperature, dim=-1)
    order_RV = None
    if top_p < 1:
        probs_RV, order_RV = probs_RV.sort(dim=-1, descending=True, stable=True)
        beyond_RV = probs_RV.cumsum(dim=-1) - probs_RV >= top_p
        beyond_RV[:, 0] = False  # the most probable token stays, also at top_p 0
        probs_RV = probs_RV.masked_fill(beyond_RV, 0.0)
    cumulative_RV = probs_RV.cumsum(dim=-1)
    total_R1 = cumulative_RV[:, -1:]
    drawn_R1 = torch.tensor(list(uniforms_R), dtype=torch.float64, device=logits_RV.device).unsqueeze(1) * total_R1
    drawn_R1 = drawn_R1.minimum(total_R1.nextafter(torch.zeros_like(total_R1)))  # never rounded up to the total
    index_R1 = torch.searchsorted(cumulative_RV, drawn_R1, right=True)
    if order_RV is not None:
        index_R1 = order_RV.gather(1, index_R1)
    return index_R1.squeeze(1)


@torch.inference_mode()
def decode(
    model: "PreTrainedModel",
    prompts: Sequence[DecodingPrompt],
    pad_id: int,
    temperature: float,
    top_p: float,
    ended: Collection[int] = (),
    limit: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
) -> Iterator[Step]:
    """Write every row of every prompt, one token a row and step, until all have stopped.

    Args:
        model: a causal language model with a KV cache; its dtype is the dtype of the computation.
        prompts: P prompts of N rows each; short ones are padded on the left.
        pad_id: any token; padding is masked.
        ended: rows that the caller wants no more of; looked at after every step, so it may grow.
        limit: takes a row and the logits of its next token, shape (V,); gives those that the token is drawn from.
    """
    num_rows = len(prompts[0].seeds)
    assert all(len(prompt.seeds) == num_rows and prompt.max_tokens >= 1 for prompt in prompts)
    device = model.device
    cache = Cache(layer_class_to_replicate=GrowingLayer)
    mask_PT, positions_P1, logits_PV = _read_prompts(model, [prompt.ids for prompt in prompts], pad_id, cache)
    if num_rows > 1:
        cache.batch_repeat_interleave(num_rows)
    mask_RT = mask_PT.repeat_interleave(num_rows, dim=0)
    positions_R1 = positions_P1.repeat_interleave(num_rows, dim=0)
    logits_RV = logits_PV.repeat_interleave(num_rows, dim=0)

    rows = list(range(len(prompts) * num_rows))
    generators = [random.Random(seed) for prompt in prompts for seed in prompt.seeds]
    num_written = 0
    while True:
        uniforms = [generators[row].random() for row in rows]
        drawn_from_RV = logits_RV
        if limit is not None:
            drawn_from_RV = torch.stack([limit(row, logits_V) for row, logits_V in zip(rows, logits_RV, strict=True)])
        tokens_R = pick_tokens(drawn_from_RV, temperature, top_p, uniforms)
        tokens = [int(token) for token in tokens_R.tolist()]
        num_written += 1
        yield Step(rows, tokens, logits_RV)

        going = [
            place
            for place, (row, token) in enumerate(zip(rows, tokens, strict=True))
            if token not in prompts[row // num_rows].stop_ids
            and num_written < prompts[row // num_rows].max_tokens
            and row not in ended
        ]
        if not going:
            return
        if len(going) < len(rows):
            kept = torch.tensor(going, device=device)
            cache.batch_select_indices(kept)
            tokens_R, mask_RT, positions_R1 = tokens_R[kept], mask_RT[kept], positions_R1[kept]
            rows = [rows[place] for place in going]
        mask_RT = torch.cat([mask_RT, mask_RT.new_ones((len(rows), 1))], dim=1)
        positions_R1 = positions_R1 + 1
        logits_RV = _next_logits(model, cache, tokens_R.unsqueeze(1), attention_mask=mask_RT, position_ids=positions_R1)


def _read_prompts(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], pad_id: int, cache: Cache
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fill an empty cache with the prompts, one row each: first what all begin with, once, then each one's own tokens.

    In the cache a short prompt's padding lies between the two, and is masked. A model with sliding windows reads all
    prompts whole, padded on the left: its window counts places in the cache, the masked ones between the two as well.

    Returns:
        Attention mask, shape (P, T); position of the last token, shape (P, 1); logits of the next token, shape (P, V).
    """
    num_shared = 0 if model.config.to_dict().get("sliding_window") else _num_shared(prompts)
    longest = max(len(ids) for ids in prompts) - num_shared
    own_PT = torch.full((len(prompts), longest), pad_id)
    mask_PT = torch.zeros((len(prompts), longest), dtype=torch.long)
    for index, ids in enumerate(prompts):
        own_PT[index, longest + num_shared - len(ids) :] = torch.tensor(list(ids[num_shared:]))
        mask_PT[index, longest + num_shared - len(ids) :] = 1
    positions_PT = (num_shared + mask_PT.cumsum(dim=-1) - 1).clamp(min=0)
    if num_shared:
        shared_1S = torch.tensor([list(prompts[0][:num_shared])], device=model.device)
        _next_logits(model, cache, shared_1S)
        cache.batch_repeat_interleave(len(prompts))
        mask_PT = torch.cat([mask_PT.new_ones((len(prompts), num_shared)), mask_PT], dim=1)
    own_PT, mask_PT, positions_PT = (each.to(model.device) for each in (own_PT, mask_PT, positions_PT))
    logits_PV = _next_logits(model, cache, own_PT, attention_mask=mask_PT, position_ids=positions_PT)
    return mask_PT, positions_PT[:, -1:], logits_PV


def _next_logits(model: "PreTrainedModel", cache: Cache, ids: torch.Tensor, **masked: torch.Tensor) -> torch.Tensor:
    """Read tokens into the cache; the logits after the last one of each row, shape (rows, V)."""
    # logits_to_keep=0 would mean those of every token.
    return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **masked).logits[:, -1]


def _num_shared(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, of which each has at least one more; 0 for a single prompt."""
    if len(prompts) == 1:
        return 0
    first, last = min(prompts, key=list), max(prompts, key=list)  # what these two share, all share
    num_shared = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return min(num_shared, min(len(ids) for ids in prompts) - 1)
