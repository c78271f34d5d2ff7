"""First on PYTHONPATH, lets torchrun's processes shard on CPUs, and makes them say what they hold or die when told to.

accelerate shards on accelerators alone; without one it falls back to unconnected processes. Here it is told of a
process group on gloo. DeepSpeed's and torch's own code does the sharding, and nothing of ours is changed.

    GLOO_SHARDING=1        shard over gloo
    WITNESS=FOLDER         after its first optimizer step each process writes FOLDER/RANK.json
    DIE=RANK,STEP          the process of this rank kills itself after its optimizer step STEP
"""

import importlib
import json
import os
import signal
from pathlib import Path
from typing import Any

if "LOCAL_RANK" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch
    import transformers.training_args
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType
    from transformers.trainer_callback import CallbackHandler

    if os.environ.get("GLOO_SHARDING"):
        os.environ["DS_ACCELERATOR"] = "cpu"
        comm = importlib.import_module("deepspeed.comm.torch")  # as an attribute this is torch itself

        def prepare_backend(*_: object, **__: object) -> tuple[str, DistributedType]:
            return "gloo", DistributedType.MULTI_GPU

        def set_device(state: PartialState) -> None:
            state.device = torch.device("cpu")

        def no_shm_op() -> None:
            """Between processes of one machine DeepSpeed would compile a C++ kernel; gloo does without."""

        def yes() -> bool:
            return True

        PartialState._prepare_backend = prepare_backend
        PartialState.set_device = set_device
        comm.build_shm_op = no_shm_op
        transformers.training_args.is_torch_bf16_gpu_available = yes  # the CPU computes in bfloat16 too

    rank = os.environ["RANK"]

    def held(tensor: Any) -> int:
        """Elements of a tensor that this process keeps: DeepSpeed's part, FSDP2's part, or all."""
        if hasattr(tensor, "ds_tensor"):
            return int(tensor.ds_tensor.numel())
        return int(tensor.to_local().numel() if hasattr(tensor, "to_local") else tensor.numel())

    def write_witness(handler: CallbackHandler, path: Path) -> None:
        state, optimizer = AcceleratorState(), handler.optimizer
        while hasattr(optimizer, "optimizer"):  # accelerate's and DeepSpeed's wrappers
            optimizer = optimizer.optimizer
        sharded = state.distributed_type == DistributedType.DEEPSPEED
        witness = {
            "kind": state.distributed_type.value,
            "num_processes": state.num_processes,
            "zero_stage": state.deepspeed_plugin.zero_stage if sharded else None,
            "weights": sum(held(parameter) for parameter in handler.model.parameters()),
            "moments": sum(held(moments["exp_avg"]) for moments in optimizer.state.values()),
            "dtypes": sorted({str(moments["exp_avg"].dtype) for moments in optimizer.state.values()}),
        }
        if state.distributed_type == DistributedType.FSDP:
            policy = handler.model._get_fsdp_state()._mp_policy
            witness["policy"] = [str(policy.param_dtype), str(policy.reduce_dtype), str(policy.output_dtype)]
        path.write_text(json.dumps(witness))

    plain = CallbackHandler.on_step_end

    def on_step_end(handler: CallbackHandler, args: Any, state: Any, control: Any) -> Any:
        control = plain(handler, args, state, control)
        if (folder := os.environ.get("WITNESS")) and state.global_step == 1:
            write_witness(handler, Path(folder) / f"{rank}.json")
        if os.environ.get("DIE") == f"{rank},{state.global_step}":
            os.kill(os.getpid(), signal.SIGKILL)
        return control

    CallbackHandler.on_step_end = on_step_end
