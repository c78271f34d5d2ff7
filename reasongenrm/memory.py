"""Does a training step fit into the GPU's memory with all its activations, or do they have to be computed twice?

An estimate from the model's config alone, before anything is allocated: what is wrong by some percent errs towards computing
twice, which costs a quarter of the speed; an out-of-memory error would cost the run.
"""

from pathlib import Path

from reasongenrm.config import TrainConfig
from reasongenrm.errors import InputError
from reasongenrm.planning.shapes import HEAD_BYTES, ModelShape, find_shape

# Bytes a parameter: float32 weights, gradients, AdamW's two moments. What `sharding` spreads over N processes, and what not.
_STATE_BYTES = {"none": (0, 16), "zero2": (12, 6), "zero3": (18, 0), "fsdp2": (16, 0)}
_COPY_BYTES = 2  # autocast's bfloat16 copy of the weights, or the layers that a sharded model has gathered
_USABLE = 0.92  # CUDA's own context, NCCL's buffers, fragments


def countable_shape(model_dir: Path) -> ModelShape | None:
    """A checkpoint's shape; None for an architecture whose parameters and activations we cannot count."""
    try:
        return find_shape(str(model_dir))
    except InputError:
        return None


def activation_bytes(model: ModelShape, dtype: str) -> int:
    """Bytes that a token's activations take until the backward pass, over all layers.

    A layer keeps the inputs of its matrix products and norms: 7 vectors of the hidden size (two residuals, two norms' outputs,
    queries before and after their rotation, the attention's output), 4 of keys' and values' size, 3 of the MLP's.
    """
    width = 7 * model.hidden_size + 4 * model.num_kv_heads * model.head_dim + 3 * model.intermediate_size
    return model.num_layers * width * (2 if dtype == "bfloat16" else 4)


def training_bytes(model: ModelShape, config: TrainConfig, max_tokens: int, num_processes: int) -> int:
    """Bytes on each GPU, without checkpointing, at the largest micro-batch of `max_tokens` tokens."""
    spread, whole = _STATE_BYTES[config.sharding]
    states = model.num_parameters * (spread / num_processes + whole)
    copy = model.num_parameters * _COPY_BYTES if config.dtype == "bfloat16" and config.sharding == "none" else 0
    return int(states + copy + max_tokens * activation_bytes(model, config.dtype) + HEAD_BYTES)


def fits_without_checkpointing(
    model: ModelShape | None, config: TrainConfig, max_tokens: int, num_processes: int
) -> bool:
    """Whether `training_bytes` are there: on the smallest visible GPU, or on a CPU in the memory that is free now.

    Args:
        model: None if it cannot be counted; then False.
    """
    if model is None:
        return False
    import torch

    if torch.cuda.is_available():
        room = min(torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count()))
    else:
        import psutil

        room = psutil.virtual_memory().available // num_processes
    return training_bytes(model, config, max_tokens, num_processes) < _USABLE * room
