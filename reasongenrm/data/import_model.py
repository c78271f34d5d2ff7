"""import_model: the checkpoint that everything starts from, checked and copied into the store.

In: a local folder, a .gguf file, an s3:// folder or a model's name on the hub. Out: config, safetensors weights and
tokenizer as they are; the base model keeps its own chat template. No code that comes with a model is ever run.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasongenrm.config import ModelConfig
from reasongenrm.data.chat import REASONING_PARSER, detect_family, is_installed
from reasongenrm.errors import InputError
from reasongenrm.records import CALIBRATION_FILE
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

_INDEX = "model.safetensors.index.json"
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))  # any one set will do
# What is copied besides config and weights, where it is there.
_EXTRAS = (
    *(name for names in _TOKENIZERS for name in names),
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    CALIBRATION_FILE,
)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class ModelFolder:
    """A folder that has been found to be a whole model."""

    files: dict[str, Path]  # what belongs to it, by name, sorted
    num_parameters: int  # counted from the weights' headers; tied weights once
    dtype: str  # of most parameters, as safetensors names it ("BF16", "F32")


def import_model(store: Store, config: ModelConfig, model_uri: str) -> ArtifactRef:
    """Check a model and copy it into the store.

    Args:
        model_uri: an existing folder; a file ending in .gguf, which is converted to `config.dtype`; s3://bucket/folder;
            or "organisation/name" on the hub, at `config.revision` or the newest, whose commit is recorded.

    Returns:
        A model; metrics source, revision, chat_family, num_parameters, dtype. It is not imported again while its bytes
        (on the hub: its commit; in S3: its objects' names, sizes and ETags) are the same.

    Raises:
        InputError: there is no such model, or it is not whole, not safe, or of no supported chat family.
    """
    path = Path(model_uri).expanduser()
    if config.revision is not None and (model_uri.startswith("s3://") or path.exists()):
        raise InputError(
            f"{model_uri}: model.revision is {config.revision!r}, but only models of the hub have one. Leave it out."
        )
    if model_uri.startswith("s3://"):
        return _import_s3(store, config, model_uri)
    if model_uri.endswith(".gguf"):
        return _import_gguf(store, config, path)
    if path.is_dir():
        folder = check_folder(path, model_uri)
        digest = content_digest(
            FileEntry(path=name, size=file.stat().st_size, sha256=sha256_file(file))
            for name, file in folder.files.items()
        )
        with Stage(store, "import_model", config, {"model": digest}) as stage:
            return stage.done or _finish(stage, config, path, str(path.resolve()), None)
    if _HUB_NAME.fullmatch(model_uri) and not model_uri.startswith("."):
        return _import_hub(store, config, model_uri)
    raise InputError(
        f"{model_uri}: no such folder; expected a folder with config.json, *.safetensors and a tokenizer, a .gguf "
        "file, s3://bucket/folder, or organisation/name on the hub. Check the path."
    )


def _import_s3(store: Store, config: ModelConfig, uri: str) -> ArtifactRef:
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
        return _finish(stage, config, folder, uri, None)


def _import_gguf(store: Store, config: ModelConfig, path: Path) -> ArtifactRef:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a GGUF file. Check the path.")
    with path.open("rb") as file:
        magic = file.read(len(_GGUF_MAGIC))
    if magic != _GGUF_MAGIC:
        raise InputError(f"{path}: begins with {magic!r}; a GGUF file begins with {_GGUF_MAGIC!r}. Download it again.")
    with Stage(store, "import_model", config, {"model": f"sha256:{sha256_file(path)}"}) as stage:
        if stage.done:
            return stage.done
        folder = stage.work_dir / "converted"
        _convert_gguf(path, folder, config.dtype)
        return _finish(stage, config, folder, str(path.resolve()), None)


def _import_hub(store: Store, config: ModelConfig, name: str) -> ArtifactRef:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = f"{name} at {config.revision or 'its newest revision'}"
    hub = HfApi()
    try:
        commit = hub.model_info(name, revision=config.revision).sha
        with Stage(store, "import_model", config, {"model": digest_bytes(f"{name}@{commit}".encode())}) as stage:
            if stage.done:
                return stage.done
            patterns = ["config.json", "model*.safetensors", _INDEX, *_EXTRAS, "pytorch_model*.json"]
            folder = Path(hub.snapshot_download(name, revision=commit, allow_patterns=patterns))
            return _finish(stage, config, folder, name, commit)
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


def _finish(stage: Stage, config: ModelConfig, path: Path, source: str, revision: str | None) -> ArtifactRef:
    """Check a folder once more, its tokenizer too, and make it the stage's artifact."""
    folder = check_folder(path, source)
    family, is_judge = _chat_family(path, source)
    if config.chat_family not in (None, family):
        raise InputError(
            f"{source}: its tokens are those of the chat family {family}, but model.chat_family is "
            f"{config.chat_family}. Leave chat_family out, or give the model that was meant."
        )
    for name, file in folder.files.items():
        stage.add_file(file, name)
    if is_judge:
        # Ours, never the folder's own: vLLM runs this file.
        stage.add_bytes(REASONING_PARSER.name, REASONING_PARSER.read_bytes())
    metrics = {
        "source": source,
        "revision": revision,
        "chat_family": family,
        "num_parameters": folder.num_parameters,
        "dtype": folder.dtype,
    }
    return stage.finish({"num_files": len(folder.files) + is_judge}, metrics)


def check_folder(path: Path, where: str) -> ModelFolder:
    """Find out whether a folder holds a whole, safe model, without loading it.

    Args:
        where: what messages call the folder.

    Raises:
        InputError: config, weights or tokenizer are missing or damaged, the weights are pickles or quantised, or the
            model needs custom code.
    """
    config = _read_json(path / "config.json", where)
    if "model_type" not in config:
        raise InputError(f"{where}/config.json: has no model_type, as a transformers config has. Copy it again.")
    for name in ("config.json", "tokenizer_config.json"):
        if (path / name).is_file() and "auto_map" in _read_json(path / name, where):
            raise InputError(
                f"{where}/{name}: the model needs custom Python code (auto_map), which is never run. "
                "Give a model that transformers knows."
            )
    if "quantization_config" in config:
        raise InputError(f"{where}: the weights are quantised and cannot be trained. Give the original model.")
    if not any(all((path / name).is_file() for name in names) for names in _TOKENIZERS):
        raise InputError(f"{where}: found no tokenizer; expected tokenizer.json next to the weights. Copy it too.")
    weights = _weight_files(path, where)
    num_parameters: Counter[str] = Counter()
    for file in weights:
        if file.suffix == ".safetensors":
            num_parameters.update(_check_safetensors(file, where))
    extras = [path / name for name in _EXTRAS if (path / name).is_file()]
    files = {file.name: file for file in sorted([path / "config.json", *weights, *extras])}
    [(dtype, _)] = num_parameters.most_common(1)
    return ModelFolder(files, num_parameters.total(), dtype)


def _weight_files(path: Path, where: str) -> list[Path]:
    """The safetensors files, with their index if there are several."""
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    if (path / _INDEX).is_file():
        shards = sorted(set(_read_json(path / _INDEX, where).get("weight_map", {}).values()))
        missing = [name for name in shards if not (path / name).is_file()]
        if missing or not shards:
            raise InputError(
                f"{where}/{_INDEX}: names {len(shards)} weight files, of which {len(missing)} are missing "
                f"({', '.join(missing[:3])}). Copy the model again."
            )
        return [path / _INDEX, *(path / name for name in shards)]
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise InputError(
            f"{where}: the weights are pickles ({pickles[0]}), which can run code when they are loaded; expected "
            "model.safetensors. Give a safetensors version of the model."
        )
    if (path / "adapter_config.json").is_file():
        raise InputError(f"{where}: is an adapter without its model, no model.safetensors. Merge it into its base.")
    raise InputError(
        f"{where}: a model folder without weights; expected model.safetensors, or {_INDEX} and the files that it "
        "names. Copy the model again, or give another folder."
    )


def _check_safetensors(path: Path, where: str) -> Counter[str]:
    """See that a file's header is valid and that all its tensors are there; returns the number of parameters per
    dtype."""
    from safetensors import SafetensorError, safe_open

    num_parameters: Counter[str] = Counter()
    try:
        with safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 - the file itself cannot be iterated
                tensor = file.get_slice(name)
                num_parameters[tensor.get_dtype()] += math.prod(tensor.get_shape())
    except SafetensorError as error:
        raise InputError(
            f"{where}/{path.name}: not a whole safetensors file ({error}). It is damaged or was not copied whole. Copy "
            "it again."
        ) from error
    if not num_parameters:
        raise InputError(f"{where}/{path.name}: holds no weights. Copy it again.")
    return num_parameters


def _read_json(path: Path, where: str) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{where}: found no {path.name}; expected the folder of a model. Check the path or copy it.")
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{where}/{path.name}: not JSON ({error}). Copy the model again.") from error
    if not isinstance(values, dict):
        raise InputError(f"{where}/{path.name}: found a {type(values).__name__}, expected a mapping. Copy it again.")
    return values


def _chat_family(path: Path, where: str) -> tuple[str, bool]:
    """The family of a folder's tokenizer, which must have a chat template, and whether that is a judge's."""
    from transformers import AutoTokenizer

    if (path / "tokenizer.json").is_file():
        _read_json(path / "tokenizer.json", where)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where}: its tokenizer cannot be loaded: {reason} Copy the model again.") from error
    family = detect_family(tokenizer)
    if tokenizer.chat_template is None:
        raise InputError(f"{where}: has no chat template; expected an instruct model, which has one. Give such a one.")
    return family.name, is_installed(tokenizer)


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
