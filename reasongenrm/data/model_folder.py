"""A folder with a model: which files belong to it, and whether it is whole and safe, told without loading it.

In: config.json, safetensors weights and a tokenizer. Out: their paths and the headers of the weights. What the weights
and the tokenizer hold is looked at in model_checks.py.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from reasongenrm.errors import InputError
from reasongenrm.records import CALIBRATION_FILE

TOKENIZER_CONFIG = "tokenizer_config.json"
INDEX = "model.safetensors.index.json"
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))  # any one set will do
# What is copied besides config and weights, where it is there.
EXTRAS = (
    *(name for names in _TOKENIZERS for name in names),
    "generation_config.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    CALIBRATION_FILE,
)


@dataclass(frozen=True)
class TensorHeader:
    """What a safetensors file says of a tensor."""

    file: Path
    dtype: str  # as safetensors names it ("BF16", "F32")
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFolder:
    """A folder that has been found to be a whole model."""

    files: dict[str, Path]  # what belongs to it, by name, sorted
    tensors: dict[str, TensorHeader]  # by name

    @property
    def num_parameters(self) -> int:
        """Counted from the weights' headers; tied weights once."""
        return self._parameters.total()

    @property
    def dtype(self) -> str:
        """Of most parameters, as safetensors names it."""
        return self._parameters.most_common(1)[0][0]

    @cached_property
    def _parameters(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for tensor in self.tensors.values():
            counts[tensor.dtype] += math.prod(tensor.shape)
        return counts


def check_folder(path: Path, where: str) -> ModelFolder:
    """Find out whether a folder holds a whole, safe model, without loading it.

    Args:
        where: what messages call the folder.

    Raises:
        InputError: config, weights or tokenizer are missing or damaged, the weights are pickles or quantised, or the
            model needs custom code.
    """
    weights = check_listing(path, where)
    tensors: dict[str, TensorHeader] = {}
    for file in weights:
        if file.suffix == ".safetensors":
            tensors |= _read_headers(file, where)
    extras = [path / name for name in EXTRAS if (path / name).is_file()]
    files = {file.name: file for file in sorted([path / "config.json", *weights, *extras])}
    return ModelFolder(files, tensors)


def check_listing(path: Path, where: str) -> list[Path]:
    """See that all files of a model are there and that it is safe, without a look into its weights.

    Returns:
        The weights' files, and their index if there are several.

    Raises:
        InputError: as `check_folder`.
    """
    config = read_json(path / "config.json", where)
    if "model_type" not in config:
        raise InputError(f"{where}/config.json: has no model_type, as a transformers config has. Copy it again.")
    for name in ("config.json", TOKENIZER_CONFIG):
        if (path / name).is_file() and "auto_map" in read_json(path / name, where):
            raise InputError(
                f"{where}/{name}: the model needs custom Python code (auto_map), which is never run. "
                "Give a model that transformers knows."
            )
    if "quantization_config" in config:
        raise InputError(f"{where}: the weights are quantised and cannot be trained. Give the original model.")
    if not any(all((path / name).is_file() for name in names) for names in _TOKENIZERS):
        raise InputError(f"{where}: found no tokenizer; expected tokenizer.json next to the weights. Copy it too.")
    return _weight_files(path, where)


def _weight_files(path: Path, where: str) -> list[Path]:
    """The safetensors files, with their index if there are several."""
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    if (path / INDEX).is_file():
        shards = sorted(set(read_json(path / INDEX, where).get("weight_map", {}).values()))
        missing = [name for name in shards if not (path / name).is_file()]
        if missing or not shards:
            raise InputError(
                f"{where}/{INDEX}: names {len(shards)} weight files, of which {len(missing)} are missing "
                f"({', '.join(missing[:3])}). Copy the model again."
            )
        return [path / INDEX, *(path / name for name in shards)]
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise InputError(
            f"{where}: the weights are pickles ({pickles[0]}), which can run code when they are loaded; expected "
            "model.safetensors. Give a safetensors version of the model."
        )
    if (path / "adapter_config.json").is_file():
        raise InputError(f"{where}: is an adapter without its model, no model.safetensors. Merge it into its base.")
    raise InputError(
        f"{where}: a model folder without weights; expected model.safetensors, or {INDEX} and the files that it "
        "names. Copy the model again, or give another folder."
    )


def _read_headers(path: Path, where: str) -> dict[str, TensorHeader]:
    """See that a file's header is valid and that all its tensors are there; returns them by name."""
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, TensorHeader] = {}
    try:
        with safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 - the file itself cannot be iterated
                tensor = file.get_slice(name)
                tensors[name] = TensorHeader(path, tensor.get_dtype(), tuple(tensor.get_shape()))
    except SafetensorError as error:
        raise InputError(
            f"{where}/{path.name}: not a whole safetensors file ({error}). It is damaged or was not copied whole. Copy "
            "it again."
        ) from error
    if not tensors:
        raise InputError(f"{where}/{path.name}: holds no weights. Copy it again.")
    return tensors


def read_json(path: Path, where: str) -> dict[str, Any]:
    """A file of a model that holds a mapping.

    Raises:
        InputError: it is not there, or something else is in it; `where` is what the message calls its folder.
    """
    if not path.is_file():
        raise InputError(f"{where}: found no {path.name}; expected the folder of a model. Check the path or copy it.")
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{where}/{path.name}: not JSON ({error}). Copy the model again.") from error
    if not isinstance(values, dict):
        raise InputError(f"{where}/{path.name}: found a {type(values).__name__}, expected a mapping. Copy it again.")
    return values
