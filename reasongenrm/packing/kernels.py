"""Prepares a model for packed rows: our attention and, on a GPU, Liger's fused kernels if installed."""

import importlib.util
import logging

import torch
from transformers import PreTrainedModel

from reasongenrm.packing.attention import enable_packed_attention


def prepare_for_packed_rows(model: PreTrainedModel, *, keep_dtype: str | None = None) -> None:
    """Change a model in place.

    Args:
        model: a causal language model whose layers are all attention.
        keep_dtype: "bfloat16" for training under autocast: the residual stream is kept in it. From float32 embeddings
            it would be float32, twice the memory and the traffic of every norm and sum, for digits that the bfloat16
            matrix products around it do not have.
    """
    enable_packed_attention(model)
    if keep_dtype == "bfloat16":
        model.get_input_embeddings().register_forward_hook(_in_bfloat16)
    if torch.cuda.is_available() and importlib.util.find_spec("liger_kernel"):
        from transformers.integrations.liger import apply_liger_kernel

        # It warns of every maker of accelerators whose compiler is not here.
        logging.getLogger("liger_kernel.backends.registry").setLevel(logging.ERROR)
        # The loss is TRL's fused head's.
        apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})


def _in_bfloat16(_: torch.nn.Module, __: tuple[torch.Tensor, ...], embedded: torch.Tensor) -> torch.Tensor:
    return embedded.to(torch.bfloat16)
