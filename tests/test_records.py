"""Records as JSON Lines, and the counting of what is dropped."""

import pytest

from reasongenrm.errors import EmptyStageError, InputError
from reasongenrm.records import Drops, Message, Reason, dump_records, parse_records

REASON = Reason(prompt_id="1-ab", sample=0, reason="Zwölf\u2028Zeilen", model="m", num_tokens=3, finish_reason="stop")


def test_records_come_back_as_they_were():
    data = dump_records([REASON, REASON])
    assert data.count(b"\n") == 2
    assert parse_records(data, Reason, "reasons.jsonl") == [REASON, REASON]


def test_damaged_line_is_named_with_its_field():
    data = dump_records([REASON]) + b'{"prompt_id": "2-ab", "sample": "x"}\n'
    with pytest.raises(InputError, match=r"reasons.jsonl line 2: sample: .*expected a Reason record"):
        parse_records(data, Reason, "reasons.jsonl")


def test_unknown_field_is_an_error():
    with pytest.raises(InputError, match="line 1: colour"):
        parse_records(b'{"role": "user", "content": "x", "colour": 1}', Message, "f")


def test_drops_are_counted_by_cause():
    drops = Drops()
    drops.num_in = 5
    drops.drop("empty_turn", "row 2")
    drops.drop("empty_turn", "row 4")
    drops.drop("equal_answers", "row 3")
    drops.num_out = 2
    assert drops.counts() == {"num_in": 5, "num_out": 2, "num_dropped_empty_turn": 2, "num_dropped_equal_answers": 1}
    drops.require_some("stage", "advice")


def test_stage_with_nothing_left_fails_with_causes_and_first_example():
    drops = Drops()
    drops.num_in = 2
    drops.drop("score_too_low", "prompt 7-ab: 0.05")
    drops.drop("score_too_low", "prompt 8-ab: 0.01")
    with pytest.raises(
        EmptyStageError, match=r"none of 2 .*2 score_too_low \(first: prompt 7-ab: 0.05\).*Lower min_score"
    ):
        drops.require_some("select_reasons", "Lower min_score.")
