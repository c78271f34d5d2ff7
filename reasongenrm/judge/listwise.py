"""Several answers ranked by merge sort over pairwise judgments.

Merge sort needs at most n*ceil(log2(n)) - 2**ceil(log2(n)) + 1 comparisons (Knuth, The Art of Computer Programming 3,
5.2.4), and every pair at most once. Rounds are the same whatever the timing, so a bound cuts off the same comparisons.
"""

from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from reasongenrm.judge.api import Comparison, Usage
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

    A comparison without a probability counts by its verdict: 1, 0, or 0.5 for a tie or none. At 0.5 the answer given
    first stays first.

    Args:
        compare: judges the answers with these two indices; `p_a` is the first one's.
        max_comparisons: asked for at most. After that the scores decide what was not compared, so that the ranking
            still goes with every comparison that was made in merging its runs.
    """
    results: dict[tuple[int, int], PairResult] = {}
    # Halved again and again, down to one answer or none: the bound of merge sort holds for balanced halves only.
    num_leaves = 2 ** (num_answers - 1).bit_length()
    runs = [
        list(range(num_answers * leaf // num_leaves, num_answers * (leaf + 1) // num_leaves))
        for leaf in range(num_leaves)
    ]
    complete = True
    while len(runs) > 1:
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
            scores = _scores(num_answers, results)
            firsts_are_ahead = {
                number: _p_first(results[first, second]) >= 0.5
                if (first, second) in results
                else scores[first] >= scores[second]
                for number, (first, second) in asked.items()
            }
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
    return Ranking(runs[0], _scores(num_answers, results), comparisons, complete, usage)


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


def _p_first(result: PairResult) -> float:
    if result.p_a is not None:
        return result.p_a
    return {"A": 1.0, "B": 0.0}.get(result.preferred or "tie", 0.5)


def _scores(num_answers: int, results: dict[tuple[int, int], PairResult]) -> list[float]:
    """Mean probability of being the better one; 0.5 for an answer that met no other."""
    shares: list[list[float]] = [[] for _ in range(num_answers)]
    for (first, second), result in results.items():
        p_first = _p_first(result)
        shares[first].append(p_first)
        shares[second].append(1.0 - p_first)
    return [sum(own) / len(own) if own else 0.5 for own in shares]
