"""Preference rows to judge prompts: the shape that is expected, what is dropped, and balanced labels."""

import contextlib
import csv
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasongenrm.config import PairsConfig
from reasongenrm.data.pairs import (
    drop_long_pairs,
    make_judge_prompts,
    parse_pairs,
    prepare_pairs,
    said_of,
)
from reasongenrm.data.preference_formats import FORMATS
from reasongenrm.data.rows import BadRow
from reasongenrm.errors import ConfigError, EmptyStageError, InputError
from reasongenrm.records import Drops, JudgePrompt, Message, PreferencePair, parse_records
from reasongenrm.store.artifacts import ArtifactRef, digest_bytes, read_file
from reasongenrm.store.stage import stage_key
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


def placed(*rows):
    return [(f"f.jsonl line {number}", each) for number, each in enumerate(rows, start=1)]


def parsed(*rows, **settings):
    drops = Drops()
    return parse_pairs(placed(*rows), drops, PairsConfig(**settings)), drops


def test_row_becomes_question_and_two_answers():
    [pair], _ = parsed(row(("Hi", "Hello", "Q", "good"), ("Hi", "Hello", "Q", "bad"), source="s"))
    assert [turn.content for turn in pair.question] == ["Hi", "Hello", "Q"]
    assert (pair.pair_id, pair.chosen, pair.rejected, pair.source) == ("000000", "good", "bad", "s")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"chosen": turns("Q", "good")},
            r"f.jsonl line 2: column 'rejected' is missing, found chosen; read as chosen and rejected as message "
            r'lists, expected "chosen" and "rejected", each a list',
        ),
        (["not", "an object"], r'line 2: found list, no object; .* The row: \["not", "an object"\]'),
        (
            {"chosen": "text", "rejected": "text"},
            r"line 2: 'chosen' is no transcript .*`reasongenrm convert .*f.jsonl`",
        ),
        ({"chosen": 5, "rejected": 6}, r"line 2: 'chosen' is 5, no list of turns"),
        ({"chosen": [{"role": "user"}], "rejected": []}, r"line 2: 'chosen.0' has null as content, no text"),
        (
            {"chosen": [{"role": "judge", "content": "x"}], "rejected": []},
            r"'chosen.0' has the role 'judge'; known are",
        ),
        (
            {"chosen": turns("Q", "good", "and?"), "rejected": turns("Q", "bad")},
            r"roles in 'chosen' are out of turn \(user, assistant, user\)",
        ),
        (
            {"chosen": list(reversed(turns("Q", "good"))), "rejected": turns("Q", "bad")},
            r"out of turn \(assistant, user\); after a system turn",
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
    kept, drops = parsed(*rows)
    assert [pair.pair_id for pair in kept] == ["000000"]
    assert drops.num_in == 5
    assert drops.causes == {"equal_answers": 1, "empty_turn": 2, "questions_differ": 1}


def test_rows_that_cannot_be_read_can_be_dropped_and_counted_by_cause_instead():
    bad = [{"chosen": []}, BadRow("too_deep", "deep"), "text", {"chosen": [], "rejected": []}]
    kept, drops = parsed(row(), *bad, row(), bad_rows="drop")
    assert [pair.pair_id for pair in kept] == ["000000", "000005"]
    assert drops.causes == {"missing_column": 1, "too_deep": 1, "not_an_object": 1, "wrong_turns": 1}
    assert drops.num_in == 6
    assert "line 2: column 'rejected' is missing" in drops.examples["missing_column"]
    with pytest.raises(InputError, match=r"f.jsonl line 1: deep; expected a row that can be read\. Fix or remove it"):
        parsed(BadRow("too_deep", "deep"), row())


def test_unknown_columns_show_the_row_the_nearest_format_and_a_command():
    with pytest.raises(InputError) as caught:
        parsed({"prompt": "Q", "chosen": "good", "bad": "x" * 300})
    words = str(caught.value)
    assert words.startswith("f.jsonl line 1: columns prompt, chosen, bad; no format of preferences has these")
    assert "nearest: TRL's explicit prompt" in words
    assert 'The row: {"prompt": "Q", "chosen": "good", "bad": "xxx' in words
    assert "x" * 250 not in words
    assert "`reasongenrm convert f.jsonl --columns prompt=YOURS,chosen=YOURS,rejected=YOURS`" in words


def test_file_of_bad_rows_alone_names_the_first():
    with pytest.raises(InputError, match=r"line 1: not JSON, and no other row can be read"):
        parsed(BadRow("not_json", "not JSON"), BadRow("not_utf8", "not UTF-8"), bad_rows="drop")


def test_columns_can_be_named():
    names = {"prompt": "question", "chosen": "good", "rejected": "bad", "source": "from"}
    given = {"question": "Q", "good": "yes", "bad": "no", "from": "me", "answers": []}
    [pair], _ = parsed(given, columns=names)
    assert (pair.question[0].content, pair.chosen, pair.rejected, pair.source) == ("Q", "yes", "no", "me")
    with pytest.raises(ConfigError, match=r"no format has a column 'promt'; expected OURS=YOURS"):
        parsed(given, columns={"promt": "question"})
    with pytest.raises(
        InputError, match=r"line 1: no column 'best', which pairs.columns \(--columns\) names; found question"
    ):
        parsed(given, columns=names | {"chosen": "best"})


def test_setting_without_an_effect_on_the_format_is_an_error():
    with pytest.raises(ConfigError, match=r"pairs.margin has no effect on rows .*expected it with UltraFeedback, "):
        parsed(row(), margin=1)
    with pytest.raises(ConfigError, match=r"pairs.ranked has no effect on rows .*Nectar"):
        parsed(row(), ranked="neighbours")


def test_split_of_a_file_is_an_error(tmp_path, store):
    path = write_rows(tmp_path / "f.jsonl", [row()])
    with pytest.raises(ConfigError, match=r"pairs.split is of a data set on the hub, but .*f.jsonl is a file"):
        prepare_pairs(store, PairsConfig(split="test"), path, MODEL)


def test_what_rows_were_read_as_is_one_line():
    assert said_of(placed(row(), row()), "f.jsonl", PairsConfig()) == (
        "f.jsonl: 2 rows, read as chosen and rejected as message lists"
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*"ab", "role", "content", "from", "value", "type", "text", "answer", "rank"]), inner
        )
    ),
    max_leaves=6,
)


def is_told(row):
    return any(kind.tells(row) for kind in FORMATS)


@given(kind=st.sampled_from(FORMATS), data=st.data())
def test_whatever_the_columns_hold_it_is_pairs_drops_or_an_error_that_says_so(kind, data):
    given = data.draw(st.fixed_dictionaries(dict.fromkeys(kind.columns, json_values)))
    drops = Drops()
    says = r"f.jsonl line 1: "
    with contextlib.nullcontext() if is_told(given) else pytest.raises(InputError, match=says):
        kept = parse_pairs(placed(given), drops, PairsConfig(bad_rows="drop"))
        assert drops.num_in == len(kept) + drops.causes.total() > 0
        assert all(example.startswith("f.jsonl line 1") for example in drops.examples.values())


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


def test_key_of_message_lists_is_the_one_of_before_there_were_other_formats(tmp_path, store):
    """Of an unchanged file and unchanged settings; the digits are those of this stage's config and input alone."""
    path = write_rows(tmp_path / "f.jsonl", [row()])
    made = prepare_pairs(store, PairsConfig(), path, MODEL)
    old = {"order": "mirrored", "limit": None, "max_prompt_tokens": None, "bad_rows": "error", "seed": 0}
    assert made.key == stage_key("prepare_pairs", old, {"preferences": digest_bytes(Path(path).read_bytes())})
    path = write_rows(tmp_path / "t.jsonl", [{"prompt": "Q", "chosen": "good", "rejected": "bad"}])
    other = prepare_pairs(store, PairsConfig(), path, MODEL)
    inputs = {"preferences": digest_bytes(Path(path).read_bytes())}
    assert other.key == stage_key("prepare_pairs", old | {"format": "explicit_prompt"}, inputs)


def test_files_of_every_kind_become_prompts(tmp_path, store):
    path = tmp_path / "pairs.csv.gz"
    path.write_bytes(gzip.compress(b"prompt,chosen,rejected\r\nQ,good,bad\r\n"))
    ref = prepare_pairs(store, PairsConfig(order="random"), str(path), MODEL)
    [prompt] = parse_records(read_file(ref, "prompts.jsonl"), JudgePrompt, "prompts.jsonl")
    assert {prompt.answer_a, prompt.answer_b} == {"good", "bad"}


def test_same_pairs_in_any_form_give_the_same_prompts(tmp_path, store):
    texts = [("Name a prime.", "7", "9"), ('Say "yes".', "Yes,\nof course", "No"), ("\u00dc?", "\u00dc.", "U")]
    whole = [row((question, good), (question, bad)) for question, good, bad in texts]
    trl = [{"prompt": question, "chosen": good, "rejected": bad} for question, good, bad in texts]
    hh = [
        {side: f"\n\nHuman: {text[0]}\n\nAssistant: {text[place]}" for side, place in (("chosen", 1), ("rejected", 2))}
        for text in texts
    ]
    paths = [write_rows(tmp_path / f"{name}.jsonl", rows) for name, rows in (("m", whole), ("t", trl), ("h", hh))]
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("prompt", "chosen", "rejected"), *texts])
    made = [prepare_pairs(store, PairsConfig(), path, MODEL) for path in [*paths, str(tmp_path / "t.csv")]]
    assert len({ref.key for ref in made}) == 4
    assert len({read_file(ref, "prompts.jsonl") for ref in made}) == 1


def test_hub_name_that_cannot_be_had_says_so(store):
    with pytest.raises(
        InputError, match=r"no-such-owner/no-such-set: neither a local file nor a data set that the hub gives"
    ):
        prepare_pairs(store, PairsConfig(), "no-such-owner/no-such-set", MODEL)
