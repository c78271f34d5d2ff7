"""Rows of a file, read as its name's ending says: JSON Lines, a JSON array, CSV or Parquet, each also compressed.

A row that cannot be read is a `rows.BadRow` in its place. What makes the whole file unreadable (a cut archive, an
array that does not close) is an error, since nothing says where its rows are.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

from reasongenrm.data.rows import BadRow, checked_text, is_text, parse_json, read_json_lines
from reasongenrm.errors import InputError
from reasongenrm.processes.extras import require
from reasongenrm.store.artifacts import COMPRESSED_ENDINGS, DATA_ENDINGS

MAX_CELL_CHARS = 2**31 - 1  # the csv module's own limit, 131,072, is less than a long conversation has
_DELIMITERS = (",", ";", "\t")
_LIST_COLUMNS = (  # of docs/data.md; a list in another column stays text
    *("answers", "chosen", "completions", "context", "conversation_a", "conversation_b", "conversations", "prompt"),
    "rejected",
)


def read_rows_of(data: bytes, name: str) -> list[tuple[str, Any]]:
    """The rows of a file, each with the name to call it by ("file line 3", "file row 3").

    Args:
        data: the file's content.
        name: its name; the ending says how it is read, and a name without one of ours is taken as JSON Lines.

    Raises:
        InputError: the file as a whole is not what its ending says, or has no rows.
        ConfigError: Parquet or zstd, and the extra 'data' is not installed.
    """
    plain = name
    for ending in COMPRESSED_ENDINGS:
        if name.endswith(ending):
            plain, data = name.removesuffix(ending), _decompressed(data, name, ending)
    if plain.endswith(".parquet"):
        rows = _parquet_rows(data, name)
    elif plain.endswith(".csv"):
        rows = list(_csv_rows(data, name))
    elif plain.endswith(".json") and data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
        rows = _array_rows(data, name)
    else:
        rows = list(read_json_lines(data, name))
    if not rows:
        raise InputError(
            f"{name}: the file has no rows; expected JSON Lines, or what another ending says ({', '.join(DATA_ENDINGS)}"
            "). Check that it was written whole."
        )
    return rows


def _decompressed(data: bytes, name: str, ending: str) -> bytes:
    try:
        if ending == ".gz":
            return gzip.decompress(data)
        require("data")
        import pyarrow

        return bytes(pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd").read())
    except (OSError, EOFError, zlib.error) as error:
        what = "gzip" if ending == ".gz" else "zstd"
        raise InputError(
            f"{name}: cannot be decompressed as {what} ({error}); expected a whole file. Fetch or compress it again."
        ) from error


def _parquet_rows(data: bytes, name: str) -> list[tuple[str, Any]]:
    require("data")
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{name}: not Parquet ({' '.join(str(error).split())[:200]}); expected a whole file. Fetch it again."
        ) from error
    return [(f"{name} row {number}", row) for number, row in enumerate(_values(table), start=1)]


def _values(table: Any) -> list[Any]:
    """The rows as objects: all at once, or by halves where one has no value in Python, such as text not in UTF-8."""
    try:
        return list(table.to_pylist())
    except (ValueError, OverflowError) as error:
        if table.num_rows == 1:
            return [BadRow("unreadable_value", f"holds a value that cannot be read ({error})")]
        half = table.num_rows // 2
        return [*_values(table.slice(0, half)), *_values(table.slice(half))]


def _array_rows(data: bytes, name: str) -> list[tuple[str, Any]]:
    expected = "expected one array of objects. Fix the file, or write it as JSON Lines, where a bad row is one line's"
    try:
        text = data.decode("utf-8-sig")
        rows = parse_json(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name} line {line}: not UTF-8 text; {expected}.") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{name} line {error.lineno}: not JSON ({error.msg}); {expected}.") from error
    except RecursionError as error:
        raise InputError(f"{name}: lists and objects stand in each other too deep; {expected}.") from error
    except ValueError as error:
        raise InputError(f"{name}: holds a number of thousands of digits; {expected}.") from error
    return [(f"{name} row {number}", checked_text(row, text)) for number, row in enumerate(rows, start=1)]


def _csv_rows(data: bytes, name: str) -> Iterator[tuple[str, Any]]:
    """The rows below the header, as objects of texts; a cell that holds a list of turns or answers as that list."""
    # Bytes that are not UTF-8 become half surrogates, so that they are the fault of their own row.
    text = data.decode("utf-8-sig", errors="surrogateescape")
    csv.field_size_limit(MAX_CELL_CHARS)
    delimiter = max(_DELIMITERS, key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        where = f"{name} line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise InputError(f"{where}: no header of CSV ({error}); expected the columns' names.") from error
            yield where, BadRow("not_csv", f"not CSV ({error})")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if not is_text("".join(header)):
                raise InputError(
                    f"{where}: the header is not UTF-8 text; expected the columns' names. Save the file as UTF-8."
                )
            if len(set(header)) < len(header):
                raise InputError(f"{where}: a column's name comes twice in the header; expected names that differ.")
        else:
            yield where, _csv_row(header, cells)


def _csv_row(header: list[str], cells: list[str]) -> Any:
    if len(cells) != len(header):
        return BadRow("cell_count", f"has {len(cells)} cells, the header {len(header)}")
    if not is_text("".join(cells)):
        return BadRow("not_utf8", "not UTF-8 text")
    row: dict[str, Any] = {}
    for column, cell in zip(header, cells, strict=True):
        value = _list_in(cell) if column in _LIST_COLUMNS else cell
        if isinstance(value, BadRow):
            return value
        row[column] = value
    return row


def _list_in(cell: str) -> Any:
    """A list of objects that a cell holds as JSON; the text if it is anything else, such as an answer in JSON."""
    if not cell.lstrip().startswith("["):
        return cell
    try:
        value = parse_json(cell)
    except (ValueError, RecursionError):
        return cell
    marks = ({"role", "content"}, {"from", "value"}, {"answer", "rank"}, {"response"})
    is_list = isinstance(value, list) and value and all(isinstance(one, dict) for one in value)
    return checked_text(value, cell) if is_list and any(mark <= one.keys() for mark in marks for one in value) else cell
