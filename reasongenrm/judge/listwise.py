"""Several answers ranked by pairwise judgments: merge sort chooses the pairs, Bradley-Terry scores the answers.

The scores are the ranking: an answer that met only strong ones is not taken for a weak one. Merge sort needs at most
n*ceil(log2(n)) - 2**ceil(log2(n)) + 1 comparisons (Knuth, The Art of Computer Programming 3, 5.2.4), compares every two
neighbours of its order, and no pair twice. Rounds are the same whatever the timing, so a bound cuts off the same
comparisons.
"""

from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from reasongenrm.judge.api import Comparison, Usage
from reasongenrm.judge.bradley_terry import expected_scores
from reasongenrm.judge.pairwise import PairResult
from reasongenrm.processes.gathering import gather_or_cancel

Compare = Callable[[int, int], Coroutine[Any, Any, PairResult]]
Merge = Generator[tuple[int, int], bool | None, list[int]]


@dataclass(frozen=True)
class Ranking:
    """Best first; see `api.ListwiseResponse`."""

    order: list[int]
    scores: list[float]
    comparisons: list[Comparison]
    complete: bool
    usage: Usage


async def rank(num_answers: int, compare: Compare, max_comparisons: int | None = None) -> Ranking:
    """Rank answers 0 .. num_answers - 1.

    A comparison without a probability counts by its verdict: 1, 0, or 0.5 for a tie. One without a verdict leaves the
    answer given first ahead in sorting and says nothing about the scores. Answers with equal scores stay as given.

    Args:
        compare: judges the answers with these two indices; `p_a` is the first one's.
        max_comparisons: asked for at most. It ends the sort early; the scores are of what was compared until then.
    """
    results: dict[tuple[int, int], PairResult] = {}
    # Halved again and again, down to one answer or none: the bound of merge sort holds for balanced halves only.
    num_leaves = 2 ** (num_answers - 1).bit_length()
    runs = [
        list(range(num_answers * leaf // num_leaves, num_answers * (leaf + 1) // num_leaves))
        for leaf in range(num_leaves)
    ]
    complete = True
    while complete and len(runs) > 1:
        merges = [_merge(left, right) for left, right in zip(runs[::2], runs[1::2], strict=True)]
        runs = [[] for _ in merges]
        firsts_are_ahead: dict[int, bool | None] = dict.fromkeys(range(len(merges)))  # None starts a merge
        while firsts_are_ahead:
            asked: dict[int, tuple[int, int]] = {}
            for number, first_is_ahead in firsts_are_ahead.items():
                try:
                    asked[number] = merges[number].send(first_is_ahead)
                except StopIteration as done:
                    runs[number] = done.value
            pairs = list(asked.values())
            if max_comparisons is not None and len(results) + len(pairs) > max_comparisons:
                pairs = pairs[: max_comparisons - len(results)]
                complete = False
            judged = await gather_or_cancel(compare(*pair) for pair in pairs)
            results |= dict(zip(pairs, judged, strict=True))
            if not complete:
                break
            firsts_are_ahead = {
                number: p_first is None or p_first >= 0.5
                for number, p_first in ((number, _p_first(results[pair])) for number, pair in asked.items())
            }
    outcomes = [(*pair, p_first) for pair, result in results.items() if (p_first := _p_first(result)) is not None]
    scores = expected_scores(num_answers, outcomes, is_whole=complete)
    order = sorted(range(num_answers), key=lambda index: -scores[index])
    comparisons = [
        Comparison(
            first=first,
            second=second,
            preferred={"A": first, "B": second}.get(result.preferred or "tie"),
            p_first=result.p_a,
            consistent=result.consistent,
        )
        for (first, second), result in results.items()
    ]
    used = [result.usage for result in results.values()]
    usage = Usage(
        num_requests=sum(each.num_requests for each in used),
        prompt_tokens=sum(each.prompt_tokens for each in used),
        completion_tokens=sum(each.completion_tokens for each in used),
    )
    return Ranking(order, scores, comparisons, complete, usage)


def _merge(left: Sequence[int], right: Sequence[int]) -> Merge:
    """Merge two ranked runs; yields a pair (one of the left, one of the right), is sent whether the left one goes
    first."""
    merged: list[int] = []
    i = j = 0
    while i < len(left) and j < len(right):
        if (yield left[i], right[j]):
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return [*merged, *left[i:], *right[j:]]


def _p_first(result: PairResult) -> float | None:
    """P(first better); None without a verdict."""
    return {"A": 1.0, "B": 0.0, "tie": 0.5, None: None}[result.preferred] if result.p_a is None else result.p_a
