"""import_model: the checkpoint that everything starts from, checked and copied into the store.

In: a local folder, a .gguf file, an s3:// folder or a model's name on the hub. Out: config, safetensors weights and
tokenizer as they are; the base model keeps its own chat template. No code that comes with a model is ever run.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reasongenrm.config import ModelConfig
from reasongenrm.data.chat import FAMILY_KEY, REASONING_PARSER
from reasongenrm.data.model_checks import check_tokenizer, check_weights
from reasongenrm.data.model_folder import EXTRAS, INDEX, TOKENIZER_CONFIG, check_folder, read_json
from reasongenrm.errors import InputError
from reasongenrm.store.artifacts import (
    ArtifactRef,
    FileEntry,
    Store,
    digest_bytes,
    download,
    open_artifact,
    sha256_file,
)
from reasongenrm.store.stage import Stage, content_digest

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_GGUF_MAGIC = b"GGUF"


def import_model(store: Store, config: ModelConfig, model_uri: str, *, scores: bool = True) -> ArtifactRef:
    """Check a model and copy it into the store.

    Args:
        model_uri: an existing folder; a file ending in .gguf, which is converted to `config.dtype`; s3://bucket/folder;
            or "organisation/name" on the hub, at `config.revision` or the newest, whose commit is recorded.
        scores: whether it will score reasons or be trained, as all but a teacher do; see `check_weights`.

    Returns:
        A model; metrics source, revision, chat_family, num_parameters, dtype. It is not imported again while its bytes
        (on the hub: its commit; in S3: its objects' names, sizes and ETags) are the same.

    Raises:
        InputError: there is no such model, or it is not whole, not safe, or of no supported chat family; docs/models.md
            lists all that is checked.
    """
    path = Path(model_uri).expanduser()
    check_revision(config, model_uri)
    if model_uri.lower().startswith("s3://"):
        return _import_s3(store, config, model_uri, scores)
    if model_uri.endswith(".gguf"):
        return _import_gguf(store, config, path, scores)
    if path.is_dir():
        folder = check_folder(path, model_uri)
        digest = content_digest(
            FileEntry(path=name, size=file.stat().st_size, sha256=sha256_file(file))
            for name, file in folder.files.items()
        )
        with Stage(store, "import_model", config, {"model": digest}) as stage:
            return stage.done or _finish(stage, config, path, str(path.resolve()), None, scores)
    if is_hub_model(model_uri):
        return _import_hub(store, config, model_uri, scores)
    raise no_such_model(model_uri)


def check_revision(config: ModelConfig, uri: str) -> None:
    """See that a revision is asked for of the hub alone.

    Raises:
        InputError: it is of a folder, a file or S3.
    """
    if config.revision is not None and (uri.lower().startswith("s3://") or Path(uri).expanduser().exists()):
        raise InputError(
            f"{uri}: model.revision is {config.revision!r}, but only models of the hub have one. Leave it out."
        )


def is_hub_model(uri: str) -> bool:
    """Whether a model's URI has the form of a name on the hub."""
    return _HUB_NAME.fullmatch(uri) is not None and not uri.startswith(".")


def no_such_model(uri: str) -> InputError:
    """The error for what is neither there nor a name on the hub."""
    return InputError(
        f"{uri}: no such folder; expected a folder with config.json, *.safetensors and a tokenizer, a .gguf "
        "file, s3://bucket/folder, or organisation/name on the hub. Check the path."
    )


def _import_s3(store: Store, config: ModelConfig, uri: str, scores: bool) -> ArtifactRef:
    source = Store(uri)
    artifact = source.exists("manifest.json")
    digest = open_artifact(uri).digest if artifact else _s3_digest(source)
    with Stage(store, "import_model", config, {"model": digest}) as stage:
        if stage.done:
            return stage.done
        folder = stage.work_dir / "download"
        if artifact:
            download(uri, folder)
        else:
            source.get_files({name: folder / name for name in source.list() if "/" not in name.strip("/")})
        return _finish(stage, config, folder, uri, None, scores)


def check_gguf(path: Path) -> None:
    """See that a GGUF file is there.

    Raises:
        InputError: it is not, or it is something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a GGUF file. Check the path.")
    with path.open("rb") as file:
        magic = file.read(len(_GGUF_MAGIC))
    if magic != _GGUF_MAGIC:
        raise InputError(f"{path}: begins with {magic!r}; a GGUF file begins with {_GGUF_MAGIC!r}. Download it again.")


def _import_gguf(store: Store, config: ModelConfig, path: Path, scores: bool) -> ArtifactRef:
    check_gguf(path)
    with Stage(store, "import_model", config, {"model": f"sha256:{sha256_file(path)}"}) as stage:
        if stage.done:
            return stage.done
        folder = stage.work_dir / "converted"
        _convert_gguf(path, folder, config.dtype)
        return _finish(stage, config, folder, str(path.resolve()), None, scores)


def _import_hub(store: Store, config: ModelConfig, name: str, scores: bool) -> ArtifactRef:
    from huggingface_hub import HfApi

    hub = HfApi()
    with hub_errors(name, config.revision):
        commit = hub.model_info(name, revision=config.revision).sha
        with Stage(store, "import_model", config, {"model": digest_bytes(f"{name}@{commit}".encode())}) as stage:
            if stage.done:
                return stage.done
            patterns = ["config.json", "model*.safetensors", INDEX, *EXTRAS, "pytorch_model*.json"]
            folder = Path(hub.snapshot_download(name, revision=commit, allow_patterns=patterns))
            return _finish(stage, config, folder, name, commit, scores)


@contextmanager
def hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub raises into one InputError: no such model or revision, no right to it, or no hub."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = f"{name} at {revision or 'its newest revision'}"
    try:
        yield
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{wanted}: the hub answers: {reason} Check the name and the revision (and, if the model is gated, log in "
            "with `hf auth login`)."
        ) from error
    except (ConnectionError, httpx2.TransportError, LocalEntryNotFoundError) as error:
        raise InputError(
            f"{wanted}: there is no such folder here, and the hub cannot be reached ({error}). Check the path, or go "
            "online."
        ) from error


def _finish(
    stage: Stage, config: ModelConfig, path: Path, source: str, revision: str | None, scores: bool
) -> ArtifactRef:
    """Check a folder once more, its weights and its tokenizer too, and make it the stage's artifact."""
    folder = check_folder(path, source)
    num_rows = check_weights(folder, path, source, scores=scores)
    chat = check_tokenizer(path, source, num_rows, config.chat_family)
    for name, file in folder.files.items():
        if name == TOKENIZER_CONFIG and chat.is_named:
            values = read_json(file, source) | {FAMILY_KEY: chat.family.name}
            stage.add_bytes(name, json.dumps(values, indent=2).encode())
        else:
            stage.add_file(file, name)
    if chat.is_judge:
        # Ours, never the folder's own: vLLM runs this file.
        stage.add_bytes(REASONING_PARSER.name, REASONING_PARSER.read_bytes())
    metrics = {
        "source": source,
        "revision": revision,
        "chat_family": chat.family.name,
        "num_parameters": folder.num_parameters,
        "dtype": folder.dtype,
    }
    return stage.finish({"num_files": len(folder.files) + chat.is_judge}, metrics)


def _convert_gguf(path: Path, folder: Path, dtype: str) -> None:
    """Write a GGUF file's weights, dequantised, and its tokenizer as a checkpoint."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    transformers.utils.logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model = AutoModelForCausalLM.from_pretrained(
            **source, quantization_config=GgufConfig(dequantize=True), dtype=getattr(torch, dtype)
        )
    except (OSError, ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: cannot be read as a GGUF file: {reason}. It may be cut short, or of an architecture that "
            "transformers does not convert. Download it again, or give the original model."
        ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _s3_digest(source: Store) -> str:
    """What an S3 folder holds, told from the listing: names, sizes and ETags, which change with the content."""
    from reasongenrm.store import s3

    with s3.errors(source.uri, "list"):
        prefix = f"{source.prefix}/" if source.prefix else ""
        pages = s3.make_client().get_paginator("list_objects_v2").paginate(Bucket=source.bucket, Prefix=prefix)
        objects: list[Mapping[str, Any]] = [item for page in pages for item in page.get("Contents", ())]
    if not objects:
        raise InputError(f"{source.uri}: nothing is there; expected a folder with a model. Check the URI.")
    lines = sorted(f"{item['Key'].removeprefix(prefix)}\0{item['Size']}\0{item['ETag']}\n" for item in objects)
    return digest_bytes("".join(lines).encode())
