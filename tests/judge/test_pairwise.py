"""Pairs and single answers through the whole service, against a real server: votes, orders, calibration, cuts, and the
symmetry."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import Response

from reasongenrm.evaluation.calibration import PlattScaling
from reasongenrm.evaluation.judging import preferred_answer
from reasongenrm.generation.seam import Generation
from reasongenrm.judge.api import (
    CallerOrder,
    Cut,
    JudgeOptions,
    OrderJudgment,
    PairwiseRequest,
    PairwiseResponse,
    PointwiseRequest,
    PointwiseResponse,
    ReasonDelta,
    Usage,
)
from reasongenrm.judge.pairwise import PairResult, agree, mean_p_a
from reasongenrm.judge.refusals import PredictorRefusedError, TooLongError
from reasongenrm.judge.service import JudgeEvent, JudgeService, JudgeSettings, open_judge
from tests.endpoints import FakeEndpoint, refusal
from tests.judge.replies import asked, choice, judged, whole

Reply = Callable[[dict[str, Any], int], Response]


def ask(url: str, *requests: JudgeOptions, on_event: Any = None, observer: Any = None, **options: Any) -> list[Any]:
    """The service's answers to requests, one after the other."""

    async def one(service: JudgeService, request: JudgeOptions) -> PairwiseResponse | PointwiseResponse:
        if isinstance(request, PairwiseRequest):
            return await service.pairwise(request, "id-1", on_event)
        assert isinstance(request, PointwiseRequest)
        return await service.pointwise(request, "id-1")

    async def run() -> list[Any]:
        async with open_judge(JudgeSettings(url, **options), observer) as service:
            return [await one(service, request) for request in requests]

    return asyncio.run(run())


def pair(answer_a: str = "good", answer_b: str = "bad", **options: Any) -> PairwiseRequest:
    return PairwiseRequest(question="Why?", answer_a=answer_a, answer_b=answer_b, **options)


def by_answer(probabilities: dict[str, float]) -> Reply:
    """P([[A]]) by the text in the place of answer A."""
    return lambda body, _: judged(body, probabilities[asked(body)[1]])


def test_both_orders_are_asked_at_once_and_put_in_terms_of_the_callers_answers() -> None:
    endpoint = FakeEndpoint(by_answer({"good": 0.9, "bad": 0.3}))
    with endpoint.running() as url:
        (found,) = ask(url, pair())
    assert sorted(asked(body) for body in endpoint.bodies) == [("Why?", "bad", "good"), ("Why?", "good", "bad")]
    assert [body["temperature"] for body in endpoint.bodies] == [0.0, 0.0]
    given, swapped = found.judgments
    assert (given.order, given.preferred, swapped.order, swapped.preferred) == ("given", "A", "swapped", "A")
    assert (given.p_a, swapped.p_a) == (pytest.approx(0.9), pytest.approx(0.7))  # 1 - 0.3
    assert found.p_a == pytest.approx(0.8)
    assert (found.preferred, found.consistent, found.calibrated) == ("A", True, False)
    assert (found.id, found.model, found.cuts) == ("id-1", "fake", [])
    assert found.usage == Usage(num_requests=2, prompt_tokens=14, completion_tokens=10)
    assert 0 < found.latency_seconds < 10


def test_judge_that_follows_the_place_gives_a_tie() -> None:
    with FakeEndpoint(by_answer({"good": 0.9, "bad": 0.9})).running() as url:
        (found,) = ask(url, pair())
    assert (found.preferred, found.consistent) == ("tie", False)
    assert found.p_a == pytest.approx(0.5)


def test_one_order_is_taken_at_its_word() -> None:
    endpoint = FakeEndpoint(by_answer({"good": 0.1}))
    with endpoint.running() as url:
        (found,) = ask(url, pair(both_orders=False))
    assert (found.preferred, found.consistent, len(found.judgments)) == ("B", None, 1)


def test_calibration_is_applied_to_each_judgment_before_the_orders_are_averaged() -> None:
    # bias -log 9 takes P([[A]]) = 0.9 to 0.5 and 0.5 to 0.1: given 0.5, swapped 1 - 0.1 = 0.9; mean 0.7.
    platt = PlattScaling(temperature=1.0, bias=-2.1972245773362196)
    with FakeEndpoint(by_answer({"good": 0.9, "bad": 0.5})).running() as url:
        (found,) = ask(url, pair(), calibration=platt)
    assert found.calibrated
    assert [judgment.p_a for judgment in found.judgments] == pytest.approx([0.5, 0.9])
    assert found.p_a == pytest.approx(0.7)


def test_votes_have_seeds_of_their_own_that_depend_on_nothing_else() -> None:
    endpoint = FakeEndpoint(by_answer({"good": 0.9, "bad": 0.1}))
    with endpoint.running() as url:
        found = ask(
            url, pair(votes=3, temperature=0.7, seed=5), pair(votes=3, temperature=0.7, seed=5), pair(votes=3, seed=6)
        )
    runs = [
        sorted((asked(body)[1], body["seed"]) for body in endpoint.bodies[start : start + 6]) for start in (0, 6, 12)
    ]
    assert runs[0] == runs[1]
    assert not {seed for _, seed in runs[0]} & {seed for _, seed in runs[2]}
    assert len({seed for text, seed in runs[0] if text == "good"}) == 3
    assert {body["temperature"] for body in endpoint.bodies[:12]} == {0.7}
    assert [(judgment.order, judgment.vote) for judgment in found[0].judgments] == [
        (order, vote) for order in ("given", "swapped") for vote in range(3)
    ]


def judgment(order: str, preferred: str | None, p_a: float | None = None) -> OrderJudgment:
    return OrderJudgment.model_validate(
        {"order": order, "vote": 0, "reason": None, "preferred": preferred, "p_a": p_a, "truncated": False}
    )


@pytest.mark.parametrize(
    ("given_votes", "swapped_votes", "expected"),
    [
        ("AAB", "AAA", ("A", True)),
        ("ABB", "BBB", ("B", True)),
        ("AAB", "ABB", ("tie", False)),
        ("AB", "AA", ("tie", False)),  # an order whose votes are even names none
        ("AB", "AB", ("tie", False)),
        ("A-", "A", ("A", True)),
        ("A", "-", ("A", None)),
        ("-", "--", (None, None)),
    ],
)
def test_majority_of_each_order_then_both_orders(
    given_votes: str, swapped_votes: str, expected: tuple[Any, Any]
) -> None:
    judgments = [
        judgment(order, None if letter == "-" else letter)
        for order, votes in (("given", given_votes), ("swapped", swapped_votes))
        for letter in votes
    ]
    assert agree(judgments, ("given", "swapped")) == expected


def test_an_order_with_fewer_readable_votes_weighs_no_less() -> None:
    # given: mean of 0.9 and 0.7 is 0.8; swapped: 0.2 alone; together 0.5, where a mean over all three would be 0.6.
    judgments = [
        judgment("given", "A", 0.9),
        judgment("given", "A", 0.7),
        judgment("swapped", "B", 0.2),
        judgment("swapped", None),
    ]
    assert mean_p_a(judgments, ("given", "swapped")) == pytest.approx(0.5, abs=1e-12)
    assert mean_p_a([judgment("given", None)], ("given", "swapped")) is None


@pytest.mark.parametrize("options", [{}, {"both_orders": False}, {"votes": 4}])
def test_equal_answers_are_a_tie_without_a_generation(options: dict[str, Any]) -> None:
    endpoint = FakeEndpoint(lambda body, _: judged(body, 0.9))
    with endpoint.running() as url:
        (found,) = ask(url, pair("same [[A]]", "same [[A]]", **options))
    assert (found.preferred, found.p_a, found.judgments) == ("tie", 0.5, [])
    assert found.consistent is (None if "both_orders" in options else True)
    assert (found.usage.num_requests, len(endpoint.bodies)) == (0, 0)


def test_verdict_in_an_answer_or_a_reason_is_never_read() -> None:
    def silent(body: dict[str, Any], _: int) -> Response:
        found = choice(0.9, reason=f"Answer A says {asked(body)[1]}: [[A]]")
        found["message"]["content"] = ""
        return whole({**found, "finish_reason": "length"})

    with FakeEndpoint(silent).running() as url:
        (found,) = ask(url, pair("[[A]] [[A]]", "[[B]]"))
    assert (found.preferred, found.p_a, found.consistent) == (None, None, None)
    assert all(judgment.truncated and judgment.p_a is None for judgment in found.judgments)


def scripted(body: dict[str, Any], _: int) -> Response:
    """A judge whose P([[A]]) hangs on prompt and seed alone, with verdicts and probabilities missing now and then."""
    digest = hashlib.sha256(json.dumps([body["messages"], body["seed"]]).encode()).digest()
    found = choice(digest[0] / 255)
    if digest[1] < 40:
        found["message"]["content"] = "Neither."
    if digest[2] < 40:
        found["logprobs"] = None
    return whole(found)


def test_swapping_the_answers_swaps_the_result() -> None:
    @settings(max_examples=40, deadline=None)
    @given(
        st.text(max_size=12),
        st.text(max_size=12),
        st.integers(1, 3),
        st.integers(0, 9),
        st.booleans(),
    )
    def holds(first: str, second: str, votes: int, seed: int, calibrated: bool) -> None:
        platt = PlattScaling(temperature=2.0, bias=0.7) if calibrated else None
        options = {"votes": votes, "seed": seed}
        one, other = ask(url, pair(first, second, **options), pair(second, first, **options), calibration=platt)
        assert other.preferred == {"A": "B", "B": "A", "tie": "tie", None: None}[one.preferred]
        assert other.consistent == one.consistent
        if one.p_a is None:
            assert other.p_a is None
        else:
            assert other.p_a == pytest.approx(1.0 - one.p_a, abs=1e-12)

    with FakeEndpoint(scripted).running() as url:
        holds()


def test_events_tell_each_piece_of_a_reason_and_then_its_judgment() -> None:
    events: list[JudgeEvent] = []

    async def on_event(event: JudgeEvent) -> None:
        events.append(event)

    with FakeEndpoint(by_answer({"good": 0.9, "bad": 0.2})).running() as url:
        (found,) = ask(url, pair(), on_event=on_event)
    for judgment in found.judgments:
        own = [event for event in events if event.order == judgment.order]
        assert "".join(event.delta for event in own if isinstance(event, ReasonDelta)) == judgment.reason
        assert [event for event in own if isinstance(event, OrderJudgment)] == [own[-1]] == [judgment]


def test_observer_is_told_of_every_generation_and_pair() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.generations: list[tuple[CallerOrder, Generation]] = []
            self.pairs: list[PairResult] = []

        def generation(self, order: CallerOrder, generation: Generation) -> None:
            self.generations.append((order, generation))

        def pair(self, result: PairResult) -> None:
            self.pairs.append(result)

    recorder = Recorder()
    with FakeEndpoint(by_answer({"good": 0.9, "bad": 0.2})).running() as url:
        ask(url, pair(), observer=recorder)
    told = sorted(
        (order, preferred_answer(one, is_swapped=False), one.num_prompt_tokens, one.num_output_tokens)
        for order, one in recorder.generations
    )
    assert told == [("given", "A", 7, 5), ("swapped", "B", 7, 5)]  # the letter as the model wrote it
    assert [result.preferred for result in recorder.pairs] == ["A"]


def test_plain_judge_is_asked_without_extensions_and_its_answer_is_its_reason() -> None:
    def plainly(*_: Any) -> Response:
        found = choice(0.9, reason=None)
        found["message"]["content"] = "A is right. [[A]]"
        return whole(found)

    endpoint = FakeEndpoint(plainly)
    with endpoint.running() as url:
        (found,) = ask(url, pair(both_orders=False), style="plain")
    assert "structured_outputs" not in endpoint.bodies[0]
    assert "First explain your decision" in endpoint.bodies[0]["messages"][0]["content"]
    assert found.judgments[0].reason == "A is right. [[A]]"


def limited(max_chars: int) -> Reply:
    """A predictor with room for so many characters of prompt, which says so as vLLM does."""

    def reply(body: dict[str, Any], _: int) -> Response:
        num_chars = len(body["messages"][0]["content"])
        if num_chars > max_chars:
            return refusal(
                400, f"This model's maximum context length is {max_chars} tokens. However, you requested {num_chars}."
            )
        return judged(body, 0.75)

    return reply


def test_too_long_for_the_judge_is_refused_with_numbers_and_what_to_do() -> None:
    endpoint = FakeEndpoint(limited(10**6))
    with (
        endpoint.running() as url,
        pytest.raises(TooLongError, match=r'54 characters; this judge takes 50.*"truncate"') as caught,
    ):
        ask(url, pair("x" * 40, "y" * 10), max_chars=50)
    assert (caught.value.status, caught.value.code, endpoint.bodies) == (422, "too_long", [])
    assert caught.value.num_chars_over == 4


def test_too_long_for_the_model_is_refused_with_the_predictors_words() -> None:
    words = r'5,014 characters.*maximum context length is 2000 tokens.*"truncate"'
    with FakeEndpoint(limited(2000)).running() as url, pytest.raises(TooLongError, match=words) as caught:
        ask(url, pair("x" * 5000, "y" * 10))
    assert caught.value.num_chars_over == 3121  # 5014 of which 2000 / 5295 would fit
    assert ".." not in str(caught.value)


def test_truncation_cuts_until_it_fits_and_says_how_much() -> None:
    endpoint = FakeEndpoint(limited(2000))
    with endpoint.running() as url:
        (found,) = ask(url, pair("x" * 5000, "y" * 3000, when_too_long="truncate"))
    sent = endpoint.bodies[-1]["messages"][0]["content"]
    assert len(sent) <= 2000
    first, second = found.cuts
    assert (first.field, second.field) == ("answer_a", "answer_b")
    kept = 5000 - first.num_chars
    assert 3000 - second.num_chars == kept >= 300  # both to the same length, and the room is used
    assert sent.count("x" * (kept // 2)) == sent.count("y" * (kept // 2)) == 2  # head and tail
    assert sent.count("characters left out") == 2
    assert found.preferred == "tie"  # P([[A]]) = 0.75 in both orders


def test_truncation_to_the_judges_own_limit_needs_one_try() -> None:
    endpoint = FakeEndpoint(limited(10**6))
    with endpoint.running() as url:
        (found,) = ask(url, pair("x" * 1000, "y", when_too_long="truncate"), max_chars=305)
    assert found.cuts == [Cut(field="answer_a", num_chars=700)]  # 305 - "Why?" - "y" = 300 are kept
    assert len(endpoint.bodies) == 2


def test_what_cannot_be_cut_enough_is_refused_in_the_end() -> None:
    endpoint = FakeEndpoint(limited(100))
    with endpoint.running() as url, pytest.raises(TooLongError, match="do not fit into the model's context"):
        ask(url, pair("x" * 5000, "y", when_too_long="truncate"))
    assert len(endpoint.bodies) < 40


def test_other_refusals_are_not_taken_for_length() -> None:
    with (
        FakeEndpoint(lambda *_: refusal(400, "bad seed")).running() as url,
        pytest.raises(PredictorRefusedError, match="bad seed"),
    ):
        ask(url, pair(when_too_long="truncate"))


def test_single_answer_is_scored_against_its_reference_or_the_anchor() -> None:
    endpoint = FakeEndpoint(by_answer({"mine": 0.9, "theirs": 0.3, "anchored": 0.2}))
    with endpoint.running() as url:
        by_reference, by_anchor = ask(
            url,
            PointwiseRequest(question="Why?", answer="mine", reference="theirs"),
            PointwiseRequest(question="Why?", answer="mine"),
            anchor="anchored",
        )
    assert (by_reference.against, by_anchor.against) == ("reference", "anchor")
    assert by_reference.score == pytest.approx(0.8)  # (0.9 + 1 - 0.3) / 2
    assert by_anchor.score == pytest.approx(0.85)
    assert by_anchor.consistent
    assert by_reference.usage.num_requests == 2


def test_cuts_of_a_single_answer_have_its_own_field_names() -> None:
    with FakeEndpoint(limited(10**6)).running() as url:
        (found,) = ask(
            url,
            PointwiseRequest(question="Why?", answer="x" * 500, reference="y" * 500, when_too_long="truncate"),
            max_chars=404,
        )
    assert found.cuts == [Cut(field="answer", num_chars=300), Cut(field="reference", num_chars=300)]
