"""docs/data.md: its examples are read as the page says, and it names every format and every cause."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from reasongenrm.config import PairsConfig
from reasongenrm.data import benchmarks, pairs, preference_formats, row_files, rows
from reasongenrm.data.benchmarks import load_benchmark
from reasongenrm.data.pairs import as_messages, parse_pairs, tell_format
from reasongenrm.data.preference_formats import FORMATS
from reasongenrm.data.rows import read_json_lines
from reasongenrm.records import Drops

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
PREFERENCES, _, BENCHMARKS = PAGE.partition("## Examples")[0].partition("## Benchmarks")
EXAMPLES = dict(
    re.findall(r"^### ([^\n]+)\n(.*?)(?=^### |\Z)", PAGE.partition("## Examples")[2], re.DOTALL | re.MULTILINE)
)


def test_every_format_has_an_example_and_a_line_of_the_table() -> None:
    assert sorted(EXAMPLES) == sorted(kind.title for kind in FORMATS)
    for kind in FORMATS:
        [columns] = re.findall(rf"^\| \[{re.escape(kind.title)}\]\([^)]+\) \| ([^|]+) \|", PAGE, re.MULTILINE)
        assert re.findall(r"`(\w+)`", columns) == list(kind.columns)


@pytest.mark.parametrize("title", EXAMPLES)
def test_example_is_read_as_the_page_says(title: str) -> None:
    [block] = re.findall(r"```json\n(.*?)```", EXAMPLES[title], re.DOTALL)
    found = list(read_json_lines(block.encode(), "docs/data.md"))
    assert len(found) == 3
    assert tell_format(found, PairsConfig()).title == title
    drops = Drops()
    kept = parse_pairs(found, drops, PairsConfig())
    [[num_pairs, dropped]] = re.findall(r"^(\d) pairs?, (.*)\.$", EXAMPLES[title], re.MULTILINE)
    assert len(kept) == int(num_pairs)
    assert drops.causes == Counter({cause: int(num) for num, cause in re.findall(r"(\d) `(\w+)`", dropped)})
    assert drops.num_in == len(kept) + drops.causes.total()
    # In every example the better answers are these, and the worse ones are others.
    assert {pair.chosen for pair in kept} <= {"7", "The Nile.", "Hello."}
    assert not {pair.rejected for pair in kept} & {"7", "The Nile.", "Hello."}
    assert next(pair.question[-1].content for pair in kept) == "Name a prime."
    again = parse_pairs([("row", json.loads(json.dumps(row))) for row in as_messages(kept)], Drops(), PairsConfig())
    assert [pair.model_copy(update={"pair_id": ""}) for pair in again] == [
        pair.model_copy(update={"pair_id": ""}) for pair in kept
    ]


def test_every_cause_is_on_the_page() -> None:
    sources = [
        Path(module.__file__ or "").read_text(encoding="utf-8")
        for module in (pairs, preference_formats, rows, row_files)
    ]
    calls = r'(?:DropRowError|NotOfShapeError|BadRow|drops\.drop)\(\s*"([a-z0-9_]+)"'
    causes = {cause for text in sources for cause in re.findall(calls, text)}
    assert {"tie", "not_utf8", "missing_column", "prompt_too_long", "cell_count"} <= causes
    listed = set(re.findall(r"`([a-z0-9_]+)`", "".join(re.findall(r"^\| (`[^|]+) \|", PREFERENCES, re.MULTILINE))))
    assert listed == causes


def test_benchmark_of_the_page_is_read_as_it_says(tmp_path: Path) -> None:
    [block] = re.findall(r"```json\n(.*?)```", BENCHMARKS, re.DOTALL)
    (tmp_path / "rows.jsonl").write_text(block, encoding="utf-8")
    benchmark = load_benchmark(str(tmp_path / "rows.jsonl"))
    assert benchmark.drops.num_in == 3
    ids = " and ".join(f"`{row.row_id}`" for row in benchmark.rows)
    dropped = ", ".join(f"{count} `{cause}`" for cause, count in benchmark.drops.causes.items())
    assert f"\n{len(benchmark.rows)} rows, {ids}, {dropped}.\n" in BENCHMARKS
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]+) \|", BENCHMARKS, re.MULTILINE)))
    assert tuple(named) == benchmarks.COLUMNS
