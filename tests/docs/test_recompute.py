"""What the pages show of commands is what the commands print."""

from pathlib import Path

import pytest

from docs.recompute import PAGES, compute, recomputed

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", PAGES)
def test_computed_blocks_are_what_is_computed(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert "<!-- computed: " in text
    assert recomputed(text) == text, "run: make docs"


def test_a_block_is_replaced_and_the_text_around_it_stays() -> None:
    page = "before\n<!-- computed: reasongenrm --version -->\nold\n<!-- end -->\nafter\n"
    lines = recomputed(page).splitlines()
    assert (lines[0], lines[-2], lines[-1]) == ("before", "<!-- end -->", "after")
    assert lines[2:4] == ["```", "$ reasongenrm --version"]
    assert lines[4].startswith("reasongenrm 0.")


def test_a_block_of_anything_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"computed block: 'rm -r \.'; expected a command of reasongenrm"):
        compute("rm -r .")
