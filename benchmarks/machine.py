"""What a run was measured on and with."""

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.clock import measured_peak
from benchmarks.figures import Machine
from benchmarks.world import World

LIBRARIES = ("torch", "transformers", "trl", "accelerate", "datasets", "liger-kernel", "triton", "vllm")
ROOT = Path(__file__).parents[1]


def find_machine(world: World, dtype: torch.dtype) -> Machine:
    """Look at the machine and measure its peak, the mean of all processes."""
    peak, how = measured_peak(world.device, dtype)
    return Machine(
        device=device_name(world.device),
        num_processes=world.size,
        peak_tflops=world.sum(peak) / world.size,
        peak_how=how,
        versions={"python": platform.python_version(), **_versions()},
        commit=_commit(),
        load_average=os.getloadavg()[0],
    )


def device_name(device: torch.device) -> str:
    """The GPU's name, or the architecture of the CPU and the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def _versions() -> dict[str, str]:
    """Of what is imported: of a library that is installed twice, the one that comes first."""
    found = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _commit() -> str | None:
    """Of this repository, with a "+" where files differ from it; None where there is no repository, or no git."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return None
    head, changes = (
        subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False).stdout.strip()
        for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"])
    )
    return (head + ("+" if changes else "")) or None
