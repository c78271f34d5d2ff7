"""Formats of preference data, row by row: what docs/data.md's examples leave out."""

from typing import Any

import pytest

from reasongenrm.config import PairsConfig
from reasongenrm.data.pairs import parse_pairs, tell_format
from reasongenrm.errors import InputError
from reasongenrm.records import Drops, PreferencePair

Row = dict[str, Any]


def read(*rows: Row, **settings: Any) -> tuple[list[PreferencePair], dict[str, int]]:
    """The pairs of rows, and what was dropped."""
    drops = Drops()
    pairs = parse_pairs([(f"f line {place}", row) for place, row in enumerate(rows)], drops, PairsConfig(**settings))
    return pairs, dict(drops.causes)


def answers(*rows: Row, **settings: Any) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in read(*rows, **settings)[0]]


def turn(role: str, content: Any = "text", **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def messages(*conversation: Row) -> Row:
    """A row of message lists whose answers differ."""
    return {
        "chosen": [*conversation, turn("assistant", "good")],
        "rejected": [*conversation, turn("assistant", "bad")],
    }


RANKED = {"prompt": "Q", "answers": [{"answer": str(rank), "rank": rank} for rank in (3, 1, 4, 2)]}
SCORED = {
    "instruction": "Q",
    "completions": [{"response": str(score), "fine-grained_score": score} for score in (1, 5, 4.5, 1)],
}


def test_system_turn_is_part_of_the_question_and_an_empty_one_is_none() -> None:
    [pair], _ = read(messages(turn("system", "Be brief."), turn("user", "Q")))
    assert [(one.role, one.content) for one in pair.question] == [("system", "Be brief."), ("user", "Q")]
    [pair], _ = read(messages(turn("system", ""), turn("user", "Q")))
    assert [one.role for one in pair.question] == ["user"]
    with pytest.raises(InputError, match=r"out of turn \(user, system, assistant\)"):
        read(messages(turn("user"), turn("system")))


@pytest.mark.parametrize(
    ("conversation", "cause"),
    [
        ([turn("user"), turn("assistant", None, tool_calls=[{"id": "1"}]), turn("tool", "22")], "tool_call"),
        ([turn("user"), turn("function", "22")], "tool_call"),
        ([{"from": "human", "value": "Q"}, {"from": "observation", "value": "22"}], "tool_call"),
        ([turn("user", [{"type": "image_url", "image_url": {"url": "x"}}])], "image_part"),
        ([turn("user", [{"type": "text", "text": "Q"}, {"type": "image"}])], "image_part"),
        ([turn("user", [{"type": "input_audio", "input_audio": {}}])], "other_part"),
        ([turn("user", "  ")], "empty_turn"),
    ],
)
def test_what_is_no_text_is_dropped_by_its_cause(conversation: list[Row], cause: str) -> None:
    assert read(messages(*conversation), messages(turn("user"))) == (
        read({"chosen": [], "rejected": []}, messages(turn("user")), bad_rows="drop")[0],
        {cause: 1},
    )


def test_text_parts_and_nulls_that_arrow_adds_are_text() -> None:
    parts = [{"type": "text", "text": "Q1", "image": None}, {"type": "text", "text": "Q2", "image": None}]
    [pair], _ = read(messages(turn("user", parts, tool_calls=None)))
    assert pair.question[0].content == "Q1\nQ2"


def test_completions_of_several_turns_belong_to_the_question_but_the_last() -> None:
    shared = [turn("assistant", "Which one?"), turn("user", "The first.")]
    row = {
        "prompt": [turn("user", "Q")],
        "chosen": [*shared, turn("assistant", "good")],
        "rejected": [*shared, turn("assistant", "bad")],
    }
    [pair], _ = read(row)
    assert [one.content for one in pair.question] == ["Q", "Which one?", "The first."]
    row["rejected"] = [turn("assistant", "Why?"), turn("user", "Because."), turn("assistant", "bad")]
    assert read(row) == ([], {"questions_differ": 1})


def test_prompt_that_is_a_transcript_is_turns_and_one_that_only_names_a_human_is_text() -> None:
    [pair], _ = read(
        {"prompt": "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: Q\n\nAssistant:", "chosen": "a", "rejected": "b"}
    )
    assert [(one.role, one.content) for one in pair.question] == [("user", "Hi"), ("assistant", "Ho"), ("user", "Q")]
    [pair], _ = read({"prompt": "Human: an animal?", "chosen": "a", "rejected": "b"})
    assert [one.content for one in pair.question] == ["Human: an animal?"]


def test_transcript_with_roles_out_of_turn_is_named() -> None:
    row = {"chosen": "\n\nHuman: Q\n\nHuman: again\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: b"}
    with pytest.raises(InputError, match=r"read as HH-RLHF transcripts.*"):
        read(row)
    with pytest.raises(InputError, match=r"roles in 'chosen' are out of turn \(user, user, assistant\)"):
        read(row)


def test_prompt_next_to_whole_conversations_is_left_aside() -> None:
    row = {"prompt": "something else", **messages(turn("user", "Q"))}
    assert tell_format([("row", row)], PairsConfig()).name == "messages"
    assert read(row)[0][0].question[0].content == "Q"


def test_best_of_a_ranked_list_is_compared_with_each_or_each_with_the_next() -> None:
    pairs, _ = read(RANKED)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("1", "2"), ("1", "3"), ("1", "4")]
    assert [pair.pair_id for pair in pairs] == ["000000.0", "000000.1", "000000.2"]
    assert answers(RANKED, ranked="neighbours") == [("1", "2"), ("2", "3"), ("3", "4")]


def test_equal_ranks_are_ties() -> None:
    row = {"prompt": "Q", "answers": [{"answer": text, "rank": rank} for text, rank in (("a", 1), ("b", 1), ("c", 2))]}
    pairs, dropped = read(row)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("a", "c")]
    assert dropped == {"tie": 1}


def test_scores_closer_than_the_margin_make_no_pair() -> None:
    assert answers(SCORED) == [("5", "4.5"), ("5", "1"), ("5", "1")]
    assert read(SCORED, margin=1)[1] == {"below_margin": 1}
    assert read(SCORED, margin=0.5)[1] == {}
    pairs, dropped = read(SCORED, ranked="neighbours", margin=1)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("4.5", "1")]
    assert dropped == {"below_margin": 1, "tie": 1}


def test_rows_of_one_prompt_become_pairs_wherever_they_stand() -> None:
    rows = [
        {"prompt": "P", "response": "p2", "helpfulness": 2},
        {"prompt": "R", "response": "r4", "helpfulness": "4"},
        {"prompt": "P", "response": "p3", "helpfulness": 3},
        {"prompt": "R", "response": "r0", "helpfulness": "0"},
    ]
    assert answers(*rows) == [("p3", "p2"), ("r4", "r0")]
    pairs, dropped = read(*rows, margin=2)
    assert ([pair.chosen for pair in pairs], dropped) == (["r4"], {"below_margin": 1})
    rows[0]["helpfulness"] = None
    pairs, dropped = read(*rows, bad_rows="drop")
    assert ([pair.chosen for pair in pairs], dropped) == (["r4"], {"wrong_value": 1})


@pytest.mark.parametrize(("strength", "expected"), [(-3, ("one", "two")), (-1, None), (0, None), (2, ("two", "one"))])
def test_preference_points_to_an_answer_and_has_a_strength(strength: int, expected: tuple[str, str] | None) -> None:
    older = {"prompt": "Q", "response_1": "one", "response_2": "two", "preference_strength": strength}
    newer = {"context": [turn("user", "Q")], "response1": "one", "response2": "two", "overall_preference": strength}
    for row in (older, newer):
        assert answers(row, margin=2) == ([expected] if expected else [])


@pytest.mark.parametrize(("above", "kept"), [(1.0, 1), (0.0, 0), (-1.0, 0)])
def test_binarized_scores_have_to_agree_with_chosen(above: float, kept: int) -> None:
    row = {**messages(turn("user")), "score_chosen": 5.0 + above, "score_rejected": 5.0}
    pairs, dropped = read(row)
    assert (len(pairs), dropped) == (kept, {} if kept else {"score_not_above": 1})


@pytest.mark.parametrize("winner", ["model_a", "A", " Model_A "])
def test_winner_is_chosen(winner: str) -> None:
    row = {"conversation_a": [turn("user"), turn("assistant", "a")], "winner": winner}
    row["conversation_b"] = [turn("user"), turn("assistant", "b")]
    assert answers(row) == [("a", "b")]
    with pytest.raises(InputError, match=r"'winner' is 'nobody'; known are model_a, model_b"):
        read(row | {"winner": "nobody"})


def test_battle_columns_hold_half_surrogates_and_nulls() -> None:
    row = {"prompt": '["Q"]', "response_a": '["\\ud83d"]', "response_b": '["b"]', "winner_model_a": "1"}
    row["winner_model_b"] = "0"
    assert read(row) == ([], {"half_surrogate": 1})
    assert read(row | {"response_a": "[null]"}) == ([], {"empty_turn": 1})
    with pytest.raises(InputError, match=r"'response_a' has 2 texts, 'prompt' has 1"):
        read(row | {"response_a": '["a", "c"]'})


@pytest.mark.parametrize("score", [None, True, "high", float("nan"), float("inf"), 10**400, []])
def test_score_that_is_no_number_is_named(score: Any) -> None:
    with pytest.raises(InputError, match=r"'score_chosen' is .*, no number; read as UltraFeedback, binarized"):
        read({**messages(turn("user")), "score_chosen": score, "score_rejected": 1})
