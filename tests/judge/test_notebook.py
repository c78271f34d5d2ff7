"""A judgment in a notebook: what it says, that no text in it becomes markup, and how Chromium draws it."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reasongenrm.judge.api import (
    Comparison,
    Cut,
    ListwiseResponse,
    OrderJudgment,
    PairwiseResponse,
    PointwiseResponse,
    Usage,
)
from tests.evaluation.test_report_page import CHROMIUM, CHROMIUM_FLAGS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = '<script>alert(1)</script> & "quotes" </div><img src=x onerror=alert(2)>'
ANSWERED: dict[str, Any] = {
    "id": "1",
    "model": "judge",
    "cuts": [],
    "usage": Usage(num_requests=2, prompt_tokens=1, completion_tokens=1),
    "latency_seconds": 0.1,
}


def judgment(order: Any = "given", **changes: Any) -> OrderJudgment:
    fields = {"order": order, "vote": 0, "reason": "7 is prime.", "preferred": "A", "p_a": 0.9, "truncated": False}
    return OrderJudgment(**{**fields, **changes})


def pair(**changes: Any) -> PairwiseResponse:
    judgments = [judgment(), judgment("swapped", p_a=0.7)]
    fields = {"preferred": "A", "p_a": 0.8, "consistent": True, "calibrated": True, "judgments": judgments}
    return PairwiseResponse(**{**ANSWERED, **fields, **changes})


class _Words(HTMLParser):
    """The words of a block of HTML, and the kinds of its elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.kinds: set[str] = set()
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.kinds.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]


def test_pair_says_verdict_probability_and_both_reasons() -> None:
    html = pair()._repr_html_()
    assert _Words(html).text == (
        "Answer A, in both orders B A P(A better) 0.800, calibrated "
        "as given: answer A as given, P(A better) 0.900 7 is prime. "
        "answers swapped: its A is your B: answer A as given, P(A better) 0.700 7 is prime."
    )
    assert re.findall(r"width:([\d.]+)%", html) == ["80.0"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preferred": "tie", "consistent": False}, "A tie: the two orders do not agree B A P(A better)"),
        ({"preferred": "tie", "consistent": True, "judgments": []}, "A tie: the answers are equal B A P(A better)"),
        (
            {"preferred": "B", "consistent": None, "p_a": 0.25, "calibrated": False},
            "Answer B B A P(A better) 0.250",
        ),
        ({"preferred": None, "consistent": None, "p_a": None, "judgments": []}, "No verdict could be read"),
        (
            {"judgments": [judgment(vote=1, preferred=None, p_a=None, reason=None, truncated=True)]},
            "as given, vote 2: no verdict could be read, cut off by the token limit no reason",
        ),
        (
            {"cuts": [Cut(field="answer_a", num_chars=12345)]},
            "12,345 characters of answer_a were left out",
        ),
    ],
)
def test_pair_without_a_plain_verdict_says_so(changes: dict[str, Any], words: str) -> None:
    assert words in _Words(pair(**changes)._repr_html_()).text


def test_no_text_becomes_markup() -> None:
    html = pair(judgments=[judgment(reason=HOSTILE)], cuts=[Cut(field=HOSTILE, num_chars=1)])._repr_html_()
    found = _Words(html)
    assert found.text.count('<script>alert(1)</script> & "quotes" </div><img src=x onerror=alert(2)>') == 2
    assert found.kinds == {"div", "b", "span", "details", "summary"}


def test_list_shows_answers_best_first_and_single_answer_its_score() -> None:
    one = Comparison(first=0, second=1, preferred=1, p_first=0.25, consistent=True)
    ranked = ListwiseResponse(**ANSWERED, ranking=[1, 0], scores=[0.25, 0.75], comparisons=[one], complete=False)
    assert _Words(ranked._repr_html_()).text == (
        "2 answers, best first 1 answer 1 of the list, score 0.750 2 answer 0 of the list, score 0.250 "
        "comparisons: 1; max_comparisons ended them before the ranking was sure"
    )
    fields = {"against": "anchor", "consistent": True, "calibrated": False, "judgments": [judgment()]}
    scored = _Words(PointwiseResponse(**ANSWERED, score=0.6, **fields)._repr_html_()).text
    assert scored.startswith("Score 0.600 0 1 P(better than the anchor) 0.600, not calibrated as given: answer A")
    unread = _Words(PointwiseResponse(**ANSWERED, score=None, **fields)._repr_html_()).text
    assert unread.startswith("No verdict could be read as given")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not there: `apt-get install chromium` brings it")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*CHROMIUM_FLAGS])
        yield chromium
        chromium.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_block_fits_its_page_and_the_bar_grows_from_a(browser: "Browser", width: int, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": width, "height": 600})
    shown = pair(judgments=[judgment(reason="long" * 200), judgment("swapped", reason=HOSTILE)])
    page.set_content(f'<body style="font-family:sans-serif">{shown._repr_html_()}</body>')
    page.screenshot(path=tmp_path / "judgment.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    bar, filled = (page.locator(where).first.bounding_box() for where in ("[role=img]", "[role=img] > div"))
    assert bar is not None
    assert filled is not None
    assert filled["width"] / bar["width"] == pytest.approx(0.8, abs=0.01)
    assert filled["x"] + filled["width"] == pytest.approx(bar["x"] + bar["width"], abs=1)  # A stands at the right
    page.close()
