"""Escaping, without a browser: these are not slow, so that every run of the tests has them."""

from typing import Any

from reasongenrm.judge.api import OrderJudgment, PairwiseResponse
from reasongenrm.web.board import Board
from reasongenrm.web.markup import show_board, show_notice, show_order, show_verdict
from reasongenrm.web.words import Notice

ATTACK = "<script>alert(1)</script>\"'&"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;"


def judgment(**changes: Any) -> OrderJudgment:
    fields = {"order": "given", "vote": 0, "reason": ATTACK, "preferred": "A", "p_a": 0.9, "truncated": False}
    return OrderJudgment.model_validate(fields | changes)


def test_reason_is_escaped_while_it_is_written_and_afterwards() -> None:
    for shown in (
        show_order("given", {0: ATTACK}, {}, running=True),
        show_order("given", {0: ATTACK}, {0: judgment()}, running=False),
    ):
        assert ESCAPED in shown
        assert "<script" not in shown


def test_everything_that_the_judge_says_beside_reasons_is_escaped() -> None:
    usage = {"num_requests": 2, "prompt_tokens": 1, "completion_tokens": 1}
    shown = show_verdict(
        PairwiseResponse.model_validate(
            {"id": ATTACK, "model": ATTACK, "cuts": [{"field": ATTACK, "num_chars": 1}], "usage": usage}
            | {"latency_seconds": 1, "preferred": "A", "p_a": 0.9, "consistent": None, "calibrated": False}
            | {"judgments": [judgment()]}
        )
    )
    assert shown.count(ESCAPED) == 3
    assert "<script" not in shown


def test_notice_is_escaped_on_both_tabs_that_show_one() -> None:
    notice = Notice(ATTACK, ATTACK)
    for shown in (show_notice(notice), show_board(Board(notice=notice), "")):
        assert shown.count(ESCAPED) == 2
        assert "<script" not in shown
