"""Rows of JSON Lines, or of a data set on the Hugging Face hub, each with the place where it stands.

This is the one reader of JSON Lines that others wrote. A line that cannot be read is a `BadRow` in its place, with its
own cause: the reader of the rows decides whether it stops the work or is dropped and counted.
"""

import codecs
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from reasongenrm.errors import InputError
from reasongenrm.processes.extras import require

T = TypeVar("T")
MAX_DEPTH = 100  # of lists and objects in each other; chat data has 5, and what recurses later needs a bound


class BadRow(NamedTuple):
    """What stands in the place of a row that cannot be read.

    Attributes:
        cause: in snake_case, for counts: not_utf8, not_json, half_surrogate, too_deep, number_too_long; of CSV
            not_csv, cell_count; of Parquet unreadable_value.
        problem: in words, without a full stop.
    """

    cause: str
    problem: str


def read_json_lines(data: bytes, name: str) -> Iterator[tuple[str, Any]]:
    """The rows of JSON Lines, each with its place ("file line 3"); a line that cannot be read is a `BadRow`.

    A byte order mark, Windows line ends and empty lines are taken as what they are. NaN and Infinity, which JSON lacks
    and Python writes, are read as null.
    """
    # Not splitlines(): JSON text may hold U+2028 and other separators unescaped.
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            yield f"{name} line {number}", _json_line(line)


def _json_line(line: bytes) -> Any:
    """The value of one line, or why there is none."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRow("not_utf8", f"not UTF-8 text (byte {line[error.start]:#04x} at column {error.start + 1})")
    try:
        return checked_text(parse_json(text), text)
    except json.JSONDecodeError as error:
        return BadRow("not_json", f"not JSON ({error.msg} at column {error.colno}: {text.strip()[:40]!r})")
    except RecursionError:
        return BadRow("too_deep", f"lists and objects stand in each other more than {MAX_DEPTH} deep")
    except ValueError:  # of int(): Python refuses to read a number of more than 4,300 digits
        return BadRow("number_too_long", "holds a number of thousands of digits")


def parse_json(text: str) -> Any:
    """JSON text as a value, NaN and Infinity as null.

    Raises:
        json.JSONDecodeError: it is not JSON.
        RecursionError: deeper than `MAX_DEPTH`.
        ValueError: a whole number has more digits than Python reads.
    """
    value = json.loads(text, parse_constant=lambda _name: None)
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise RecursionError
    return value


def checked_text(row: Any, text: str) -> Any:
    """The row, or a `BadRow` if `text`, its JSON, spells half a surrogate pair, which no file can hold as UTF-8."""
    if "\\ud" in text.lower() and not is_text(json.dumps(row, ensure_ascii=False)):
        return BadRow("half_surrogate", "holds half a surrogate pair, no text")
    return row


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold a string: no half of a surrogate pair is in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def renamed_row(row: Any, columns: Mapping[str, str]) -> Any:
    """A row with our names of columns; what the row lacks stays missing.

    Args:
        columns: ours -> the file's own.
    """
    if not isinstance(row, Mapping) or not columns:
        return row
    return {**row, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}}


def _depth(value: Any) -> int:
    """How many lists and objects stand in each other."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, list | dict)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


def hub_commit(name: str) -> str:
    """The newest commit of a data set on the hub.

    Raises:
        InputError: there is no such data set, or the hub cannot be reached.
        ConfigError: the extra 'data' is not installed.
    """
    require("data")
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(HfApi().dataset_info(name).sha)
    except (HfHubHTTPError, httpx2.TransportError, OSError) as error:
        raise _not_had(name, error) from error


def hub_rows(name: str, split: str, revision: str | None = None, subset: str | None = None) -> list[tuple[str, Any]]:
    """The rows of a data set on the hub, each with its place ("owner/name row 3").

    Args:
        revision: a commit; None: the newest.
        subset: which of the data set's configurations; None: the default one.

    Raises:
        InputError: there is no such data set or split, or the hub cannot be reached.
        ConfigError: the extra 'data' is not installed.
    """
    require("data")
    from datasets import load_dataset

    try:
        rows = load_dataset(name, subset, split=split, revision=revision)
    except (OSError, ValueError) as error:
        part = f"subset '{subset}', " if subset else ""
        raise _not_had(f"{name}, {part}split '{split}'", error) from error
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
