"""How reasons are tokenised, laid out in rows, and planned into batches."""

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasongenrm.data.chat import detect_family, encode_reason_example, install_template
from reasongenrm.data.prompts import judge_prompt
from reasongenrm.errors import InputError
from reasongenrm.packing.trees import pack
from reasongenrm.reasons.candidates import Candidate, Row, encode_candidates, plan_batches
from reasongenrm.records import JudgePrompt, Message, Reason, Verdict
from tests.tiny import FAMILIES, Family, tiny_tokenizer


def prompt(prompt_id: str, label: Verdict = "[[A]]") -> JudgePrompt:
    return JudgePrompt(
        prompt_id=prompt_id,
        pair_id=prompt_id,
        question=(Message(role="user", content=f"Which number is {prompt_id}?"),),
        answer_a="This one.",
        answer_b="That one.",
        label=label,
    )


def reason(prompt_id: str, sample: int, text: str = "Answer A is better.") -> Reason:
    return Reason(prompt_id=prompt_id, sample=sample, reason=text, model="m", num_tokens=5, finish_reason="stop")


def candidate(prompt_id: str, sample: int, num_tokens: int) -> Candidate:
    return Candidate(reason(prompt_id, sample), array("i", range(num_tokens)), 1, 1)


def row(prompt_id: str, num_prompt: int, *num_tokens: int) -> Row:
    candidates = (candidate(prompt_id, sample, length) for sample, length in enumerate(num_tokens))
    return Row(array("i", range(num_prompt)), tuple(candidates))


def shape(batches: Sequence[Sequence[Row]]) -> list[list[tuple[str, list[int]]]]:
    """Prompt and samples of each row of each batch."""
    return [
        [(row.candidates[0].reason.prompt_id, [c.reason.sample for c in row.candidates]) for row in rows]
        for rows in batches
    ]


@pytest.mark.parametrize("family_name", FAMILIES)
def test_tokens_are_those_of_training_with_the_label_as_verdict(family_name: Family) -> None:
    tokenizer = tiny_tokenizer(family_name)
    family = detect_family(tokenizer)
    install_template(tokenizer, family, "reason")
    prompts = {"1": prompt("1", "[[A]]"), "2": prompt("2", "[[B]]")}
    reasons = [reason("2", 0), reason("1", 3, "B lies: <|im_end|>"), reason("2", 1, "Both are right, but A is short.")]
    rows, drops = encode_candidates(tokenizer, family, prompts, reasons, 4096)
    assert drops.counts() == {"num_in": 3, "num_out": 3}
    assert shape([rows]) == [[("2", [0, 1]), ("1", [3])]]
    for found in rows:
        for one in found.candidates:
            asked = prompts[one.reason.prompt_id]
            text = judge_prompt(asked.question, asked.answer_a, asked.answer_b)
            example = encode_reason_example(tokenizer, family, text, one.reason.reason, asked.label)
            whole = [*found.prompt_ids, *one.ids]
            assert whole == example.input_ids[:-1]  # the end of the sequence is not scored
            num_prompt = len(found.prompt_ids)
            assert (num_prompt, num_prompt + one.num_reason_tokens) == example.reason_span
            assert (len(whole) - one.num_verdict_tokens, len(whole)) == example.verdict_span


def test_reason_over_the_limit_is_dropped_and_one_at_it_kept() -> None:
    tokenizer = tiny_tokenizer("chatml")
    family = detect_family(tokenizer)
    install_template(tokenizer, family, "reason")
    prompts = {"1": prompt("1")}
    reasons = [reason("1", 0, "yes " * 9), reason("1", 1, "yes")]
    (whole,), _ = encode_candidates(tokenizer, family, prompts, reasons, 4096)
    long, short = whole.candidates
    length = len(whole.prompt_ids) + len(long.ids) + 1  # the end of the sequence counts
    assert len(encode_candidates(tokenizer, family, prompts, reasons, length)[0][0].candidates) == 2
    (cut,), drops = encode_candidates(tokenizer, family, prompts, reasons, length - 1)
    assert cut.candidates == (short,)
    assert drops.counts() == {"num_in": 2, "num_out": 1, "num_dropped_too_long": 1}
    assert encode_candidates(tokenizer, family, prompts, reasons, 1)[0] == []


def test_reason_of_an_unknown_prompt_or_given_twice_is_an_error() -> None:
    tokenizer = tiny_tokenizer("chatml")
    family = detect_family(tokenizer)
    install_template(tokenizer, family, "reason")
    with pytest.raises(InputError, match=r"sample 4 of prompt 2: no such prompt in prompts\.jsonl"):
        encode_candidates(tokenizer, family, {"1": prompt("1")}, [reason("2", 4)], 4096)
    with pytest.raises(InputError, match=r"sample 4 of prompt 1: is there twice"):
        encode_candidates(tokenizer, family, {"1": prompt("1")}, [reason("1", 4), reason("1", 4)], 4096)


def test_tree_predicts_reasons_and_verdicts_and_not_the_bridge_between_them() -> None:
    # Prompt 10 11 12; reasons 20 21 | assistant header 30 | verdict 40 41, and 22 | 30 | 40 41; the last one is only
    # predicted.
    first = Candidate(reason("p", 0), array("i", [20, 21, 30, 40, 41]), num_reason_tokens=2, num_verdict_tokens=2)
    second = Candidate(reason("p", 1), array("i", [22, 30, 40, 41]), num_reason_tokens=1, num_verdict_tokens=2)
    both = Row(array("i", [10, 11, 12]), (first, second))
    packed = pack([both.tree()])
    assert packed.input_ids.tolist() == [10, 11, 12, 20, 21, 30, 40, 12, 22, 30, 40]
    assert packed.targets.tolist() == [-100, -100, 20, 21, -100, 40, 41, 22, -100, 40, 41]
    assert packed.num_tokens == both.num_tokens
    assert (
        Row(array("i", [10, 11]), (second,)).num_tokens
        == pack([Row(array("i", [10, 11]), (second,)).tree()]).num_tokens
    )


def test_batches_are_filled_to_the_limit_with_the_longest_rows_first() -> None:
    rows = [row("a", 4, 3), row("b", 5, 3, 3), row("c", 4, 2), row("d", 4, 2, 3)]  # 6, 10, 5 and 8 tokens
    assert shape(plan_batches(rows, 20)) == [[("b", [0, 1]), ("d", [0, 1])], [("a", [0]), ("c", [0])]]
    assert shape(plan_batches(rows, 17)) == [[("b", [0, 1])], [("d", [0, 1]), ("a", [0])], [("c", [0])]]
    assert shape(plan_batches(rows, 29)) == [[("b", [0, 1]), ("d", [0, 1]), ("a", [0]), ("c", [0])]]


def test_prompt_is_repeated_only_where_its_reasons_do_not_fit_into_one_row() -> None:
    assert shape(plan_batches([row("a", 4, 3, 3, 3)], 12)) == [[("a", [0, 1, 2])]]
    assert shape(plan_batches([row("a", 4, 3, 3, 3)], 11)) == [[("a", [0, 1])], [("a", [2])]]
    assert shape(plan_batches([row("a", 4, 3, 3)], 2)) == [[("a", [0])], [("a", [1])]]


@given(
    lengths=st.lists(st.tuples(st.integers(1, 20), st.lists(st.integers(1, 20), min_size=1, max_size=5)), max_size=8),
    max_batch_tokens=st.integers(1, 120),
    order=st.randoms(use_true_random=False),
)
def test_plan_holds_every_reason_once_within_the_limit_in_whatever_order_they_come(
    lengths: list[tuple[int, list[int]]], max_batch_tokens: int, order: "st.random.Random"
) -> None:
    rows = [row(f"p{number}", num_prompt, *num_tokens) for number, (num_prompt, num_tokens) in enumerate(lengths)]
    batches = plan_batches(rows, max_batch_tokens)
    planned = [(c.reason.prompt_id, c.reason.sample) for rows in batches for row in rows for c in row.candidates]
    assert sorted(planned) == [(c.reason.prompt_id, c.reason.sample) for row in rows for c in row.candidates]
    for batch in batches:
        num_tokens = sum(row.num_tokens for row in batch)
        assert num_tokens == pack([row.tree() for row in batch]).num_tokens
        assert num_tokens <= max_batch_tokens or [len(row.candidates) for row in batch] == [1]
    shuffled = [Row(row.prompt_ids, tuple(order.sample(row.candidates, len(row.candidates)))) for row in rows]
    order.shuffle(shuffled)
    assert plan_batches(shuffled, max_batch_tokens) == batches
