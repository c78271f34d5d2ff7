"""Files of rows by their ending: each gives the same rows, and what cannot be read is said or stands in its place."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import parquet

from reasongenrm.config import PairsConfig
from reasongenrm.data.pairs import read_rows
from reasongenrm.data.row_files import read_rows_of
from reasongenrm.data.rows import BadRow
from reasongenrm.errors import InputError
from reasongenrm.store.artifacts import DATA_FILE_ENDINGS, Store, is_hub_name

ROWS = [
    {"prompt": "Name a river.", "chosen": "The Nile,\nin Africa", "rejected": 'a "sea"'},
    {"prompt": "Ein Fluß?", "chosen": "Elbe \u2028 \U0001f600", "rejected": "7"},
]


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in line) + "\r\n" for line in lines).encode()


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return bytes(sink.getvalue().to_pybytes())


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    ".json": lambda rows: json.dumps(rows, indent=2).encode(),
    ".csv": as_csv,
    ".parquet": as_parquet,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
FILES = [(kind, packed) for kind in WRITERS for packed in PACKERS]


def written(kind: str, packed: str) -> bytes:
    return PACKERS[packed](WRITERS[kind](ROWS))


@pytest.mark.parametrize(("kind", "packed"), FILES)
def test_each_kind_of_file_gives_the_same_rows(kind: str, packed: str) -> None:
    assert [row for _, row in read_rows_of(written(kind, packed), f"f{kind}{packed}")] == ROWS


def test_endings_that_are_read_are_files_and_no_names_on_the_hub() -> None:
    assert sorted(DATA_FILE_ENDINGS) == sorted(kind + packed for kind, packed in FILES)
    assert not any(is_hub_name(f"data/pairs{ending}") for ending in DATA_FILE_ENDINGS)
    assert is_hub_name("data/pairs")


def test_file_in_the_store_is_read_by_its_ending_too(store: Store) -> None:
    store.put_bytes("rows.csv.gz", written(".csv", ".gz"))
    digest, rows = read_rows(store.uri_of("rows.csv.gz"), PairsConfig())
    assert [row for _, row in rows] == ROWS
    assert digest.startswith("sha256:")


def test_places_are_lines_of_text_and_rows_of_the_rest() -> None:
    csv_places = [where for where, _ in read_rows_of(written(".csv", ""), "f.csv")]
    assert csv_places == ["f.csv line 2", "f.csv line 4"]  # the first row takes two lines
    assert [where for where, _ in read_rows_of(written(".json", ""), "f.json")] == ["f.json row 1", "f.json row 2"]
    assert [where for where, _ in read_rows_of(written(".parquet", ""), "f.parquet")][1] == "f.parquet row 2"


def test_json_lines_in_a_file_called_json_are_read_as_lines() -> None:
    assert [row for _, row in read_rows_of(WRITERS[".jsonl"](ROWS), "f.json")] == ROWS


def test_csv_of_spreadsheets_has_a_mark_semicolons_and_lists_of_turns() -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    quoted = json.dumps(turns).replace('"', '""')
    data = f'\ufeffchosen;rejected;note\r\n"{quoted}";[1, 2];"{quoted}"\r\n'.encode()
    [(_, row)] = read_rows_of(data, "f.csv")
    assert row == {"chosen": turns, "rejected": "[1, 2]", "note": json.dumps(turns)}


def test_bad_rows_of_csv_stand_alone_in_their_places() -> None:
    data = b'prompt,chosen,rejected\na,b,c\nx\xff,1,2\n1,2\n"a"b,2,3\n\nd,e,f\n"open,1,2\n'
    found = {
        where: row.cause if isinstance(row, BadRow) else row["prompt"] for where, row in read_rows_of(data, "f.csv")
    }
    assert found == {
        "f.csv line 2": "a",
        "f.csv line 3": "not_utf8",
        "f.csv line 4": "cell_count",
        "f.csv line 5": "not_csv",
        "f.csv line 7": "d",
        "f.csv line 8": "not_csv",
    }


def test_text_of_parquet_that_is_not_utf8_is_its_rows_fault() -> None:
    raw = pyarrow.array([b"good", b"\xff", b"fine"])
    table = pyarrow.table({"prompt": pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())})
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    rows = [row for _, row in read_rows_of(sink.getvalue(), "f.parquet")]
    assert (rows[0], rows[1].cause, rows[2]) == ({"prompt": "good"}, "unreadable_value", {"prompt": "fine"})


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (b"", "f.csv", "f.csv: the file has no rows; expected JSON Lines, or what another ending says"),
        (b"prompt,chosen\n", "f.csv", "the file has no rows"),
        (
            "prompt,chosen\na,b\n".encode("utf-16"),
            "f.csv",
            "f.csv line 1: the header is not UTF-8 text.* Save the file as",
        ),
        (b"a,a\n1,2\n", "f.csv", "a column's name comes twice in the header"),
        (b"[]", "f.json", "the file has no rows"),
        (b'[{"a": 1},\n{"b" 2}]', "f.json", "f.json line 2: not JSON .*write it as JSON Lines"),
        (b"[" * 200 + b"]" * 200, "f.json", "stand in each other too deep"),
        (b"[" + b"1" * 5000 + b"]", "f.json", "a number of thousands of digits"),
        (b'["\xff"]', "f.json", "f.json line 1: not UTF-8"),
        (gzip.compress(b"x" * 100)[:-4], "f.jsonl.gz", "cannot be decompressed as gzip"),
        (b"plain", "f.jsonl.gz", "cannot be decompressed as gzip"),
        (zstd(b"x" * 100)[:-4], "f.jsonl.zst", "cannot be decompressed as zstd"),
        (b"PAR1", "f.parquet", "f.parquet: not Parquet"),
    ],
)
def test_file_that_is_no_such_file_is_named(data: bytes, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_rows_of(data, name)


def said_or_read(data: bytes, name: str) -> bool:
    """Whether there are rows, or an error that names the file; anything else is a traceback."""
    try:
        return bool(read_rows_of(data, name))
    except InputError as error:
        return str(error).encode().startswith(name.encode())  # a terminal can show it


@given(data=st.binary(max_size=200), ending=st.sampled_from(DATA_FILE_ENDINGS))
@example(data=b'[{"a": "\\ud800"}]', ending=".json")
@example(data=b'"', ending=".csv")
def test_whatever_bytes_there_are_they_are_rows_or_an_error_that_says_so(data: bytes, ending: str) -> None:
    assert said_or_read(data, f"f{ending}")


@given(data=st.data(), kind=st.sampled_from(FILES))
def test_damaged_files_are_rows_or_an_error_that_says_so(data: st.DataObject, kind: tuple[str, str]) -> None:
    whole = bytearray(written(*kind))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    assert said_or_read(cut, "f" + "".join(kind))


def test_names_of_files_with_dots_and_spaces_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "my pairs v1.2.json"
    path.write_bytes(written(".json", ""))
    assert read_rows(str(path), PairsConfig())[1][0][0] == f"{path} row 1"
