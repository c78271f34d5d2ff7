"""The same table as people, papers, spreadsheets and programs get it."""

import csv
import io
import json
from typing import Any

import pytest

from reasongenrm.cli.table_formats import print_as

COLUMNS = ["judge", "accuracy"]
ROWS = [["a|b_50%", "97.5"], ["line\nbreak \\ $x$ {y} ~ ^ # &", "50.0"]]
RECORDS: list[dict[str, Any]] = [
    {"judge": "a|b_50%", "accuracy": 0.9751},
    {"judge": 'line\n"quoted", c', "accuracy": None},
]


def printed(kind: Any, capsys: pytest.CaptureFixture[str]) -> str:
    print_as(kind, COLUMNS, ROWS, RECORDS, {"all": RECORDS})
    return capsys.readouterr().out


def test_markdown_keeps_a_cell_in_its_column(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed("md", capsys) == (
        "| judge | accuracy |\n| --- | ---: |\n| a\\|b_50% | 97.5 |\n| line break \\ $x$ {y} ~ ^ # & | 50.0 |\n"
    )


def test_latex_has_no_sign_left_that_means_something(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed("latex", capsys).splitlines() == [
        r"\begin{tabular}{lr}",
        r"\hline",
        r"judge & accuracy \\",
        r"\hline",
        r"a|b\_50\% & 97.5 \\",
        r"line break \textbackslash{} \$x\$ \{y\} \textasciitilde{} \textasciicircum{} \# \& & 50.0 \\",
        r"\hline",
        r"\end{tabular}",
    ]


def test_csv_and_json_have_every_digit(capsys: pytest.CaptureFixture[str]) -> None:
    read = list(csv.DictReader(io.StringIO(printed("csv", capsys))))
    assert read == [{"judge": "a|b_50%", "accuracy": "0.9751"}, {"judge": 'line\n"quoted", c', "accuracy": ""}]
    assert json.loads(printed("json", capsys)) == {"all": RECORDS}


def test_table_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed("table", capsys).splitlines()
    assert [line.split() for line in lines[:2]] == [["judge", "accuracy"], ["a|b_50%", "97.5"]]
