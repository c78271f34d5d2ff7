"""Rows of JSON Lines files: their places, and what is said about a file that is none."""

import pytest

from reasongenrm.data.rows import parse_json_lines, take
from reasongenrm.errors import InputError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b'{"chosen": 1\n', r"f.jsonl line 1: not JSON"),
        (b'{"a": 1}\nhello world\n', r"line 2: not JSON .*'hello world'"),
        (b'{"a": 1}\n\xff\xfe\n', r"line 2: not UTF-8"),
        (b'{"a": "\\ud83d"}\n', r"line 1: holds half a surrogate pair"),
    ],
)
def test_file_that_is_not_json_lines_is_named_with_the_line(content, message):
    with pytest.raises(InputError, match=message):
        list(parse_json_lines(content, "f.jsonl", "an object"))


def test_line_separators_inside_json_text_do_not_cut_a_row():
    data = '{"text": "one\u2028two"}\n'.encode()
    assert list(parse_json_lines(data, "f", "an object")) == [("f line 1", {"text": "one\u2028two"})]


def test_whole_surrogate_pairs_and_backslashes_are_text():
    data = b'{"a": "\\ud83d\\ude00"}\n{"a": "C:\\\\udder"}\n'
    assert [row["a"] for _, row in parse_json_lines(data, "f", "an object")] == ["\U0001f600", "C:\\udder"]


def test_limit_takes_a_seeded_sample_in_file_order():
    items = list(range(50))
    taken = take(items, 10, seed=3)
    assert len(set(taken)) == 10
    assert taken == sorted(taken)
    assert taken == take(items, 10, seed=3) != take(items, 10, seed=4)
    assert take(items, None, seed=3) == items == take(items, 50, seed=3)
