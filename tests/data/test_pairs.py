"""Preference rows to judge prompts: the shape that is expected, what is dropped, and balanced labels."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasongenrm.config import PairsConfig
from reasongenrm.data.pairs import (
    drop_long_pairs,
    make_judge_prompts,
    parse_pair,
    parse_pairs,
    prepare_pairs,
)
from reasongenrm.errors import EmptyStageError, InputError
from reasongenrm.records import Drops, JudgePrompt, Message, PreferencePair, parse_records
from reasongenrm.store.artifacts import ArtifactRef, read_file
from tests.tiny import tiny_tokenizer

REAL_PAIRS = Path(__file__).parents[3] / "shared" / "data" / "train-preferences.jsonl"
MODEL = ArtifactRef(stage="import_model", key="0" * 16, digest="sha256:0", uri="s3://none/model", counts={}, metrics={})


def turns(*texts):
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 9, texts, strict=False)]


def row(chosen=("Q", "good"), rejected=("Q", "bad"), **more):
    return {"chosen": turns(*chosen), "rejected": turns(*rejected), **more}


def pairs(num):
    return [
        PreferencePair(
            pair_id=f"{n:06}", question=(Message(role="user", content=f"Q{n}"),), chosen="good", rejected="bad"
        )
        for n in range(num)
    ]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return str(path)


def test_row_becomes_question_and_two_answers():
    pair = parse_pair(row(("Hi", "Hello", "Q", "good"), ("Hi", "Hello", "Q", "bad"), source="s"), "row", "7")
    assert [turn.content for turn in pair.question] == ["Hi", "Hello", "Q"]
    assert (pair.chosen, pair.rejected, pair.source) == ("good", "bad", "s")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"chosen": turns("Q", "good")},
            r"f.jsonl line 2: rejected: Field required, found chosen; expected a JSON object",
        ),
        ({"rejected": turns("Q", "bad")}, r"line 2: chosen: Field required, found rejected"),
        (
            ["not", "an object"],
            r"line 2: Input should be a valid dictionary, found a list of 2; expected a JSON object",
        ),
        ({"chosen": "text", "rejected": "text"}, r"line 2: chosen: .*expected a JSON object"),
        ({"chosen": [{"role": "user"}], "rejected": []}, r"line 2: chosen.0.content: Field required"),
        (
            {"chosen": turns("Q", "good", "and?"), "rejected": turns("Q", "bad")},
            r"roles in 'chosen' are out of turn \(user, assistant, user\)",
        ),
        (
            {"chosen": list(reversed(turns("Q", "good"))), "rejected": turns("Q", "bad")},
            r"out of turn \(assistant, user\); expected user, assistant",
        ),
        ({"chosen": [], "rejected": turns("Q", "bad")}, r"out of turn \(no turns\)"),
    ],
)
def test_row_of_another_shape_stops_with_its_place(tmp_path, store, bad, message):
    path = write_rows(tmp_path / "f.jsonl", [row(), bad])
    with pytest.raises(InputError, match=message):
        prepare_pairs(store, PairsConfig(), path, MODEL)
    assert store.list() == []


def test_missing_file_is_named(store):
    with pytest.raises(InputError, match=r"nowhere.jsonl: no such file"):
        prepare_pairs(store, PairsConfig(), "nowhere.jsonl", MODEL)


def test_rows_without_a_preference_are_dropped_and_counted_by_cause():
    rows = [
        row(),
        row(rejected=("Q", "good")),
        row(chosen=("Q", "  ")),
        row(rejected=("Q", "")),
        row(rejected=("another Q", "bad")),
    ]
    drops = Drops()
    kept = parse_pairs([(f"line {n}", each) for n, each in enumerate(rows)], drops, "error")
    assert [pair.pair_id for pair in kept] == ["000000"]
    assert drops.num_in == 5
    assert drops.causes == {"equal_answers": 1, "empty_turn": 2, "questions_differ": 1}


def test_malformed_rows_can_be_dropped_and_counted_instead():
    drops = Drops()
    kept = parse_pairs([("line 1", {"chosen": []}), ("line 2", row())], drops, "drop")
    assert len(kept) == 1
    assert drops.causes == {"malformed": 1}
    assert "line 1: rejected: Field required, found chosen" in drops.examples["malformed"]


def test_mirrored_prompts_come_in_both_orders_with_opposite_labels():
    first, second = make_judge_prompts(pairs(1), "mirrored", seed=0)
    assert (first.answer_a, first.answer_b, first.label) == ("good", "bad", "[[A]]")
    assert (second.answer_a, second.answer_b, second.label) == ("bad", "good", "[[B]]")
    assert first.prompt_id != second.prompt_id


@given(num=st.integers(1, 300), seed=st.integers(0, 99))
def test_random_order_balances_the_labels_and_labels_follow_the_chosen_answer(num, seed):
    prompts = make_judge_prompts(pairs(num), "random", seed)
    num_a = sum(prompt.label == "[[A]]" for prompt in prompts)
    assert abs(num_a - num / 2) <= 0.5
    assert all((prompt.answer_a == "good") == (prompt.label == "[[A]]") for prompt in prompts)
    assert prompts == make_judge_prompts(pairs(num), "random", seed)


@pytest.mark.parametrize("order", ["mirrored", "random"])
def test_labels_of_real_pairs_are_balanced_within_two_percent(order, store):
    if not REAL_PAIRS.exists():
        pytest.skip("the real preference pairs are not beside this checkout")
    ref = prepare_pairs(store, PairsConfig(order=order), str(REAL_PAIRS), MODEL)
    assert abs(ref.metrics["label_a_fraction"] - 0.5) < 0.02
    assert ref.counts["num_in"] == 3461
    assert ref.counts["num_out"] == 3461 - sum(n for name, n in ref.counts.items() if "dropped" in name)


def test_long_pairs_are_dropped_and_counted():
    short, long = pairs(2)
    long = long.model_copy(update={"chosen": "word " * 2000})
    drops = Drops()
    assert drop_long_pairs([short, long], tiny_tokenizer("chatml"), 1000, drops) == [short]
    assert drops.causes == {"prompt_too_long": 1}


def test_stage_writes_prompts_once_and_finds_them_again(tmp_path, store):
    path = write_rows(tmp_path / "f.jsonl", [row(), row(rejected=("Q", "good"))])
    ref = prepare_pairs(store, PairsConfig(), path, MODEL)
    assert ref.counts == {"num_in": 2, "num_out": 1, "num_dropped_equal_answers": 1}
    prompts = parse_records(read_file(ref, "prompts.jsonl"), JudgePrompt, "prompts.jsonl")
    assert [prompt.label for prompt in prompts] == ["[[A]]", "[[B]]"]
    assert prepare_pairs(store, PairsConfig(), path, MODEL) == ref
    write_rows(tmp_path / "f.jsonl", [row(rejected=("Q", "other"))])
    assert prepare_pairs(store, PairsConfig(), path, MODEL).digest != ref.digest


def test_stage_with_nothing_left_names_the_causes(tmp_path, store):
    path = write_rows(tmp_path / "f.jsonl", [row(rejected=("Q", "good"))])
    with pytest.raises(EmptyStageError, match=r"none of 1 records is left: 1 equal_answers \(first: .*line 1\)"):
        prepare_pairs(store, PairsConfig(), path, MODEL)
    assert store.list() == []


def test_hub_name_that_cannot_be_had_says_so(store):
    with pytest.raises(
        InputError, match=r"no-such-owner/no-such-set: neither a local file nor a data set that the hub gives"
    ):
        prepare_pairs(store, PairsConfig(), "no-such-owner/no-such-set", MODEL)
