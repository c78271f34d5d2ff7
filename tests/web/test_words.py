import asyncio
import socket
from itertools import chain
from typing import Any

import pytest

from reasongenrm.judge.api import PairwiseResponse
from reasongenrm.judge.client.client import AsyncJudge
from reasongenrm.web.chatting import ChatClient, plain
from reasongenrm.web.judge_pair_view import Asked, judge_pair
from reasongenrm.web.pace import paced
from reasongenrm.web.words import NO_EARLIER_QUESTION, explanation, headline


def response(preferred: str | None, consistent: bool | None, *chosen: tuple[str, str | None], cut: bool = False) -> Any:
    """An answer of the judge whose generations chose these."""
    judgments = [
        {"order": order, "vote": n, "reason": "r", "preferred": letter, "p_a": None, "truncated": cut}
        for n, (order, letter) in enumerate(chosen)
    ]
    usage = {"num_requests": 2, "prompt_tokens": 1, "completion_tokens": 1}
    return PairwiseResponse.model_validate(
        {"id": "1", "model": "m", "cuts": [], "usage": usage, "latency_seconds": 1, "preferred": preferred}
        | {"p_a": None, "consistent": consistent, "calibrated": False, "judgments": judgments}
    )


@pytest.mark.parametrize(
    ("answer", "title", "sentence"),
    [
        (response("B", True, ("given", "B"), ("swapped", "B")), "B is better", "Consistent: whichever answer"),
        (response("tie", False, ("given", "A"), ("swapped", "B")), "A tie", "the answer that it read first"),
        (response("tie", False, ("given", "B"), ("swapped", "A")), "A tie", "the answer that it read last"),
        (
            response("tie", False, ("given", "A"), ("given", "B"), ("swapped", "A"), ("swapped", "A")),
            *("A tie", "The orders or their votes disagree"),
        ),
        (response("A", None, ("given", "A")), "A is better", "in one order only"),
        (response("A", None, ("given", "A"), ("swapped", None)), "A is better", "Only one order ended with a verdict"),
        (response(None, None, ("given", None), ("swapped", None)), "No verdict", "its text names no answer"),
        (response(None, None, ("given", None), ("swapped", None), cut=True), "No verdict", "ran out of tokens"),
    ],
)
def test_verdict_is_put_into_words(answer: PairwiseResponse, title: str, sentence: str) -> None:
    assert headline(answer) == title
    assert sentence in explanation(answer)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_judge_that_is_down_is_said_so_without_its_address() -> None:
    url = f"http://127.0.0.1:{closed_port()}"

    async def ask() -> tuple[Any, Any]:
        async with AsyncJudge(url, max_retries=0) as judge:
            seen = [seen async for seen in judge_pair(judge, Asked("q", "a", "b"))]
        async with ChatClient(url) as chat:
            replies = [reply async for reply in chat.reply([{"role": "user", "content": "hi"}])]
        return seen[-1].notice, replies[-1].notice

    for notice in asyncio.run(ask()):
        assert notice.title == "The judge does not answer"
        assert "127.0.0.1" not in notice.text


def test_earlier_reply_without_its_question_is_noticed() -> None:
    assert Asked("q", "a", "b", earlier=[("", "reply")]).problem() == NO_EARLIER_QUESTION
    assert Asked("q", "a", "", earlier=[("asked", "")]).problem() is None


def test_reasons_and_notes_are_not_sent_back_to_the_model() -> None:
    history = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": "because", "metadata": {"title": "Reason", "status": "done"}},
        {"role": "assistant", "content": "hello", "metadata": None},
    ]
    assert plain(history) == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def test_events_come_in_batches_and_an_error_after_them() -> None:
    async def source() -> Any:
        for number in range(5):
            yield number
        raise ValueError("over")

    batches: list[list[int]] = []

    async def read() -> None:
        async for batch in paced(source(), 0.0):
            batches.append(batch)

    with pytest.raises(ValueError, match="over"):
        asyncio.run(read())
    assert [*chain.from_iterable(batches)] == [0, 1, 2, 3, 4]
    assert len(batches) < 5


def test_leaving_closes_the_source() -> None:
    closed = []

    async def source() -> Any:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.001)
        finally:
            closed.append(True)

    async def read() -> None:
        batches = paced(source(), 0.0)
        await anext(batches)
        await batches.aclose()

    asyncio.run(read())
    assert closed == [True]


def test_silence_gives_empty_batches() -> None:
    async def source() -> Any:
        await asyncio.sleep(60)
        yield 1

    async def read() -> list[int]:
        batches = paced(source(), 0.0, 0.001)
        found = await anext(batches)
        await batches.aclose()
        return found

    assert asyncio.run(read()) == []
