"""The self-check of an image, run inside it: `reasongenrm doctor --image NAME`.

In: the name of the image that this should be. Out: findings, as the doctor's. What an image must hold stands here; images/lock.py
resolves its lock files from the same table.
"""

import importlib
import importlib.metadata
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from reasongenrm import __version__
from reasongenrm.processes.doctor import Finding, missing_packages, unfit_packages

# Image -> extras of pyproject.toml. kfp is in all of them: its executor runs the task.
EXTRAS = {
    "cpu": ("data", "pipeline", "cluster", "judge", "web"),
    "train": ("data", "train", "deepspeed", "pipeline", "cluster", "serve"),
    "vllm": ("data", "vllm", "pipeline"),
}
# Image -> what must not be there: a gigabyte without use, or another image's environment.
FOREIGN = {"cpu": ("torch", "vllm"), "train": ("vllm",), "vllm": ("trl", "deepspeed")}
# Image -> stage functions that its tasks call (a test compares with components/).
STAGES = {
    "cpu": (
        "pairs.prepare_pairs",
        "selection.select_reasons",
        "selection.select_preferences",
        "gate.select_winner",
        "serving.deploy_kserve",
    ),
    "train": ("model.import_model", "scoring.score_reasons", "sft.train_sft", "dpo.train_dpo"),
    "vllm": ("reasons.distill_reasons", "reasons.sample_reasons", "evaluation.evaluate_rewardbench"),
}
# Image -> commands that its pods run in addition to the tasks: the judge's server, the web page (a test compares with the manifests).
COMMANDS = {"cpu": ("judge-server", "web"), "train": ("serve",), "vllm": ()}
# Image -> what those functions and commands import only when they work.
LAZY = {
    "cpu": (
        *("datasets", "kubernetes", "transformers", "kfp.dsl.executor_main"),
        *("reasongenrm.judge.server.app", "reasongenrm.judge.service", "reasongenrm.web.site"),
    ),
    "train": (
        "datasets",
        "kfp.dsl.executor_main",
        "reasongenrm.training.trainers",
        "reasongenrm.serving.server",
        "deepspeed",
    ),
    "vllm": ("datasets", "kfp.dsl.executor_main", "reasongenrm.generation.vllm", "vllm"),
}
CACHES = {
    "cpu": ("HF_HOME", "XDG_CACHE_HOME"),
    "train": ("HF_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR"),
    "vllm": ("HF_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT"),
}
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "tcc", "nvcc", "ld", "as", "make")
MIN_SHM_MIB = {"cpu": 0, "train": 1024, "vllm": 1024}  # NCCL and the workers of tensor parallelism share memory there


def examine_image(name: str) -> list[Finding]:
    """Look at the image that this process runs in.

    Args:
        name: "cpu", "train" or "vllm".
    """
    return [
        _version(name),
        *(_extra(extra) for extra in EXTRAS[name]),
        *(_absent(package) for package in FOREIGN[name]),
        *(
            _imports(f"stage {stage}", f"reasongenrm.{stage.split('.')[0]}", stage.split(".")[1])
            for stage in STAGES[name]
        ),
        *(_command(command) for command in COMMANDS[name]),
        *(_imports(f"import {module}", module) for module in LAZY[name]),
        _user(os.getuid()),
        _no_compiler(),
        _root(),
        _writable("/tmp", Path("/tmp")),
        _shared_memory(MIN_SHM_MIB[name]),
        *(_cache(variable) for variable in CACHES[name]),
        _cuda(),
    ]


def _version(name: str) -> Finding:
    from reasongenrm.components.images import read_table

    tag = read_table()[name].rpartition(":")[2]
    installed = importlib.metadata.version("reasongenrm")
    right = tag == installed == __version__
    advice = "" if right else "The package, its metadata and the table of images must agree: rebuild the image."
    return Finding("version", right, f"{__version__}, installed as {installed}, tag {tag}", advice)


def _extra(extra: str) -> Finding:
    wrong = [*missing_packages(extra), *unfit_packages(extra)]
    advice = "Rewrite the lock files (make lock-images) and rebuild the image." if wrong else ""
    return Finding(f"extra '{extra}'", not wrong, "; ".join(wrong) or "installed", advice)


def _absent(package: str) -> Finding:
    absent = find_spec(package) is None
    advice = "" if absent else "It belongs into another image: build this one from its own lock file."
    return Finding(f"no {package}", absent, "absent" if absent else "installed", advice)


def _imports(what: str, module: str, function: str | None = None) -> Finding:
    try:
        found = importlib.import_module(module)
        if function is not None:
            vars(found)[function]
    except (ImportError, KeyError, OSError) as error:  # OSError: a shared library that is not there
        return Finding(what, False, f"{type(error).__name__}: {error}", "A package is missing: rebuild the image.")
    return Finding(what, True, "works")


def _command(name: str) -> Finding:
    from reasongenrm.cli import app

    found = [command.name or "" for command in app.registered_commands]
    advice = "" if name in found else "The package in this image is another version: rebuild the image."
    return Finding(f"command {name}", name in found, "works" if name in found else f"only {', '.join(found)}", advice)


def _user(uid: int) -> Finding:
    advice = "" if uid else "Run as 65532, the image's own user (securityContext.runAsUser)."
    return Finding("user", uid != 0, f"uid {uid}", advice)


def _no_compiler() -> Finding:
    found = [path for compiler in COMPILERS if (path := shutil.which(compiler))]
    advice = "No image of ours has one: take BASE without compilers (a -slim tag)." if found else ""
    return Finding("no compiler", not found, ", ".join(found) or "none on the PATH", advice)


def _root() -> Finding:
    if os.statvfs("/").f_flag & os.ST_RDONLY:
        return Finding("root file system", True, "read-only")
    open_to_us = [folder for folder in ("/", "/opt", "/usr", "/etc") if os.access(folder, os.W_OK)]
    found = "writable in " + ", ".join(open_to_us) if open_to_us else "writable, but not for this user"
    advice = "Run as 65532 and set readOnlyRootFilesystem: true." if open_to_us else ""
    return Finding("root file system", not open_to_us, found, advice)


def _writable(what: str, folder: Path) -> Finding:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"written")
            file.flush()
    except OSError as error:
        return Finding(what, False, f"{folder}: {error}", f"Mount an emptyDir at {folder.parts[0]}{folder.parts[1]}.")
    return Finding(what, True, f"{folder} is writable")


def _cache(variable: str) -> Finding:
    value = os.environ.get(variable)
    if not value or Path("/tmp") not in Path(value).parents:
        return Finding(
            variable, False, value or "not set", f"Set {variable} to a folder below /tmp, the only one writable."
        )
    return _writable(variable, Path(value))


def _shared_memory(expected_mib: int) -> Finding:
    stat = os.statvfs("/dev/shm")
    mib = stat.f_blocks * stat.f_frsize // 2**20
    enough = mib >= expected_mib
    advice = (
        "" if enough else f"For several GPUs mount an emptyDir (medium: Memory) of {expected_mib} MiB or more there."
    )
    return Finding("/dev/shm", enough, f"{mib} MiB", advice, needed=False)


def _cuda() -> Finding:
    if find_spec("torch") is None:
        return Finding("CUDA", False, "no torch in this image", "None is needed.", needed=False)
    import torch

    there = torch.cuda.is_available()
    found = (
        f"{torch.cuda.device_count()} device(s), torch {torch.__version__}"
        if there
        else f"none, torch {torch.__version__}"
    )
    return Finding("CUDA", there, found, "" if there else "Needed on GPU nodes only.", needed=False)
