"""The tree of docs/architecture.md is made from the modules' docstrings, and is the one of now."""

from pathlib import Path

import pytest

from docs import tree


def test_page_shows_the_tree_of_now() -> None:
    text = tree.PAGE.read_text(encoding="utf-8")
    assert "\n  records.py              The records that flow between the stages" in text
    assert text == tree.page(text), "run: make docs"


def test_modules_come_first_and_long_phrases_are_wrapped(tmp_path: Path) -> None:
    package = tmp_path / "reasongenrm"
    (package / "store").mkdir(parents=True)
    (package / "cli").mkdir()
    (package / "__init__.py").write_text('"""All of it.\n\nMore.\n"""\n')
    (package / "records.py").write_text(f'"""{"ten chars " * 10}end."""\n')
    (package / "cli" / "__init__.py").write_text('"""Commands."""\n')
    (package / "store" / "__init__.py").write_text('"""Objects."""\n')
    (package / "store" / "s3.py").write_text('"""How S3 is asked."""\n')
    assert tree.tree(package).splitlines() == [
        "reasongenrm/              All of it",
        "  records.py              " + " ".join(["ten chars"] * 9) + " ten",
        "                          chars end",
        "  store/                  Objects",
        "    s3.py                 How S3 is asked",
        "  cli/                    Commands",
    ]


def test_module_without_a_docstring_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("")
    with pytest.raises(ValueError, match=r"__init__\.py has no docstring; its first line becomes the phrase"):
        tree.tree(tmp_path)
