from typing import TYPE_CHECKING

import pytest

from tests.waiting import wait_until
from tests.web.fake_judge import FakeJudge

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def say(page: "Page", text: str) -> None:
    """Send a message with the Enter key."""
    page.get_by_role("tab", name="Chat").click()
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")


def test_reason_streams_in_a_bubble_of_its_own_and_folds_when_the_answer_comes(page: "Page", judge: FakeJudge) -> None:
    judge.script.hold_after = 3
    judge.script.chat_answer = "Hello to **you**."
    say(page, "Hello?")
    reason = page.locator("#rg-chat .thought-group, #rg-chat .thought").filter(has_text="A greeting asks").first
    reason.wait_for()
    assert "for a greeting" not in page.locator("#rg-chat").inner_text()
    judge.released = True
    page.locator("#rg-chat strong", has_text="you").wait_for()
    page.locator("#rg-chat", has_text="Hello to you.").wait_for()
    page.get_by_text("A greeting asks for a greeting.").wait_for(state="hidden")
    page.get_by_role("button", name="Reason", exact=True).click()
    page.get_by_text("A greeting asks for a greeting.").wait_for(state="visible")


def test_next_turn_sends_the_history_without_the_reasons(page: "Page", judge: FakeJudge) -> None:
    say(page, "Hello?")
    page.locator("#rg-chat", has_text="Hello you.").wait_for()
    judge.script.chat_answer = "Again."
    say(page, "And now?")
    page.locator("#rg-chat", has_text="Again.").wait_for()
    assert judge.bodies[1] == {
        "model": "tiny-judge",
        "messages": [
            {"role": "user", "content": "Hello?"},
            {"role": "assistant", "content": "Hello **you**."},
            {"role": "user", "content": "And now?"},
        ],
        **{"max_tokens": 1024, "stream": True},
    }


def test_what_a_visitor_types_is_shown_letter_for_letter(page: "Page", judge: FakeJudge) -> None:
    typed = "<div>1 < 2</div> **bold** `x` &amp; $$y$$\n    indented\n\n1. one\n# two"
    page.get_by_role("tab", name="Chat").click()
    page.get_by_label("Your message").fill(typed)
    page.get_by_role("button", name="Send").click()
    page.locator("#rg-chat", has_text="Hello you.").wait_for()
    assert page.locator("#rg-chat .user .prose").first.inner_text().strip() == typed
    assert page.locator("#rg-chat").get_by_role("button", name="Copy message").count() == 1  # of the reply alone
    assert page.locator("#rg-chat .user").locator("div.bold, strong, code, h1, li").count() == 0
    say(page, "And now?")
    wait_until(lambda: len(judge.bodies) == 2)
    assert judge.bodies[1]["messages"][0] == {"role": "user", "content": typed}


def test_conversation_that_is_too_long_says_so(page: "Page", judge: FakeJudge) -> None:
    judge.script.status, judge.script.code, judge.script.message = (
        400,
        "context_length_exceeded",
        "maximum context length",
    )
    say(page, "Hello?")
    page.get_by_text("The conversation is too long").wait_for()
    assert page.get_by_label("Your message").input_value() == "Hello?"


def test_stop_ends_the_generation_and_leaves_what_was_written(page: "Page", judge: FakeJudge) -> None:
    judge.script.hold_after = 2
    say(page, "Hello?")
    page.locator("#rg-chat", has_text="A greeting").wait_for()
    page.locator("#rg-chat-stop").click()
    wait_until(lambda: judge.num_left == 1)
    assert "Hello?" in page.locator("#rg-chat").inner_text()


def test_error_is_told_in_words_and_the_message_is_not_lost(page: "Page", judge: FakeJudge) -> None:
    judge.script.status, judge.script.code, judge.script.message = 429, "overloaded", "full"
    say(page, "Hello?")
    page.get_by_text("The judge is busy").wait_for()
    assert page.get_by_label("Your message").input_value() == "Hello?"
    judge.reset()
    say(page, "Hello?")
    page.locator("#rg-chat", has_text="Hello you.").wait_for()
    page.get_by_text("The judge is busy").wait_for(state="detached")


def test_hostile_reply_neither_runs_nor_fetches(page: "Page", judge: FakeJudge) -> None:
    title = page.title()
    attack = (
        "<script>document.title='owned'</script><b onmouseover=document.title=1>x</b> [go](javascript:document.title=1)"
    )
    judge.script.chat_reason = f"{attack} reason-end"
    judge.script.chat_answer = (
        f"{attack} <iframe srcdoc='<script>parent.document.title=1</script>'></iframe> answer-end"
    )
    say(page, f"{attack} asked")
    page.locator("#rg-chat", has_text="answer-end").wait_for()
    page.get_by_role("button", name="Reason", exact=True).click()
    page.get_by_text("reason-end").wait_for()
    assert page.locator("#rg-chat").locator("script, iframe, [onmouseover], a[href^='javascript']").count() == 0
    assert page.title() == title


def test_image_in_a_reply_is_not_asked_of_its_host(
    browser: "Browser", page_url: str, judge: FakeJudge, image_host: tuple[str, list[str]]
) -> None:
    address, asked = image_host
    judge.script.chat_answer = f"![a]({address}/markdown.png) <img src='{address}/html.png'> answer-end"
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(page_url)
    say(page, "Show me a picture")
    page.locator("#rg-chat", has_text="answer-end").wait_for()
    wait_until(lambda: any("violates the following Content Security Policy" in text for text in said))
    page.close()
    assert asked == []
