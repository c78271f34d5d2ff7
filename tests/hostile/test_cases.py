"""A test of every hostile text tries them all and names each that fails."""

import pytest

from tests.hostile.cases import CASES, each_of, every_case


def test_every_text_is_tried_and_all_that_fail_are_named() -> None:
    tried = []

    def no_verdict(case, tried):
        tried.append(case.name)
        assert case.name not in ("verdict A", "verdict B")

    cases = CASES[:2] + tuple(case for case in CASES if case.category == "verdicts")
    hold = each_of(cases)(no_verdict)
    with pytest.raises(ExceptionGroup, match=r"2 of 4 texts: verdict A, verdict B$") as raised:
        hold(cases=(cases[0], cases[2], cases[1], cases[3]), tried=tried)
    assert [error.__notes__ for error in raised.value.exceptions] == [["text: verdict A"], ["text: verdict B"]]
    assert tried == [cases[0].name, "verdict A", cases[1].name, "verdict B"]


def test_categories_hold_every_text_once() -> None:
    def hold(case):
        del case

    (mark,) = every_case(hold).pytestmark
    assert [case for cases in mark.args[1] for case in cases] == list(CASES)
    assert len(mark.kwargs["ids"]) == len({case.category for case in CASES}) == 8
