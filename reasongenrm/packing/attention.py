"""Attention over a packed row, as one of transformers' attention functions.

On a GPU in half precision it is torch's own kernel for sequences of different lengths; for everything else (CPUs,
float32, float64) torch's scaled_dot_product_attention, segment by segment. Both give the same numbers.

A segment that shares a prefix has the prefix's keys and values copied in front of its own. That costs memory traffic,
but no second pass over parts that are then merged by their log-sum-exps, which the kernels do not differentiate.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from reasongenrm.packing.trees import PackedRow

NAME = "reasongenrm_packed"


@dataclass(frozen=True)
class Segments:
    """Where a packed row's segments lie, as the kernels want it. See `PackedRow`.

    Attributes:
        query_starts, key_starts: shape (S + 1,), int32, on the model's device.
        keys: shape (K,), int64, on the model's device; None: every segment's keys are its own tokens.
        sizes: numbers of queries and of keys of every segment.
    """

    query_starts: torch.Tensor
    key_starts: torch.Tensor
    keys: torch.Tensor | None
    sizes: list[tuple[int, int]]

    @classmethod
    def of(cls, row: PackedRow) -> "Segments":
        """A row's segments, on the CPU."""
        queries, keys = (starts[1:] - starts[:-1] for starts in (row.query_starts, row.key_starts))
        return cls(
            query_starts=torch.from_numpy(row.query_starts).int(),
            key_starts=torch.from_numpy(row.key_starts).int(),
            keys=None if row.keys is None else torch.from_numpy(row.keys),
            sizes=list(zip(queries.tolist(), keys.tolist(), strict=True)),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Segments":
        """On another device; accelerate calls it, as it would a tensor's."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Segments":
        """Ready to be copied during other work; torch's data loader calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Segments":
        keys = None if self.keys is None else change(self.keys)
        return Segments(change(self.query_starts), change(self.key_starts), keys, self.sizes)


def tensors(row: PackedRow) -> dict[str, Any]:
    """A packed row's token columns, each of shape (1, T), and its segments, on the CPU."""
    names = ("input_ids", "position_ids", "targets", "branches")
    return {name: torch.from_numpy(getattr(row, name))[None] for name in names} | {"segments": Segments.of(row)}


def enable_packed_attention(model: PreTrainedModel) -> None:
    """Let a model take packed rows: `model(input_ids=..., position_ids=..., segments=...)`, each of shape (1, T)."""
    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)


def packed_attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    segments: Segments,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer.

    Args:
        query: shape (1, H, T, D).
        key, value: shape (1, H_kv, T, D); H is a multiple of H_kv.
        segments: handed through from the call of the model.
        sliding_window: the number of keys that a query sees, itself included.

    Returns:
        The output, shape (1, T, H, D), and None for the weights.
    """
    assert attention_mask is None, "a packed row has no padding"
    assert dropout == 0.0, "dropout would make a packed row differ from separate sequences"
    q_THD, k_KHD, v_KHD = (states[0].transpose(0, 1) for states in (query, key, value))
    if segments.keys is not None:
        k_KHD, v_KHD = k_KHD[segments.keys], v_KHD[segments.keys]
    in_half = q_THD.dtype in (torch.bfloat16, torch.float16)
    attend = _varlen if q_THD.device.type == "cuda" and in_half else _segment_by_segment
    return attend(q_THD, k_KHD, v_KHD, segments, scaling, sliding_window)[None], None


def _segment_by_segment(
    q_THD: torch.Tensor,
    k_KHD: torch.Tensor,
    v_KHD: torch.Tensor,
    segments: Segments,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    num_queries, num_keys = zip(*segments.sizes, strict=True)
    pieces = []
    for q_QHD, k_SHD, v_SHD in zip(q_THD.split(num_queries), k_KHD.split(num_keys), v_KHD.split(num_keys), strict=True):
        behind = len(k_SHD) - len(q_QHD)
        # A sequence without a prefix needs no mask: the kernel knows it.
        whole = not behind and (window is None or window >= len(q_QHD))
        mask = None if whole else _mask(len(q_QHD), len(k_SHD), window, q_QHD.device)
        q_1HQD, k_1HSD, v_1HSD = (states.transpose(0, 1)[None] for states in (q_QHD, k_SHD, v_SHD))
        out_1HQD = scaled_dot_product_attention(
            q_1HQD, k_1HSD, v_1HSD, attn_mask=mask, is_causal=whole, scale=scaling, enable_gqa=True
        )
        pieces.append(out_1HQD[0].transpose(0, 1))
    return torch.cat(pieces)


def _mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which keys a query sees, shape (num_queries, num_keys): up to itself, both counted from the end."""
    queries = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    keys = torch.arange(num_keys, device=device)[None]
    seen = keys <= queries
    return seen if window is None else seen & (keys > queries - window)


def _varlen(
    q_THD: torch.Tensor,
    k_KHD: torch.Tensor,
    v_KHD: torch.Tensor,
    segments: Segments,
    scaling: float,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = {}
    if _takes_grouped_heads(varlen_attn):
        grouped = {"enable_gqa": True}
    else:  # torch 2.11
        copies = q_THD.shape[1] // k_KHD.shape[1]
        k_KHD, v_KHD = (states.repeat_interleave(copies, dim=1) for states in (k_KHD, v_KHD))
    out = varlen_attn(
        q_THD,
        k_KHD,
        v_KHD,
        segments.query_starts,
        segments.key_starts,
        max(queries for queries, _ in segments.sizes),
        max(keys for _, keys in segments.sizes),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    assert isinstance(out, torch.Tensor), "no log-sum-exps were asked for"
    return out


@cache
def _takes_grouped_heads(function: Callable[..., Any]) -> bool:
    return "enable_gqa" in inspect.signature(function).parameters
