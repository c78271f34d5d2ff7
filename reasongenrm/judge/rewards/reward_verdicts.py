"""What of a judgment is a reward: a probability that every order that was asked stands behind, or nothing.

A made-up number would be trained on as if the judge had meant it, and half a judgment favours a place. So where an
order has no verdict that can be read (cut off, refused, another text), there is no reward.
"""

from reasongenrm.judge.api import CallerOrder, PairwiseResponse, PointwiseResponse


def reward_of(found: PointwiseResponse) -> float | None:
    """P(the answer is better), in [0, 1]; None if an order has none. Equal answers are 0.5 without being asked."""
    return None if _unread_orders(found) else found.score


def first_is_better(found: PairwiseResponse) -> float | None:
    """P(the first answer is better), in [0, 1]; of a predictor without log-probabilities 1, 0 or 0.5 (a tie) by the
    verdicts; None if an order has neither."""
    if not _unread_orders(found):
        return found.p_a
    named = {one.order: one.preferred for one in found.judgments if one.preferred is not None}
    if named.keys() != {one.order for one in found.judgments} or found.preferred is None:
        return None
    return {"A": 1.0, "B": 0.0, "tie": 0.5}[found.preferred]


def _unread_orders(found: PointwiseResponse | PairwiseResponse) -> set[CallerOrder]:
    """The orders without a probability."""
    read = {one.order for one in found.judgments if one.p_a is not None}
    return {one.order for one in found.judgments} - read
