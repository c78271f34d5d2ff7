from typing import TYPE_CHECKING

import pytest

from tests.web.fake_judge import GIVEN, SWAPPED, FakeJudge

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def ask(page: "Page", question: str = "What is 1 + 1?", a: str = "2", b: str = "3") -> None:
    """Fill in a pair and press the button."""
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_label("Answer A", exact=True).fill(a)
    page.get_by_label("Answer B", exact=True).fill(b)
    page.get_by_role("button", name="Judge", exact=True).click()


def test_reasons_of_both_orders_grow_side_by_side_then_the_verdict_comes(page: "Page", judge: FakeJudge) -> None:
    judge.script.hold_after = 4
    ask(page)
    given, swapped = page.locator("#rg-given .rg-reason"), page.locator("#rg-swapped .rg-reason")
    page.locator("#rg-given .rg-reason", has_text="Answer A adds the").wait_for()
    assert (given.inner_text(), swapped.inner_text()) == ("Answer A adds the", "Answer B adds the")
    left, right = (page.locator(f"#rg-{order} .rg-order").bounding_box() for order in ("given", "swapped"))
    assert left
    assert right
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    assert page.locator(".rg-headline").count() == 0
    judge.released = True
    page.get_by_text("A is better", exact=True).wait_for()
    assert (given.inner_text(), swapped.inner_text()) == (GIVEN, SWAPPED)
    told = page.locator("#rg-verdict").inner_text()
    assert "Consistent: whichever answer it read first, the judge chose A." in told
    assert "Probability that A is better: 0.80 (not calibrated, mean of both orders)" in told
    assert "56 tokens written, 1,234 read, in 1.2 s by tiny-judge" in told
    assert judge.bodies == [
        {
            **{"question": "What is 1 + 1?", "answer_a": "2", "answer_b": "3", "rubric": None, "votes": 1},
            **{"when_too_long": "refuse", "stream": True},
        }
    ]
