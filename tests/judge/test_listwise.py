"""Lists ranked by pairwise judgments: right order, scores that go with it, bounded comparisons."""

import asyncio
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasongenrm.judge.api import ListwiseRequest, ListwiseResponse
from reasongenrm.judge.listwise import Ranking, rank
from reasongenrm.judge.pairwise import PairResult
from reasongenrm.judge.service import JudgeSettings, open_judge
from tests.endpoints import FakeEndpoint
from tests.judge.replies import asked, judged


def ranked(strengths: list[float], max_comparisons: int | None = None, tells_p: bool = True) -> Ranking:
    """Rank answers by a judge that knows their strengths: P(first better) is the logistic of the difference."""

    async def compare(first: int, second: int) -> PairResult:
        difference = strengths[first] - strengths[second]
        preferred = "tie" if difference == 0 else ("A" if difference > 0 else "B")
        return PairResult(preferred, 1 / (1 + math.exp(-difference)) if tells_p else None, True)  # type: ignore[arg-type]

    return asyncio.run(rank(len(strengths), compare, max_comparisons))


# Comparisons at most for 0, 1, 2, ... answers, as Knuth's table of merge sort has them (TAOCP 3, 5.2.4).
MOST_COMPARISONS = [0, 0, 1, 3, 5, 8, 11, 14, 17, 21, 25, 29, 33]


@pytest.mark.parametrize("num_answers", [2, 3, 4, 5])
def test_worst_order_of_the_answers_needs_as_many_comparisons_as_merge_sort(num_answers: int) -> None:
    found = [ranked(list(strengths)) for strengths in itertools.permutations(range(num_answers))]
    assert max(len(one.comparisons) for one in found) == MOST_COMPARISONS[num_answers]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=12), st.booleans())
def test_ranking_is_by_strength_and_within_the_bound(strengths: list[int], tells_p: bool) -> None:
    found = ranked([float(strength) for strength in strengths], tells_p=tells_p)
    assert [strengths[index] for index in found.order] == sorted(strengths, reverse=True)
    assert found.complete
    pairs = [frozenset((one.first, one.second)) for one in found.comparisons]
    assert len(pairs) == len(set(pairs)) <= MOST_COMPARISONS[len(strengths)]


def test_without_probabilities_the_verdicts_rank() -> None:
    assert ranked([1, 3, 2], tells_p=False).order == [1, 2, 0]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=10), st.integers(1, 30))
def test_bound_is_kept_and_what_was_compared_is_never_contradicted(strengths: list[int], bound: int) -> None:
    found = ranked([float(strength) for strength in strengths], bound)
    assert len(found.comparisons) <= bound
    assert sorted(found.order) == list(range(len(strengths)))
    if not found.complete:
        assert len(found.comparisons) == bound
    place = {index: position for position, index in enumerate(found.order)}
    for one in found.comparisons:
        if one.preferred is not None:
            loser = one.second if one.preferred == one.first else one.first
            assert place[one.preferred] < place[loser]


def test_a_bound_ends_the_sort_and_the_scores_are_the_ranking() -> None:
    # Round 1 compares (0, 1) and (2, 3): strengths are 0.5, -0.5 and -1.5, 1.5 about their pair's mean. Then it is
    # over. Answer 3 against the others: logistic(1), logistic(2), logistic(3) = 0.7311, 0.8808, 0.9526: mean 0.8548.
    # The prior of a sort that has not ended draws scores a little to the middle.
    found = ranked([1, 0, 0, 3], max_comparisons=2)
    assert (found.order, found.complete, len(found.comparisons)) == ([3, 0, 1, 2], False, 2)
    assert found.scores == pytest.approx([0.6271, 0.3729, 0.1452, 0.8548], abs=0.02)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.integers(1, 30), st.booleans())
def test_scores_never_contradict_the_ranking(strengths: list[float], bound: int, tells_p: bool) -> None:
    found = ranked(strengths, bound, tells_p)
    assert [found.scores[index] for index in found.order] == sorted(found.scores, reverse=True)
    assert sum(found.scores) == pytest.approx(len(strengths) / 2)


@pytest.mark.parametrize("seed", range(20))
def test_a_judge_without_noise_spaces_the_scores_evenly_whoever_was_met(seed: int) -> None:
    # Of 8 answers the best is better than 7 of 7 others, the next than 6 of 7, ... The share of won comparisons, which
    # merge sort makes of 0/1 verdicts, has other values: an answer that met only stronger ones has 0 like the last.
    strengths = [float(strength) for strength in range(8)]
    random.Random(seed).shuffle(strengths)
    found = ranked(strengths, tells_p=False)
    assert found.scores == pytest.approx([strength / 7 for strength in strengths], abs=0.01)


def test_a_comparison_without_a_verdict_says_nothing_about_the_scores() -> None:
    async def compare(first: int, second: int) -> PairResult:
        return PairResult("A", 0.8, True) if {first, second} == {0, 1} else PairResult(None, None, None)

    found = asyncio.run(rank(4, compare))
    # Strengths logit(0.8) = 1.386 apart, 0 between them for the two that nothing is known of.
    assert found.scores == pytest.approx([(0.8 + 2 * 2 / 3) / 3, (0.2 + 2 / 3) / 3, 0.5, 0.5], abs=0.001)


def test_independent_pairs_are_compared_side_by_side() -> None:
    under_way, most = 0, 0

    async def compare(*_: int) -> PairResult:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return PairResult("A", 0.9, True)

    asyncio.run(rank(8, compare))
    assert most == 4


def request_ranking(url: str, **options: object) -> ListwiseResponse:
    async def run() -> ListwiseResponse:
        async with open_judge(JudgeSettings(url)) as service:
            return await service.listwise(ListwiseRequest.model_validate({"question": "Why?", **options}), "id-1")

    return asyncio.run(run())


def longer_is_better() -> FakeEndpoint:
    def p_a(body: dict[str, object]) -> float:
        _, first, second = asked(body)
        return 0.9 if len(first) > len(second) else 0.1

    return FakeEndpoint(lambda body, _: judged(body, p_a(body)))


def test_list_is_ranked_through_the_predictor_and_equal_answers_cost_nothing() -> None:
    endpoint = longer_is_better()
    with endpoint.running() as url:
        found = request_ranking(url, answers=["xx", "xx", "xxxx", "x"])
    assert (found.ranking[0], set(found.ranking[1:3]), found.ranking[3]) == (2, {0, 1}, 3)
    assert found.complete
    asked_for = [one for one in found.comparisons if {one.first, one.second} != {0, 1}]
    assert len(asked_for) == len(found.comparisons) - 1
    assert found.usage.num_requests == len(endpoint.bodies) == 2 * len(asked_for)
    assert (found.id, found.model) == ("id-1", "fake")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_ranking_does_not_depend_on_the_order_given(order: tuple[int, ...]) -> None:
    answers = ["x" * (1 + index) for index in order]
    with longer_is_better().running() as url:
        found = request_ranking(url, answers=answers)
    assert [answers[index] for index in found.ranking] == ["xxx", "xx", "x"]


def test_longest_cut_of_each_answer_is_told() -> None:
    with longer_is_better().running() as url:
        found = request_ranking(url, answers=["x" * 390_000, "y" * 100_000, "z"], when_too_long="truncate")
    # 400,000 characters in all. "Why?" and answer 1 leave answer 0 299,996; beside answer 2 it fits whole.
    assert [(cut.field, cut.num_chars) for cut in found.cuts] == [("answers.0", 90_004)]
