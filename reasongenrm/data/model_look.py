"""A model before it is fetched: whether it is there, may be had, and is of a kind that the import takes.

Weights stay where they are. Of a model on the hub or in S3 the list of its files and the small ones are read; of a
folder the headers of the weights too. What the numbers hold is looked at by the import (model_checks.py).
"""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import Field

from reasongenrm.config import ModelConfig
from reasongenrm.data.import_model import check_gguf, check_revision, hub_errors, is_hub_model, no_such_model
from reasongenrm.data.model_checks import check_tokenizer
from reasongenrm.data.model_folder import EXTRAS, INDEX, check_folder, check_listing, read_json
from reasongenrm.errors import InputError
from reasongenrm.records import Record
from reasongenrm.store.artifacts import Store

_SMALL = ("config.json", INDEX, *EXTRAS)


class ModelLook(Record):
    """What was seen of a model.

    Attributes:
        revision: its commit on the hub.
        chat_family: None for a GGUF file, which shows it when it is converted.
        config: its config.json; empty for a GGUF file.
    """

    uri: str
    revision: str | None = None
    chat_family: str | None = None
    config: dict[str, Any] = Field(default_factory=dict, exclude=True)


def look_at_model(config: ModelConfig, uri: str) -> ModelLook:
    """Look at a model as `import_model` takes it, without fetching its weights.

    Raises:
        InputError: there is no such model, this user may not have it, or it is not whole, not safe, or of no supported
            chat family.
        StoreError: the store failed.
    """
    path = Path(uri).expanduser()
    check_revision(config, uri)
    if uri.endswith(".gguf") and "://" not in uri:
        check_gguf(path)
        return ModelLook(uri=uri)
    if uri.lower().startswith("s3://"):
        with TemporaryDirectory() as folder:
            return _look_at_s3(config, uri, Path(folder))
    if path.is_dir():
        check_folder(path, uri)
        return _look(config, uri, path)
    if not is_hub_model(uri):
        raise no_such_model(uri)
    with TemporaryDirectory() as folder:
        return _look_at_hub(config, uri, Path(folder))


def _look_at_s3(config: ModelConfig, uri: str, folder: Path) -> ModelLook:
    source = Store(uri)
    names = [name for name in source.list() if "/" not in name.strip("/")]
    if not names:
        raise InputError(f"{uri}: nothing is there; expected a folder with a model. Check the URI.")
    source.get_files({name: folder / name for name in names if name in _SMALL})
    return _look_at_listing(config, uri, folder, names)


def _look_at_hub(config: ModelConfig, name: str, folder: Path) -> ModelLook:
    from huggingface_hub import HfApi

    hub = HfApi()
    with hub_errors(name, config.revision):
        found = hub.model_info(name, revision=config.revision)
        hub.auth_check(name)
        small = Path(hub.snapshot_download(name, revision=found.sha, allow_patterns=list(_SMALL)))
    for file in small.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    names = [file.rfilename for file in found.siblings or ()]
    return _look_at_listing(config, name, folder, names).model_copy(update={"revision": found.sha})


def _look_at_listing(config: ModelConfig, uri: str, folder: Path, names: Iterable[str]) -> ModelLook:
    """A folder with the small files; the others stand in it empty, so that it can be seen that they are there."""
    for name in names:
        if "/" not in name and not (folder / name).exists():
            (folder / name).touch()
    check_listing(folder, uri)
    return _look(config, uri, folder)


def _look(config: ModelConfig, uri: str, folder: Path) -> ModelLook:
    chat = check_tokenizer(folder, uri, None, config.chat_family)
    return ModelLook(uri=uri, chat_family=chat.family.name, config=read_json(folder / "config.json", uri))
