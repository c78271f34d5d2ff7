"""The libraries that all ways share: kept quiet, and found by every way as they were."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import torch
import transformers
from transformers.models.qwen2 import modeling_qwen2

# liger puts its own classes into a model's module when it patches one model, and so into every model that is made
# later.
PATCHED_MODULES = (modeling_qwen2,)


@contextmanager
def unpatched() -> Iterator[None]:
    """Undo at the end what the context has replaced in the libraries' modules."""
    before = [(module, dict(vars(module))) for module in PATCHED_MODULES]
    try:
        yield
    finally:
        for module, names in before:
            vars(module).update(names)


def quieten() -> None:
    """Leave out bars, and what the libraries say of each other's names."""
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed, where installed, says that it saw no GPU
    for library in ("trl", "transformers"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
