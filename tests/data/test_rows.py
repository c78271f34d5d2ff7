"""Rows of JSON Lines files: their places, what is a bad line and why, and what is said about a file that is none."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasongenrm.data.rows import MAX_DEPTH, BadRow, read_json_lines, take

DEEP = b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}"
BAD_LINES = [
    (b'{"a": "\xff"}', "not_utf8", r"not UTF-8 text \(byte 0xff at column 8\)"),
    (b'{"a": 1', "not_json", "not JSON"),
    (b"hello world", "not_json", "not JSON .*'hello world'"),
    (b'{"a": "\\ud83d"}', "half_surrogate", "holds half a surrogate pair"),
    (DEEP, "too_deep", "more than 100 deep"),
    (b"[" * 200_000, "too_deep", "more than 100 deep"),
    (b'{"a": ' + b"1" * 5000 + b"}", "number_too_long", "a number of thousands of digits"),
]


@pytest.mark.parametrize(("line", "cause", "words"), BAD_LINES)
def test_bad_line_stands_in_its_place_with_its_cause(line: bytes, cause: str, words: str) -> None:
    (_, before), (place, row), (last, after) = read_json_lines(b'{"a": 1}\n' + line + b'\n{"a": 2}\n', "f.jsonl")
    assert (before, after) == ({"a": 1}, {"a": 2})
    assert (place, last) == ("f.jsonl line 2", "f.jsonl line 3")
    assert isinstance(row, BadRow)
    assert row.cause == cause
    assert re.search(words, row.problem)


def test_a_mark_windows_line_ends_and_empty_lines_are_no_fault() -> None:
    data = b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}'
    assert list(read_json_lines(data, "f")) == [("f line 1", {"a": 1}), ("f line 4", {"a": 2})]


def test_numbers_that_json_lacks_are_null() -> None:
    assert list(read_json_lines(b'{"a": NaN, "b": [-Infinity, 1]}', "f")) == [("f line 1", {"a": None, "b": [None, 1]})]


def test_depth_of_what_is_read_is_bounded_and_brackets_in_texts_do_not_count() -> None:
    allowed = b'{"a": ' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    [(_, row)] = read_json_lines(allowed, "f")
    assert list(row) == ["a"]
    [(_, code)] = read_json_lines(json.dumps({"a": "[{" * 5000}).encode(), "f")
    assert code == {"a": "[{" * 5000}


@given(st.lists(st.binary(max_size=40)))
def test_no_bytes_give_a_traceback_and_every_line_is_a_row_or_bad(lines: list[bytes]) -> None:
    lines = [line.replace(b"\n", b"") for line in lines]
    rows = list(read_json_lines(b'{"first": 1}\n' + b"\n".join(lines), "f"))
    assert len(rows) == 1 + sum(bool(line.strip()) for line in lines)


def test_line_separators_inside_json_text_do_not_cut_a_row() -> None:
    data = '{"text": "one\u2028two"}\n'.encode()
    assert list(read_json_lines(data, "f")) == [("f line 1", {"text": "one\u2028two"})]


def test_whole_surrogate_pairs_and_backslashes_are_text() -> None:
    data = b'{"a": "\\ud83d\\ude00"}\n{"a": "C:\\\\udder"}\n'
    assert [row["a"] for _, row in read_json_lines(data, "f")] == ["\U0001f600", "C:\\udder"]


def test_limit_takes_a_seeded_sample_in_file_order() -> None:
    items = list(range(50))
    taken = take(items, 10, seed=3)
    assert len(set(taken)) == 10
    assert taken == sorted(taken)
    assert taken == take(items, 10, seed=3) != take(items, 10, seed=4)
    assert take(items, None, seed=3) == items == take(items, 50, seed=3)


def test_split_and_subset_of_a_data_set_on_the_hub_are_read(tmp_path: Path) -> None:
    """`datasets` takes a folder of the data set's name for it, as from a mirror."""
    folder = tmp_path / "owner" / "set"
    folder.mkdir(parents=True)
    parts = {"preference": "test_prefs", "feedback": "train"}
    for subset, split in parts.items():
        (folder / f"{subset}.jsonl").write_text(json.dumps({"of": f"{subset} {split}"}) + "\n")
    configs = [{"config_name": s, "data_files": [{"split": p, "path": f"{s}.jsonl"}]} for s, p in parts.items()]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    program = (
        "from reasongenrm.data.rows import hub_rows; print(hub_rows('owner/set', 'test_prefs', None, 'preference'))"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[('owner/set row 1', {'of': 'preference test_prefs'})]\n"
