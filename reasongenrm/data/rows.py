"""Rows of a JSON Lines file, or of a data set on the Hugging Face hub, each with the place where it stands."""

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from reasongenrm.errors import InputError

T = TypeVar("T")


def parse_json_lines(data: bytes, name: str, shape: str) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON Lines file, each with its place ("file line 3").

    Args:
        shape: what a row should be, for messages.

    Raises:
        InputError: the file is empty, or a line is not JSON in UTF-8; names the file and the line.
    """
    expected = f"expected JSON Lines, one per line {shape}"
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name} line {place}: not UTF-8 text; {expected}. Convert the file.") from error
    if not text.strip():
        raise InputError(f"{name}: the file is empty; {expected}. Check that it was written whole.")
    # Not splitlines(): JSON text may hold U+2028 and other separators unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{name} line {number}: not JSON ({error.msg} at column {error.colno}: {line[:40]!r}); {expected}. "
                "Fix or remove the line."
            ) from error
        # JSON can spell half a surrogate pair ("\\ud83d"), which no file can hold as UTF-8.
        if "\\ud" in line.lower():
            try:
                json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                where = f"{name} line {number}"
                raise InputError(f"{where}: holds half a surrogate pair, no text. Fix or remove the line.") from error
        yield f"{name} line {number}", row


def hub_commit(name: str) -> str:
    """The newest commit of a data set on the hub.

    Raises:
        InputError: there is no such data set, or the hub cannot be reached.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(HfApi().dataset_info(name).sha)
    except (HfHubHTTPError, httpx2.TransportError, OSError) as error:
        raise _not_had(name, error) from error


def hub_rows(name: str, split: str, revision: str | None = None) -> list[tuple[str, Any]]:
    """The rows of a data set on the hub, each with its place ("owner/name row 3").

    Args:
        revision: a commit; None: the newest.

    Raises:
        InputError: there is no such data set or split, or the hub cannot be reached.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split=split, revision=revision)
    except (OSError, ValueError) as error:
        raise _not_had(f"{name}, split '{split}'", error) from error
    return [(f"{name} row {number}", row) for number, row in enumerate(rows, start=1)]


def _not_had(what: str, error: Exception) -> InputError:
    return InputError(
        f"{what}: neither a local file nor a data set that the hub gives: {' '.join(str(error).split())[:300]}. Check "
        "the name and the network, or give a JSON Lines file (a name that ends in .jsonl, or ./path) or an s3:// URI."
    )


def take(items: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` items, in their order: the first after a seeded shuffle, so that a small run sees every
    source."""
    places = list(range(len(items)))
    random.Random(seed).shuffle(places)
    return [items[place] for place in sorted(places[:limit])]
