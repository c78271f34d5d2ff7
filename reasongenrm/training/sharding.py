"""How training state is spread over processes: what `sharding` means to DeepSpeed and to FSDP2.

none: every process holds everything (DDP). zero2: gradients and optimizer states are spread. zero3 and fsdp2: the
weights too. The libraries' own config files are not taken: a key that they do not know changes nothing there, without a
word.
"""

from collections.abc import Mapping
from typing import Any

from reasongenrm.config import SFTConfig, TrainConfig

# What accelerate calls the processes of each kind of sharding.
KINDS = {"zero2": "DEEPSPEED", "zero3": "DEEPSPEED", "fsdp2": "FSDP"}
# DeepSpeed 0.19.8 refuses to load its own checkpoint into another number of processes (runtime/engine.py,
# ZeRORuntimeException); DDP's is whole, and FSDP2's is resharded by torch.distributed.checkpoint.
RIGID = ("zero2", "zero3")


def deepspeed_config(config: TrainConfig) -> dict[str, Any] | None:
    """DeepSpeed's config of ZeRO-2 or ZeRO-3; None for another kind of sharding.

    transformers fills in what says "auto", from the settings that hold without DeepSpeed too. The optimizer and the
    learning rates are the Trainer's own, as everywhere else; nothing is offloaded, so nothing is compiled at run time.
    """
    if config.sharding not in RIGID:
        return None
    zero: dict[str, Any] = {
        "stage": 2 if config.sharding == "zero2" else 3,
        "overlap_comm": True,  # reduces one bucket while the backward pass fills the next
        "contiguous_gradients": True,  # no fragments of memory while gradients appear
        "reduce_bucket_size": "auto",  # hidden_size squared: a bucket a matrix
    }
    if config.sharding == "zero3":
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",  # 10 x hidden_size: norms stay whole, not worth a message
            "stage3_gather_16bit_weights_on_model_save": True,  # otherwise no weights can be saved
        }
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},  # weights in bfloat16, their master copy in float32 within the optimizer
        **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu"), "auto"),
        **dict.fromkeys(("gradient_accumulation_steps", "gradient_clipping"), "auto"),
        # Dozens of micro-batches add up to one gradient: in bfloat16's 8 bits the last of them would be lost.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        # Nodes share no disk: the first process of every node makes the folder that the node writes to.
        "checkpoint": {"use_node_local_storage": True},
        "steps_per_print": 2**31 - 1,  # we show our own progress
    }


def fsdp_config(config: TrainConfig, *, checkpointing: bool) -> dict[str, Any] | None:
    """transformers' config of FSDP2 (torch's `fully_shard`); None for another kind of sharding."""
    if config.sharding != "fsdp2":
        return None
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # a layer is gathered as a whole; its class is the model's own
        "reshard_after_forward": True,  # ZeRO-3; False would be ZeRO-2
        # Recomputing is FSDP's business: that of transformers would gather each layer's weights once more.
        "activation_checkpointing": checkpointing,
        # The first process of a node reads the weights, those of the first node are sent: a float32 copy of 14B weights
        # is
        # 56 GB. TRL's DPO spreads its reference model without sending it, so there every process has to read.
        "cpu_ram_efficient_loading": isinstance(config, SFTConfig),
        # Every process writes its own part of a checkpoint, and another number of processes can read it.
        "state_dict_type": "SHARDED_STATE_DICT",
    }


def without_tied(state: Mapping[str, Any], tied: Mapping[str, str]) -> dict[str, Any]:
    """A state dict without copies (`tied`: name -> name of the original): gathered, they no longer show that they
    are."""
    return {name: tensor for name, tensor in state.items() if tied.get(name) not in state}
