import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reasongenrm.web.judge_tab import examples
from tests.waiting import wait_until
from tests.web.conftest import opened
from tests.web.fake_judge import GIVEN, SWAPPED, FakeJudge

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

HOSTILE = (
    "</div></section><script>document.title='owned'</script><img src='http://127.0.0.1:9/x' onerror='document.title=1'>"
    "${document.title='owned'} {{this.constructor}} &lt;b&gt; [[B]] **bold** \N{RIGHT-TO-LEFT OVERRIDE}evil"
)


def ask(page: "Page", question: str = "What is 1 + 1?", a: str = "2", b: str = "3") -> None:
    """Fill in a pair and press the button."""
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_label("Answer A", exact=True).fill(a)
    page.get_by_label("Answer B", exact=True).fill(b)
    page.get_by_role("button", name="Judge", exact=True).click()


def side_by_side(page: "Page") -> bool:
    """Whether both orders' columns begin at the same height."""
    left, right = (page.locator(f"#rg-{order} .rg-order").bounding_box() for order in ("given", "swapped"))
    return bool(left and right) and left["y"] == right["y"]


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


def test_bar_reaches_from_one_half_to_p_a(page: "Page", judge: FakeJudge) -> None:
    judge.script.p_given, judge.script.p_swapped = 0.3, 0.1  # mean 0.2: the fill covers 0.2 to 0.5
    judge.script.preferred_given = judge.script.preferred_swapped = "B"
    ask(page)
    page.get_by_text("B is better", exact=True).wait_for()
    places = page.evaluate(
        "['.rg-fill', '.rg-half', '.rg-dot'].map(name => { const track = document.querySelector('.rg-track')"
        ".getBoundingClientRect(); const box = document.querySelector(name).getBoundingClientRect();"
        "return [(box.left - track.left) / track.width, (box.right - track.left) / track.width] })"
    )
    assert places[0] == pytest.approx([0.2, 0.5], abs=0.01)
    assert sum(places[1]) / 2 == pytest.approx(0.5, abs=0.01)
    assert sum(places[2]) / 2 == pytest.approx(0.2, abs=0.01)
    assert page.get_by_role("img", name="Probability that A is better: 0.20").count() == 1


def test_stop_ends_the_generation_and_the_next_judgment_works(page: "Page", judge: FakeJudge) -> None:
    judge.script.hold_after = 3
    ask(page)
    page.locator("#rg-given .rg-reason", has_text="Answer A adds").wait_for()
    page.get_by_role("button", name="Stop").first.click()
    page.get_by_text("Stopped", exact=True).wait_for()
    wait_until(lambda: judge.num_left == 1)
    assert page.locator("#rg-given .rg-reason").inner_text() == "Answer A adds"
    judge.reset()
    page.get_by_role("button", name="Judge", exact=True).click()
    page.get_by_text("A is better", exact=True).wait_for()


def test_visitor_who_leaves_ends_the_generation(page: "Page", judge: FakeJudge) -> None:
    judge.script.hold_after = 3
    ask(page)
    page.locator("#rg-given .rg-reason", has_text="Answer A adds").wait_for()
    page.close()
    wait_until(lambda: judge.num_left == 1)


def test_every_field_reaches_the_judge_and_every_vote_is_shown(page: "Page", judge: FakeJudge) -> None:
    judge.script.cuts = [{"field": "answer_a", "num_chars": 12345}]
    page.get_by_text("Earlier turns").click()
    page.get_by_label("System message").fill("Be brief.")
    page.get_by_label("Earlier question 1").fill("Hi")
    page.get_by_label("Reply to it 1").fill("Hello")
    page.get_by_text("Rubric, votes, long texts").click()
    page.get_by_label("Rubric", exact=True).fill("Short is good.")
    page.get_by_role("spinbutton").fill("3")
    page.get_by_role("spinbutton").press("Tab")
    page.get_by_label("Cut the middle out").check()
    ask(page)
    page.get_by_text("A is better", exact=True).wait_for()
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "What is 1 + 1?")]
    assert judge.bodies[0] == {
        **{"question": [{"role": role, "content": text} for role, text in turns], "answer_a": "2", "answer_b": "3"},
        **{"rubric": "Short is good.", "votes": 3, "when_too_long": "truncate", "stream": True},
    }
    assert page.locator("#rg-given h4").all_inner_texts() == ["Vote 1", "Vote 2", "Vote 3"]
    cut = "Cut: 12,345 characters were left out of the middle of answer A."
    assert page.locator(".rg-cut").inner_text() == cut


ERRORS = [
    (401, "unauthorized", "wrong key", "The operator of this page must set JUDGE_API_KEY"),
    (422, "too_long", "9,000 tokens", "Question and answers are about 1,234 characters too long for it."),
    (422, "invalid", "votes: too many", "votes: too many"),
    (429, "overloaded", "full", "Too many requests are in progress. Try again in a few seconds."),
    (503, "predictor_unavailable", "gone", "It is starting, restarting or down."),
    (504, "predictor_timeout", "slow", "Shorten the texts or ask for fewer votes"),
]


def test_every_error_of_the_judge_is_told_in_words(page: "Page", judge: FakeJudge) -> None:
    for status, code, message, told in ERRORS:
        judge.script.status, judge.script.code, judge.script.message = status, code, message
        judge.script.over = 1234 if code == "too_long" else None
        ask(page)
        alert = page.get_by_role("alert").filter(has_text=told)
        alert.wait_for()
        assert "Request req-1." in alert.inner_text()
        assert "http" not in alert.inner_text()
        assert page.locator(".rg-order").count() == 0
        assert page.get_by_label("Answer B", exact=True).input_value() == "3"
        assert page.get_by_role("button", name="Stop").first.is_disabled()


def test_what_is_missing_is_said_without_asking_the_judge(page: "Page", judge: FakeJudge) -> None:
    page.get_by_role("button", name="Judge", exact=True).click()
    page.get_by_text("The question is missing").wait_for()
    page.get_by_label("Question", exact=True).fill("What?")
    page.get_by_role("button", name="Judge", exact=True).click()
    page.get_by_text("The answers are missing").wait_for()
    assert judge.bodies == []


def test_hostile_text_stays_text(page: "Page", judge: FakeJudge) -> None:
    title = page.title()
    judge.script.given = judge.script.swapped = HOSTILE
    judge.script.cuts = [{"field": "<img src=x onerror=document.title=1>", "num_chars": 1}]
    ask(page, HOSTILE, HOSTILE, HOSTILE)
    page.get_by_text("A is better", exact=True).wait_for()
    assert page.locator("#rg-given .rg-reason").text_content() == HOSTILE
    assert page.locator("#rg-swapped .rg-reason").text_content() == HOSTILE
    assert page.locator("#rg-given, #rg-swapped, #rg-verdict").locator("script, img, b").count() == 0
    assert page.title() == title
    assert judge.bodies[0]["answer_a"] == HOSTILE


def test_example_fills_every_field_and_the_keyboard_alone_judges_it(page: "Page", judge: FakeJudge) -> None:
    page.get_by_label("Examples").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.type("A conversation")
    page.keyboard.press("Enter")
    wait_until(lambda: page.get_by_label("Answer A", exact=True).input_value().startswith("Then try a lemon sorbet"))
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "rg-judge":
            break
    page.keyboard.press("Enter")
    page.get_by_text("A is better", exact=True).wait_for()
    assert [turn["role"] for turn in judge.bodies[0]["question"]] == ["user", "assistant", "user"]


def test_box_that_a_long_text_is_told_of_is_called_so(page: "Page", judge: FakeJudge) -> None:
    judge.script.status, judge.script.code, judge.script.message = 422, "too_long", "long"
    ask(page)
    alert = page.get_by_role("alert").filter(has_text="too long").inner_text()
    found = re.search("open '(.+)' and tick '(.+)'", alert)
    assert found is not None, alert
    page.get_by_text(found[1], exact=True).click()
    page.get_by_label(found[2], exact=True).check()
    judge.reset()
    ask(page)
    page.get_by_text("A is better", exact=True).wait_for()
    assert judge.bodies[0]["when_too_long"] == "truncate"


def test_phone_scrolls_to_the_verdict(page: "Page") -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    ask(page)
    page.get_by_text("A is better", exact=True).wait_for()
    assert page.evaluate("document.documentElement.scrollHeight") > 844 + 200  # there is something to scroll

    def whole_verdict_in_view() -> bool:
        box = page.locator("#rg-verdict").bounding_box()
        return box is not None and box["y"] >= 0 and box["y"] + box["height"] <= 844

    wait_until(whole_verdict_in_view)


def test_what_has_the_focus_can_be_seen(page: "Page") -> None:
    names = [("button", "Judge"), ("tab", "Judge"), ("textbox", "Question")]
    for role, name in names:
        page.get_by_role(role, name=name, exact=True).focus()  # type: ignore[arg-type]
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        style = page.evaluate(
            "(() => { const s = getComputedStyle(document.activeElement);return [s.outlineStyle, s.outlineWidth] })()"
        )
        assert style == ["solid", "3px"], (role, name)


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ("trained to write <b>a reason</b>", "The judge here is tiny-judge: trained to write <b>a reason</b>."),
        (None, "The judge here is tiny-judge, which does not say whether it was trained to judge."),
    ],
)
def test_page_names_its_judge(
    context: "BrowserContext", page_url: str, judge: FakeJudge, about: str | None, told: str
) -> None:
    judge.script.about = about
    with opened(context, page_url) as page:
        page.locator("#rg-state", has_text=told).wait_for()
        assert page.locator("#rg-state b").count() == 0


def test_first_examples_are_the_demos_own_rows() -> None:
    rows = [json.loads(line) for line in Path("examples/demo/benchmark.jsonl").read_text().splitlines()[:5]]
    for example, row in zip(examples(), rows, strict=False):
        assert example["question"] == row["prompt"]
        assert {example["answer_a"], example["answer_b"]} == {row["chosen"], row["rejected"]}
        assert "(demo)" in example["title"]
    assert sum("(demo)" in example["title"] for example in examples()) == 5


def test_page_fits_a_phone_and_a_desktop(page: "Page", judge: FakeJudge) -> None:
    judge.script.given = "x" * 400
    ask(page)
    page.get_by_text("A is better", exact=True).wait_for()
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        wait_until(lambda width=width: side_by_side(page) == (width == 1280))  # on a phone below each other
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_page_is_dark_where_the_visitor_wants_it_so(context: "BrowserContext", page_url: str) -> None:
    page = context.new_page()
    page.emulate_media(color_scheme="dark")
    page.goto(page_url)
    page.get_by_label("Question", exact=True).wait_for()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 22, 26)"
    page.close()
