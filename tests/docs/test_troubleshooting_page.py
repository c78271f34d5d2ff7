"""docs/troubleshooting.md: the words that it goes by are those of the code."""

import re
from pathlib import Path

import pytest

from reasongenrm.config import load_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
# Messages are written over several lines: their parts joined.
CODE = re.sub(
    r"[\"']\s*\n\s*f?[\"']",
    "",
    "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "reasongenrm").rglob("*.py"))),
)
TABLES = re.findall(r"^\| the error says .*\n\|.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
WORDS = [row.split("`")[1] for table in TABLES for row in table.splitlines()]


@pytest.mark.parametrize("words", WORDS)
def test_error_is_one_of_the_code(words: str) -> None:
    assert len(words) > 8
    assert words in CODE


def test_every_table_was_read() -> None:
    assert PAGE.count("| the error says |") == len(TABLES) == 4


def test_settings_that_are_advised_exist() -> None:
    config = load_config(None).model_dump()
    advised = set(re.findall(r"`(distill|sample|select|sft|pairs)\.(\w+)", PAGE))
    assert len(advised) == 7
    for section, key in advised:
        assert key in config[section], f"{section}.{key}"
