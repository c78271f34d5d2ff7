"""How many tokens a forward pass of training takes, and whether activations are kept or recomputed.

An estimate from the model's config alone, before anything is allocated. An error of some percent leads to fewer tokens
or to computing twice, which costs some of the speed; an out-of-memory error would cost the run. `reasongenrm plan` asks
the same formula how many GPUs a model needs.
"""

from pathlib import Path

from reasongenrm.config import TrainConfig
from reasongenrm.errors import InputError
from reasongenrm.training.shapes import ModelShape, find_shape

# Bytes per parameter that `sharding` spreads over all processes, and that each holds whole: float32 weights, gradients,
# AdamW's two moments; with zero3 DeepSpeed's bfloat16 weights as well.
_STATE_BYTES = {"none": (0, 16), "zero2": (12, 6), "zero3": (18, 0), "fsdp2": (16, 0)}
_COPY_BYTES = 2  # autocast's bfloat16 copy of the weights, or the layers that a sharded model has gathered
_BUCKET_BYTES = 4  # DistributedDataParallel's copy of the gradients
_BYTES = {"bfloat16": 2, "float32": 4}
# Of the loss: logits of 4,096 tokens x 32,768 entries at a time, a few copies in float32.
_HEAD_BYTES = 4 * 4096 * 32768 * 4
USABLE = 0.92  # of a GPU's memory; the rest is for CUDA's own context, NCCL's buffers, fragments

# Every forward pass zeroes, casts and adds up gradients as large as the weights, whatever its number of tokens. So more
# tokens are faster, with less and less gain; and fewer, down to a point, are faster than computing activations twice
# (docs/speed.md, "Tokens of a forward pass").
_FEWEST, USUAL_TOKENS, _MOST = 8_192, 16_384, 32_768
_COMFORTABLE = 0.85  # what more tokens than usual may fill: the gain is not worth a run out of memory


def countable_shape(model_dir: Path) -> ModelShape | None:
    """A checkpoint's shape; None for an architecture whose parameters and activations we cannot count."""
    try:
        return find_shape(str(model_dir))
    except InputError:
        return None


def activation_bytes(model: ModelShape, dtype: str) -> int:
    """Bytes that a token's activations take until the backward pass, over all layers.

    A layer keeps the inputs of its matrix products and norms: 7 vectors of the hidden size (two residuals, two norms'
    outputs, queries before and after their rotation, the attention's output), 4 of keys' and values' size, 3 of the
    MLP's.
    """
    width = 7 * model.hidden_size + 4 * model.num_kv_heads * model.head_dim + 3 * model.intermediate_size
    return model.num_layers * width * _BYTES[dtype]


def training_bytes(
    model: ModelShape, config: TrainConfig, max_tokens: int, num_processes: int, *, checkpointing: bool = False
) -> int:
    """Bytes on each GPU at the largest micro-batch: states, activations, and a tile of the loss's logits.

    Args:
        config: its `sharding` and `dtype` count.
        max_tokens: of the micro-batch.
        num_processes: of all nodes; one per GPU.
        checkpointing: a layer keeps its input alone and is computed again, one at a time, after the loss.
    """
    spread, whole = _STATE_BYTES[config.sharding]
    states = model.num_parameters * (spread / num_processes + whole)
    if config.sharding == "none":
        states += model.num_parameters * _COPY_BYTES * (config.dtype == "bfloat16")
        states += model.num_parameters * _BUCKET_BYTES * (num_processes > 1)
    activations = max_tokens * activation_bytes(model, config.dtype)
    if not checkpointing:
        return int(states + activations + _HEAD_BYTES)
    inputs = max_tokens * model.num_layers * model.hidden_size * _BYTES[config.dtype]
    return int(states + inputs + max(_HEAD_BYTES, activations / model.num_layers))


def max_batch_tokens(model: ModelShape | None, config: TrainConfig, num_processes: int) -> int:
    """The most tokens of a forward pass: the config's, or as many as fit comfortably with all their activations.

    On a CPU more tokens gain nothing. The estimate has been compared with a GPU that holds everything itself; with
    `sharding` the usual number stays, and on several nodes, whose processes must come to the same plan, though their
    GPUs may differ; and for a model that cannot be counted (None).
    """
    import torch

    if config.max_batch_tokens != "auto":
        return config.max_batch_tokens
    known = model is not None and config.sharding == "none" and config.gradient_checkpointing is not True
    if not (known and torch.cuda.is_available() and num_processes <= torch.cuda.device_count()):
        return USUAL_TOKENS
    assert model is not None
    room = _COMFORTABLE * _gpu_memory() - training_bytes(model, config, 0, num_processes)
    fitting = int(room / activation_bytes(model, config.dtype))
    return min(fitting, _MOST) if fitting >= _FEWEST else USUAL_TOKENS


def fits_without_checkpointing(
    model: ModelShape | None, config: TrainConfig, max_tokens: int, num_processes: int
) -> bool:
    """Whether `training_bytes` are there: on the smallest visible GPU, or on a CPU in the memory that is free now.

    False for a model that cannot be counted (None).
    """
    if model is None:
        return False
    import psutil
    import torch

    on_gpu = torch.cuda.is_available()
    room = _gpu_memory() if on_gpu else psutil.virtual_memory().available // num_processes
    return training_bytes(model, config, max_tokens, num_processes) < USABLE * room


def _gpu_memory() -> int:
    """Bytes of the smallest visible GPU."""
    import torch

    return min(torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count()))
