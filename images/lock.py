"""Rewrite the lock files of the images: every package with its version and hashes, resolved by `uv pip compile`.

`make lock-images` runs this. `cpu` and `train` take the versions of requirements.lock, with which the tests run; `vllm`
is an environment of its own. What differs between a CUDA and a CPU build of torch stands in files of its own,
torch-*.lock.
"""

import re
import subprocess
import sys
from pathlib import Path

from reasongenrm.cli.doctor import IMAGES

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "3.11"  # of the base images
PLATFORM = "x86_64-manylinux_2_28"  # what torch's wheels are built for

CONSTRAINED = ("cpu", "train")
# A CUDA build of torch brings these, and Liger's kernels with them; a CPU build only torch.
TORCH_BUILD = re.compile(r"(torch|triton|nvidia|cuda|liger)[-=\[]")
BUILD_TOOLS = ("pip", "setuptools", "wheel", "hatchling", "poetry-core")


def resolve(uv: str, name: str) -> str:
    """The lock of one image as text."""
    command = [uv, "pip", "compile", "--quiet", "--generate-hashes", "--no-annotate", "--no-header", "--upgrade"]
    command += [
        "--no-emit-index-url",
        "--no-emit-find-links",
        "--python-version",
        PYTHON,
        "--python-platform",
        PLATFORM,
    ]
    extras = (*IMAGES[name].extras, *(["liger"] if name == "train" else []))
    command += ["pyproject.toml", *(f"--extra={extra}" for extra in extras)]
    command += ["--constraints", "requirements.lock"] if name in CONSTRAINED else []
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def blocks(lock: str) -> list[str]:
    """One string a package: the line with its version, and the lines with its hashes."""
    return re.findall(r"^\S.*\n(?:[ \t].*\n)*", lock, flags=re.MULTILINE)


def split_torch(lock: str) -> tuple[str, str, str]:
    """(what needs no particular build of torch, the CUDA build with its libraries, the CPU build)."""
    found = blocks(lock)
    torch = [block for block in found if TORCH_BUILD.match(block)]
    version = re.search(r"^torch==(\S+)", lock, flags=re.MULTILINE)
    assert version is not None, "no torch in the lock"
    rest = [block for block in found if block not in torch]
    # No hash: PyTorch's own index and a distribution's folder of wheels have different builds of the same version.
    return "".join(rest), "".join(torch), f"torch=={version[1]}+cpu\n"


def main() -> None:
    """Write all lock files; the only argument is the path of uv."""
    uv = sys.argv[1]
    for name in IMAGES:
        folder = ROOT / "images" / name
        lock = resolve(uv, name)
        if name == "train":
            lock, cuda, cpu = split_torch(lock)
            (folder / "torch-cuda.lock").write_text(cuda, encoding="utf-8")
            (folder / "torch-cpu.lock").write_text(cpu, encoding="utf-8")
        (folder / "requirements.lock").write_text(lock, encoding="utf-8")
    tools = [uv, "pip", "compile", "--quiet", "--generate-hashes", "--no-annotate", "--no-header", "--upgrade", "-"]
    tools += ["--no-emit-index-url", "--no-emit-find-links", "--python-version", PYTHON]
    given = "\n".join(BUILD_TOOLS)
    built = subprocess.run(tools, cwd=ROOT, check=True, input=given, stdout=subprocess.PIPE, text=True).stdout
    (ROOT / "images" / "build.lock").write_text(built, encoding="utf-8")


if __name__ == "__main__":
    main()
