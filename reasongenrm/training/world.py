"""The processes that train together: how many, on which nodes, and what they need of this machine.

One node takes its number of processes from the config or from its GPUs. Several nodes are described by the environment
that Kubeflow Trainer's torch plugin sets in every pod: PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR
and PET_MASTER_PORT (kubeflow/trainer pkg/runtime/framework/plugins/torch/torch.go at 8c0f5059b).
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from reasongenrm.config import TrainConfig
from reasongenrm.errors import ConfigError
from reasongenrm.processes.extras import require
from reasongenrm.training.sharding import RIGID

# NCCL's own advice for containers, whose default is 64 MiB: "--shm-size=1g" (NCCL user guide, Troubleshooting).
_MIN_SHARED_MEMORY = 1 << 30
_SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True)
class World:
    """All processes of one training."""

    num_nodes: int = 1  # machines or pods
    node_rank: int = 0  # this one's number, from 0
    num_processes: int = 1  # on this node, and on every other
    master: tuple[str, int] | None = None  # host and port of node 0; None for one node

    @property
    def size(self) -> int:
        """Processes of all nodes."""
        return self.num_nodes * self.num_processes

    def __str__(self) -> str:
        processes = f"{self.num_processes} processes" if self.num_processes > 1 else "1 process"
        return f"{self.num_nodes} nodes x {processes}" if self.num_nodes > 1 else processes

    def torchrun(self) -> list[str]:
        """torchrun's options."""
        options = ["--nproc-per-node", str(self.num_processes)]
        if self.master is None:
            return ["--standalone", *options]
        host, port = self.master
        return [
            *options,
            *("--nnodes", str(self.num_nodes)),
            *("--node-rank", str(self.node_rank)),
            *("--master-addr", host),
            *("--master-port", str(port)),
        ]


def find_world(config: TrainConfig, stage: str, environ: Mapping[str, str] = os.environ) -> World:
    """The processes that this stage's training runs in, seen from this node.

    `config.num_processes` decides, else a number in PET_NPROC_PER_NODE, else the visible GPUs, else 1.

    Raises:
        ConfigError: not one process a GPU, no whole batch, sharding over a single process or without DeepSpeed, too
            little shared memory, or an environment that describes no node.
    """
    import torch

    if config.sharding in RIGID:
        require("deepspeed")
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    asked = environ.get("PET_NPROC_PER_NODE", "auto")
    given = int(asked) if asked.isdecimal() else None  # else "auto" or "gpu": one a GPU
    world = World(
        num_nodes=_number(environ, "PET_NNODES", stage, 1),
        node_rank=_number(environ, "PET_NODE_RANK", stage, 0),
        num_processes=config.num_processes or given or num_gpus or 1,
    )
    if world.num_nodes > 1:
        missing = [name for name in ("PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT") if not environ.get(name)]
        if missing:
            raise ConfigError(
                f"{stage}: PET_NNODES is {world.num_nodes}, but {', '.join(missing)} is not set; expected what "
                "Kubeflow Trainer's torch plugin sets on every node. Start the nodes by a TrainJob, or unset "
                "PET_NNODES."
            )
        port = _number(environ, "PET_MASTER_PORT", stage, 0)
        world = World(world.num_nodes, world.node_rank, world.num_processes, (environ["PET_MASTER_ADDR"], port))
    check_batch(config, stage, world)
    # With fewer, transformers splits batches in threads; with more, NCCL hangs.
    if num_gpus and world.num_processes != num_gpus:
        raise ConfigError(
            f"{stage}: num_processes is {world.num_processes}, but {num_gpus} GPU(s) are visible; expected one process "
            f"a GPU. Set num_processes to {num_gpus}, leave it out, or hide GPUs with CUDA_VISIBLE_DEVICES."
        )
    if config.sharding != "none" and world.size == 1:
        raise ConfigError(
            f"{stage}: sharding is '{config.sharding}', but there is one process: it would hold everything. Set "
            "sharding to 'none', or give the stage more GPUs."
        )
    if num_gpus and world.num_processes > 1:
        _check_shared_memory(stage)
    return world


def check_batch(config: TrainConfig, stage: str, world: World) -> None:
    """Ask for a batch of which every process gets a part; a ConfigError names one that would do."""
    if config.train_batch_size < world.size:
        raise ConfigError(
            f"{stage}: train_batch_size is {config.train_batch_size}, over all processes; expected at least one "
            f"example for each of {world}. Set it to {world.size} or more."
        )


def _number(environ: Mapping[str, str], name: str, stage: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not text.isdecimal():
        raise ConfigError(
            f"{stage}: {name} is '{text}'; expected a whole number: the number of nodes is fixed while they train. "
            "Unset it, or set a number."
        )
    return int(text)


def _check_shared_memory(stage: str) -> None:
    """Ask for the shared memory through which NCCL's processes talk: with too little, one of them dies of a SIGBUS."""
    total = shutil.disk_usage(_SHARED_MEMORY).total
    if total < _MIN_SHARED_MEMORY:
        raise ConfigError(
            f"{stage}: {_SHARED_MEMORY} has {total >> 20:,} MiB; expected at least {_MIN_SHARED_MEMORY >> 20:,} MiB "
            f"for several GPU processes of one pod. Mount an emptyDir of medium Memory at {_SHARED_MEMORY} (Docker: "
            "--shm-size=8g)."
        )
