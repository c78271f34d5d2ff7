"""The checkpoint that `reasongenrm serve` serves: a folder, a model in the store, or a GGUF file."""

import shutil
from collections.abc import Callable
from pathlib import Path

from reasongenrm.config import ModelConfig
from reasongenrm.runs.local import existing_store, local_folder, open_store
from reasongenrm.serving.started import ServedCheckpoint
from reasongenrm.store.artifacts import download


def find_checkpoint(model: str | None, store: str, fallback: Callable[[], Path]) -> ServedCheckpoint:
    """The checkpoint to serve, as a local folder.

    Args:
        model: a folder, a model in the store (s3://...), or a .gguf file, which is imported into the store and given
            our chat template. None: the winner of the store's last run; without one, `fallback`.
        fallback: finds the .gguf file of a model for those who have trained none.

    Raises:
        InputError: the model is not there.
    """
    winner = local_folder(store) / "winner"
    if model is None and winner.is_dir():
        return ServedCheckpoint(winner)
    if model is None or model.endswith(".gguf"):
        return ServedCheckpoint(_import_gguf(model or str(fallback()), store), is_trained=False)
    if model.lower().startswith("s3://"):
        # Not a temporary folder: vLLM takes this process over, so nobody could remove it.
        with existing_store(store):
            return ServedCheckpoint(_fetch(model, local_folder(store) / "served"))
    return ServedCheckpoint(Path(model).expanduser())


def _fetch(uri: str, folder: Path) -> Path:
    """A copy of a model in the store, over that of an earlier call."""
    shutil.rmtree(folder, ignore_errors=True)
    return download(uri, folder)


def _import_gguf(path: str, store: str) -> Path:
    from transformers import AutoTokenizer

    from reasongenrm.data.chat import detect_family, install_template
    from reasongenrm.data.import_model import import_model

    with open_store(store) as opened:
        folder = _fetch(import_model(opened, ModelConfig(), path).uri, local_folder(store) / "untrained")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    install_template(tokenizer, detect_family(tokenizer), "reason")
    tokenizer.save_pretrained(folder)
    return folder
