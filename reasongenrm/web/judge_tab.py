"""The judge tab: its fields, its buttons, and what they do."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import cache
from typing import Any

import gradio as gr

from reasongenrm.judge.client.client import AsyncJudge
from reasongenrm.web.guard import TooManyError, Visitors
from reasongenrm.web.judge_pair_view import ORDERS, Asked, Seen, judge_pair
from reasongenrm.web.markup import QUIET, read, show_notice, show_order, show_verdict, show_waiting
from reasongenrm.web.words import CUT_LABEL, MORE_LABEL, STOPPED, TOO_MANY

NUM_EARLIER = 2  # exchanges before the question that the page has fields for
ABOUT_EXAMPLES = (
    "The first five are of the kind that the judge of `make demo` was trained for, and all that it can judge. "
    "The others need a judge of a larger model."
)
MAX_VOTES = 8  # of the API's 16: two orders of them are what a visitor waits for
# After the first lines are there: before, the page is too short to scroll. A phone has no room for the button, too.
_TO_VERDICT = (
    "() => { setTimeout(() => document.getElementById(innerWidth > 640 ? 'rg-judge' : 'rg-verdict')"
    ".scrollIntoView({behavior: 'smooth'}), 500) }"
)
_PHONE_TO_VERDICT = (
    "() => { if (innerWidth <= 640) document.getElementById('rg-verdict').scrollIntoView({behavior: 'smooth'}) }"
)


@cache
def examples() -> list[dict[str, Any]]:
    """Pairs to try: title, question, two answers; some with a rubric or earlier turns."""
    found: list[dict[str, Any]] = json.loads(read("examples.json"))
    return found


def _fields() -> list[Any]:
    """The tab's inputs, in the order in which `_asked` gets their values."""
    question = gr.Textbox(label="Question", placeholder="What the two answers reply to", lines=3, max_lines=12)
    with gr.Accordion("Earlier turns", open=False):
        system = gr.Textbox(label="System message", lines=1, max_lines=6)
        earlier = []
        for number in range(1, NUM_EARLIER + 1):
            earlier.append(gr.Textbox(label=f"Earlier question {number}", lines=1, max_lines=6))
            earlier.append(gr.Textbox(label=f"Reply to it {number}", lines=1, max_lines=6))
    with gr.Row():
        answer_a = gr.Textbox(label="Answer A", lines=6, max_lines=16, min_width=280)
        answer_b = gr.Textbox(label="Answer B", lines=6, max_lines=16, min_width=280)
    with gr.Accordion(MORE_LABEL, open=False):
        rubric = gr.Textbox(label="Rubric", placeholder="What to judge by; empty: the judge decides", lines=2)
        counted = "1 is the judge's surest reason; more are sampled and counted"
        votes = gr.Slider(1, MAX_VOTES, value=1, step=1, label="Votes in each order", info=counted)
        cut = gr.Checkbox(label=CUT_LABEL)
    return [question, answer_a, answer_b, rubric, votes, cut, system, *earlier]


def judge_tab(judge: AsyncJudge, visitors: Visitors) -> None:
    """Build the tab's content."""
    titles = [example["title"] for example in examples()]
    chosen = gr.Dropdown(label="Examples", info=ABOUT_EXAMPLES, choices=titles, value=None, interactive=True)
    fields = _fields()
    with gr.Row():
        start = gr.Button("Judge", variant="primary", elem_id="rg-judge", scale=1)
        stop = gr.Button("Stop", interactive=False, elem_id="rg-stop", scale=0, min_width=110)
    verdict = gr.HTML(elem_id="rg-verdict", elem_classes="rg-flat")
    with gr.Row():
        with gr.Column(min_width=300):
            given = gr.HTML(elem_id="rg-given", elem_classes="rg-flat")
        with gr.Column(min_width=300):
            swapped = gr.HTML(elem_id="rg-swapped", elem_classes="rg-flat")

    async def run(request: gr.Request, *values: Any) -> AsyncIterator[dict[Any, Any]]:
        asked = _asked(values)
        try:
            with visitors.one_more(request.client.host if request.client else ""):
                async with aclosing(judge_pair(judge, asked)) as states:
                    async for seen in states:
                        shown = dict(zip([verdict, given, swapped], _shown(seen, asked.votes), strict=True))
                        yield shown | {stop: gr.Button(interactive=seen.running)}
        except TooManyError:
            yield {verdict: show_notice(TOO_MANY), stop: gr.Button(interactive=False)}

    def stopped() -> tuple[str, gr.Button]:
        return show_notice(STOPPED), gr.Button(interactive=False)

    start.click(None, js=_TO_VERDICT)
    under_way = start.click(run, fields, [verdict, given, swapped, stop], **QUIET)
    under_way.then(None, js=_PHONE_TO_VERDICT)
    stop.click(stopped, None, [verdict, stop], cancels=[under_way], **QUIET)
    chosen.input(_example, chosen, fields, **QUIET)


def _asked(values: tuple[Any, ...]) -> Asked:
    question, answer_a, answer_b, rubric, votes, cut, system, *earlier = values
    texts = (question or "", answer_a or "", answer_b or "", rubric or "")
    exchanges = [(asked or "", reply or "") for asked, reply in zip(earlier[::2], earlier[1::2], strict=True)]
    return Asked(*texts, int(votes), bool(cut), system or "", [exchange for exchange in exchanges if any(exchange)])


def _shown(seen: Seen, votes: int) -> tuple[str, str, str]:
    """The verdict's place, and the columns of both orders."""
    given, swapped = (show_order(order, seen.reasons[order], seen.judgments[order], seen.running) for order in ORDERS)
    if seen.notice:
        told = show_notice(seen.notice)
        return (told, given, swapped) if any(seen.reasons.values()) else (told, "", "")
    if seen.response:
        return show_verdict(seen.response), given, swapped
    return show_waiting(2 * votes, sum(map(len, seen.judgments.values()))), given, swapped


def _example(title: str | None) -> list[Any]:
    """The values of all fields."""
    example = next((example for example in examples() if example["title"] == title), None)
    if example is None:
        return [gr.skip()] * (7 + 2 * NUM_EARLIER)
    turns = [text for exchange in example.get("turns", ()) for text in exchange]
    fields = [example["question"], example["answer_a"], example["answer_b"], example.get("rubric", ""), 1, False, ""]
    return [*fields, *turns, *[""] * (2 * NUM_EARLIER - len(turns))]
