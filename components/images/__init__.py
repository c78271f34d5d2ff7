"""The images that the tasks run in, by what must be installed, from the table that kustomize reads too
(kustomization.yaml).

Tags are versions: KFP's cache key has an image's name, not its content. REASONGENRM_IMAGE_CPU, _TRAIN and _VLLM name
other
images while the pipeline is compiled: a registry of your own, or the CPU build for a cluster without GPUs.
"""

import os
from pathlib import Path

import yaml

TABLE = Path(__file__).with_name("kustomization.yaml")
NAMES = ("cpu", "train", "vllm")


def read_table() -> dict[str, str]:
    """Image name ("cpu", "train", "vllm") -> its reference, REGISTRY/NAME:TAG."""
    rows = yaml.safe_load(TABLE.read_text(encoding="utf-8"))["images"]
    return {row["name"].removeprefix("reasongenrm-"): f"{row['newName']}:{row['newTag']}" for row in rows}


def image(name: str) -> str:
    """The image to use: that of the table, or the one that REASONGENRM_IMAGE_<NAME> names."""
    return os.environ.get(f"REASONGENRM_IMAGE_{name.upper()}") or read_table()[name]


CPU, TRAIN, VLLM = (image(name) for name in NAMES)
