"""`reasongenrm convert`: what a file is read as, and the file that it writes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from reasongenrm.cli import app
from reasongenrm.config import PairsConfig
from reasongenrm.data.pairs import parse_pairs, read_rows
from reasongenrm.records import Drops

CSV = "question,good,bad\nName a prime.,7,9\nName a lake.,Como,Como\n"
COLUMNS = ("--columns", "prompt=question,chosen=good,rejected=bad")
AFTER = {
    side: [{"role": "user", "content": "Name a prime."}, {"role": "assistant", "content": text}]
    for side, text in (("chosen", "7"), ("rejected", "9"))
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "pairs.csv").write_text(CSV, encoding="utf-8")
    return tmp_path / "pairs.csv"


def convert(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, ["convert", *map(str, arguments)])


def test_first_row_is_shown_before_and_after_with_format_and_counts(path: Path) -> None:
    done = convert(path, *COLUMNS)
    assert done.exit_code == 0, done.output
    assert f"{path}: 2 rows, read as TRL's explicit prompt\n" in done.stdout
    before, after = done.stdout.partition("the first row:\n")[2].split("the first pair:\n")
    assert json.loads(before) == {"question": "Name a prime.", "good": "7", "bad": "9"}
    shown, counts = after.rstrip("\n").rsplit("\n", 1)
    assert json.loads(shown) == AFTER
    assert counts == "in 2, out 1, dropped_equal_answers 1"
    assert f"first equal_answers: {path} line 3" in done.stderr


def test_same_as_json(path: Path) -> None:
    found = json.loads(convert(path, *COLUMNS, "--json").stdout)
    assert found["read_as"] == f"{path}: 2 rows, read as TRL's explicit prompt"
    assert found["counts"] == {"num_in": 2, "num_out": 1, "num_dropped_equal_answers": 1}
    assert (found["before"]["good"], found["after"]) == ("7", [AFTER])


def test_pairs_are_written_as_message_lists_whole_or_not_at_all(path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    done = convert(path, *COLUMNS, "-o", output)
    assert done.exit_code == 0, done.output
    assert f"wrote {output}: 1 pairs" in done.stderr
    assert [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()] == [AFTER]
    [pair] = parse_pairs(read_rows(str(output), PairsConfig())[1], Drops(), PairsConfig())
    assert (pair.chosen, pair.rejected) == ("7", "9")
    path.write_text(CSV.replace("7", "9"), encoding="utf-8")
    done = convert(path, *COLUMNS, "-o", output)
    assert done.exit_code == 6
    assert "none of 2 records is left: 2 equal_answers" in done.stderr
    assert [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()] == [AFTER]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl", "pairs.csv"]


def test_output_of_another_kind_and_columns_without_names_are_refused(path: Path) -> None:
    done = convert(path, *COLUMNS, "-o", "out.csv")
    assert (done.exit_code, "expected a name that ends in .jsonl" in done.stderr) == (2, True)
    done = convert(path, *COLUMNS, "-o", path.parent / "none" / "out.jsonl")
    assert (done.exit_code, "out.jsonl cannot be written: No such file or directory" in done.stderr) == (2, True)
    done = convert(path, "--columns", "prompt")
    assert (done.exit_code, "--columns prompt: expected OURS=YOURS" in done.stderr) == (2, True)
    done = convert(path)
    assert (done.exit_code, "no format of preferences has these" in done.stderr) == (2, True)


def test_a_look_goes_past_bad_rows_and_says_that_a_run_stops_there(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"prompt,chosen,rejected\nQ,\xff,b\nQ,1\nQ," + b"x" * 1000 + b",b\n")
    done = convert(path)
    assert done.exit_code == 0, done.output
    assert "in 3, out 1, dropped_cell_count 1, dropped_not_utf8 1" in done.stdout
    assert "x" * 300 + "... (1,000 characters)" in done.stdout
    assert "x" * 301 not in done.stdout
    assert f"a run would stop: {path} line 2: not UTF-8 text; expected a row that can be read" in done.stderr
    done = convert(path, "-o", tmp_path / "out.jsonl")
    assert (done.exit_code, "line 2: not UTF-8 text" in done.stderr) == (2, True)
    done = convert(path, "-o", tmp_path / "out.jsonl", "--set", "pairs.bad_rows=drop")
    assert done.exit_code == 0
    [line] = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["chosen"][1]["content"] == "x" * 1000
