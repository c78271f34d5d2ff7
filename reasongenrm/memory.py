"""Does a training step fit into the GPU's memory with all its activations, or do they have to be computed twice?

An estimate from the model's config alone, before anything is allocated: what is wrong by some percent errs towards computing
twice, which costs a quarter of the speed; an out-of-memory error would cost the run.
"""

from typing import Protocol

from reasongenrm.config import TrainConfig

# Bytes a parameter: float32 weights, gradients, AdamW's two moments. What `sharding` spreads over N processes, and what not.
_STATE_BYTES = {"none": (0, 16), "zero2": (12, 6), "zero3": (18, 0), "fsdp2": (16, 0)}
_COPY_BYTES = 2  # autocast's bfloat16 copy of the weights, or the layers that a sharded model has gathered
# Vocabulary logits of TRL's fused head: 4,096 tokens x 32,768 entries, a few copies in float32.
_HEAD_BYTES = 4 * 4096 * 32768 * 4
_USABLE = 0.92  # CUDA's own context, NCCL's buffers, fragments


class ModelConfig(Protocol):
    """What is read of a transformers config."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool


def num_parameters(model: ModelConfig) -> int:
    """Parameters of a Llama or Qwen 2.5 model, a tied head once; norms and biases left out."""
    head_dim = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    attention = 2 * model.hidden_size * head_dim * (model.num_attention_heads + model.num_key_value_heads)
    layer = attention + 3 * model.hidden_size * model.intermediate_size
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    return model.num_hidden_layers * layer + embeddings


def activation_bytes(model: ModelConfig, dtype: str) -> int:
    """Bytes that a token's activations take until the backward pass, over all layers.

    A layer keeps the inputs of its matrix products and norms: 7 vectors of the hidden size (two residuals, two norms' outputs,
    queries before and after their rotation, the attention's output), 4 of keys' and values' size, 3 of the MLP's.
    """
    head_dim = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    width = 7 * model.hidden_size + 4 * model.num_key_value_heads * head_dim + 3 * model.intermediate_size
    return model.num_hidden_layers * width * (2 if dtype == "bfloat16" else 4)


def training_bytes(model: ModelConfig, config: TrainConfig, max_tokens: int, num_processes: int) -> int:
    """Bytes on each GPU, without checkpointing, at the largest micro-batch of `max_tokens` tokens."""
    spread, whole = _STATE_BYTES[config.sharding]
    parameters = num_parameters(model)
    states = parameters * (spread / num_processes + whole)
    copy = parameters * _COPY_BYTES if config.dtype == "bfloat16" and config.sharding == "none" else 0
    return int(states + copy + max_tokens * activation_bytes(model, config.dtype) + _HEAD_BYTES)


def fits_without_checkpointing(model: ModelConfig, config: TrainConfig, max_tokens: int, num_processes: int) -> bool:
    """Whether `training_bytes` are there: on the smallest visible GPU, or on a CPU in the memory that is free now."""
    import torch

    if torch.cuda.is_available():
        room = min(torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count()))
    else:
        import psutil

        room = psutil.virtual_memory().available // num_processes
    return training_bytes(model, config, max_tokens, num_processes) < _USABLE * room
