"""The figures of the pages are those that the shipped points give."""

from pathlib import Path

import pytest

from reasongenrm.planning.pages import PAGES, PICTURE, compute, picture, render

AGAIN = "run: python -m reasongenrm.planning.pages docs"
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", PAGES)
def test_computed_blocks_are_what_is_computed(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert "<!-- computed: " in text
    assert render(text) == text, AGAIN


def test_picture_is_what_is_drawn() -> None:
    assert (DOCS / PICTURE).read_text(encoding="utf-8") == picture(), AGAIN


def test_a_block_is_replaced_and_the_text_round_it_stays() -> None:
    page = "before\n<!-- computed: reasongenrm version -->\nold\n<!-- end -->\nafter\n"
    lines = render(page).splitlines()
    assert (lines[0], lines[-2], lines[-1]) == ("before", "<!-- end -->", "after")
    assert lines[2:4] == ["```", "$ reasongenrm version"]
    assert lines[4].startswith("reasongenrm 0.")


def test_a_block_of_anything_else_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected 'the tables of install\.md', 'the laws of cpu' or a command of reasongenrm"
    ):
        compute("rm -r .")
