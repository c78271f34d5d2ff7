"""The reader of verdicts: what a text decides, and P([[A]]) from tokens however they are cut; numbers are worked by
hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasongenrm.data.prompts import plain_judge_prompt, teacher_prompt
from reasongenrm.generation.verdicts import LOWEST_LOGPROB, ReplyToken, parse_verdict, probability_of_a
from reasongenrm.records import JudgePrompt, Message

A, B = "[[A]]", "[[B]]"
PROMPT = JudgePrompt(
    prompt_id="0", pair_id="0", question=(Message(role="user", content="?"),), answer_a="x", answer_b="y", label=A
)
INSTRUCTION = plain_judge_prompt(PROMPT.question, "x", "y").rpartition("### Verdict\n")[2]
TEACHERS = teacher_prompt(PROMPT).rpartition("### Your part\n")[2]

TEXTS = [
    # Said, whatever stands around it.
    ("[[A]]", A),
    ("**[[B]]**", B),
    (r"\boxed{[[B]]}", B),
    (r"$\boxed{\text{[[A]]}}$", A),
    ("`[[A]]`", A),
    ("[[[A]]]", A),
    ('My verdict is "[[B]]".', B),
    ("### Verdict\n\n[[B]]\n", B),
    ("Verdict:[[A]]<|im_end|>", A),
    ("... so [[A]] is better.", A),
    ("I decide for [[B]] if only slightly.", B),
    ("If I had to choose, I would say [[B]].", B),
    ("If correctness counts more, B is better: [[B]]", B),
    ("If B were kinder I would hesitate, but [[A]]", A),
    ("A or B? [[A]]", A),
    ("[[A]], more or less.", A),
    # The last one counts.
    ("First I thought [[B]].\nFinal verdict: [[A]]", A),
    ("First [[A]], but no: [[B]]", B),
    ("[[B]] then [[A]].", A),
    ("I must write [[A]] or [[B]]. My verdict: [[B]]", B),
    ("Verdict ([[A]] or [[B]]): [[A]]", A),
    ("[[A]] and [[B]] were weighed, and [[A]] is better.", A),
    ("[[A]] and again [[A]]", A),
    # What it is compared with is passed over.
    ("[[A]] is better than [[B]].", A),
    ("I prefer [[B]] over [[A]].", B),
    ("[[A]], not [[B]].", A),
    ("The verdict is not [[B]].", None),
    # A choice that is quoted is no verdict.
    ("can't decide between [[A]] and [[B]]", None),
    ("It is hard to decide between [[A]]", None),
    ("[[A]] or [[B]]", None),
    ("Either [[A]] or **[[B]]**.", None),
    ('"[[A]]" or "[[B]]"', None),
    ("[[A]] or maybe [[B]]?", None),
    ("Is it [[A]], or is it [[B]]?", None),
    ("[[A]]/[[B]]", None),
    ("[[A]], [[B]]", None),
    ("[[A]] vs. [[B]]", None),
    ("[[A]], [[B]], or [[C]]", None),
    ("[[C]] or [[B]]", None),
    ("Answer A or [[B]]", None),
    ("[[A]] for style, [[B]] for substance", None),
    ("[[B]]\n(I was to write [[A]] or [[B]].)", None),
    # So is an echo of an instruction, whole or in part.
    ('write "[[A]]" if A is better, "[[B]]" if B is better', None),
    ('write "[[A]]" if A is better, "[[B]]"', None),
    ('"[[A]]" if assistant A is better, "[[B]]" if assistant B is better, and "[[C]]" for a tie', None),
    ("[[B]] if you think the second answer is better.", None),
    ("If answer B is better, write [[B]].", None),
    ("Write [[A]] if the first is better, else [[B]]", None),
    ("[[A]] means that A is better, [[B]] means that B is better", None),
    ("- [[A]]: if A is better\n- [[B]]: if B is better", None),
    ("A is short.\n\n" + INSTRUCTION, None),
    ("A is short. [[A]]\n\n" + INSTRUCTION, None),
    (INSTRUCTION.replace("[[A]]", '"[[A]]"').replace("[[B]]", '"[[B]]"'), None),
    ("or [[B]] if answer B is better.", None),
    ("[[B]] if answer", None),
    ("[[B]] if", None),
    ("[[A]] or", None),
    ("[[B]], on a line of its own.", None),
    (TEACHERS, None),
    (INSTRUCTION + "\n\n[[A]]", A),
    # A later mark of another kind, or a tie, withdraws what was said.
    ("[[A]] ... Final verdict: [[C]]", None),
    ("[[A]] hmm no: tie", None),
    ("[[A]]. Actually, it's a **tie**.", None),
    ("[[A]], or a tie", None),
    ("[[B]]\n[[Tie]]", None),
    ("[[A]]. [[A=B]]", None),
    ("[[C]] no: [[A]]", A),
    ("[[A]]. It is not a tie.", A),
    ("[[A]]. That breaks the tie.", A),
    ("A tie at first sight, but [[A]]. The tie-breaker is length.", A),
    ("[[A]] [[1, 2]]", A),
    # A think block is reason.
    ("<think>I lean to [[A]]</think>", None),
    ("<think>I lean to [[A]]", None),
    ("I lean to [[A]]</think>", None),
    ("<think>...[[A]]...</think>[[B]]", B),
    ("<think>...[[A]]...</think>\n\n[[B]]<think>[[A]]", B),
    ("I lean to [[A]]</think> So [[B]].", B),
    ("[[A]] <think>or [[B]]?</think>", A),
    ("<think>a <think>b</think> [[A]]</think> I cannot say.", None),
    ("<THINK>[[A]]</THINK> [[B]]", B),
    # Anything else is no mark.
    ("", None),
    ("[[C]]", None),
    ("[A]", None),
    ("[[ A ]]", None),
    ("[[a]]", None),
    ("[ [A]]", None),
    ("[[\u0410]]", None),  # a Cyrillic A
    ("[[\uff21]]", None),  # a full-width A
    ("[[A\u200b]]", None),
    ("Answer A is better.", None),
]


def test_what_a_text_decides() -> None:
    wrong = [(text, verdict, parse_verdict(text)) for text, verdict in TEXTS if parse_verdict(text) != verdict]
    assert wrong == []


@given(st.text(), st.sampled_from([A, B]))
def test_verdict_in_a_sentence_of_its_own_at_the_end_wins_over_whatever_came_before(text: str, verdict: str) -> None:
    assert parse_verdict(f"{text}.\nVerdict: {verdict}") == verdict


@pytest.mark.parametrize(
    "text",
    [
        "[[A]] or " * 20_000,
        "<think>" * 50_000,
        "[[A]]" + " \n" * 100_000,
        "or" + " " * 200_000 + "[[A]]",
        "[" * 200_000,
    ],
)
def test_a_long_text_is_read_in_linear_time(text: str) -> None:
    parse_verdict(text)  # the suite's time-out ends a reader that goes back and forth


def token(text: str, p: float = 1.0, **others: float) -> ReplyToken:
    """A token with its probability and its competitors'; "_" in a name stands for "[", "Q" for "]"."""
    names = {name.replace("_", "[").replace("Q", "]"): q for name, q in others.items()}
    return ReplyToken(text, {name: math.log(q) for name, q in {text: p, **names}.items()})


OPEN, CLOSE = token("[[", 0.9, x=0.1), token("]]")
REASON = [token("So [[B]] loses.", 0.9), token("<|im_end|>", 0.9), token("assistant\n", 0.9)]
FORCED = ReplyToken("A", {"A": math.log(0.003), "B": math.log(0.001)})  # a grammar left nothing else

TOKENS = [
    # Both letters are listed.
    ([OPEN, token("A", 0.6, B=0.2), CLOSE], A, 0.75),
    ([OPEN, token("B", 0.6, A=0.2), CLOSE], B, 0.25),
    ([OPEN, token("B", 0.1, A=0.4, Answer=0.3), CLOSE], B, 0.8),  # sampled against the odds
    ([token("["), token("["), token("A", 0.6, B=0.2), token("]"), token("]")], A, 0.75),
    ([token("so [["), token("A", 0.6, B=0.2), token("]].")], "so [[A]].", 0.75),
    # However the verdict is cut.
    ([token("[[A", 0.3, __B=0.1), CLOSE], A, 0.75),
    ([token("["), token("[A", 0.3, _B=0.1), CLOSE], A, 0.75),
    ([token("[[B]]", 0.4, __AQQ=0.1)], B, 0.2),
    ([token("[[A]]<|im_end|>", 0.45, __BQQ=0.15)], A, 0.75),
    # Every spelling counts, other words do not.
    ([OPEN, token("A", 0.3, AQQ=0.3, B=0.1, BQQ=0.1), CLOSE], A, 0.75),
    ([OPEN, token("A]]", 0.2, A=0.4, B=0.2)], A, 0.75),
    ([OPEN, token("A", 0.6, B=0.1, Both=0.2, BQQ=0.05), CLOSE], A, 0.8),
    # A letter that is not listed is taken for the least probable one that is.
    ([OPEN, token("A", 0.8, The=0.1, x=0.05), CLOSE], A, 0.8 / 0.85),
    ([OPEN, token("B", 0.8, The=0.1, x=0.05), CLOSE], B, 0.05 / 0.85),
    # Forced by a grammar: the two letters' ratio is the model's own, if both are listed.
    ([OPEN, FORCED, CLOSE], A, 0.75),
    ([OPEN, token("A", 0.75, B=0.25), CLOSE], A, 0.75),  # renormalised
    ([OPEN, token("A", 0.001, The=0.9, x=0.09), CLOSE], A, None),
    ([OPEN, ReplyToken("A", {"A": 0.0, "B": LOWEST_LOGPROB}), CLOSE], A, 1.0),
    ([OPEN, ReplyToken("B", {"B": 0.0, "A": LOWEST_LOGPROB}), CLOSE], B, 0.0),
    # At the mark that decides: not in the reason before it, not at one that is passed over.
    ([*REASON, OPEN, token("A", 0.6, B=0.2), CLOSE], A, 0.75),
    (
        [OPEN, token("A", 0.6, B=0.2), CLOSE, token(" not "), OPEN, token("B", 0.5, A=0.1), CLOSE],
        "[[A]] not [[B]]",
        0.75,
    ),
    # Nothing can be told.
    ([], A, None),
    ([token("Neither.", 0.9)], "Neither.", None),
    ([OPEN, token("A", 0.6, B=0.2), CLOSE], "A", None),
    ([OPEN, token("A", 0.6, B=0.2)], A, None),  # the tokens end before it is a mark
    ([OPEN, token("A", 0.6, B=0.2), CLOSE], B, None),  # they are another reply's
    ([OPEN, token("A", 0.6, B=0.2), CLOSE, token(" or "), OPEN, token("B", 0.6), CLOSE], "[[A]] or [[B]]", None),
    ([token("[[A]]", 0.9)], A, None),  # its own token only: nothing is known of others
    ([ReplyToken("[[A]]", {})], A, None),
]


def test_probability_of_a_is_the_share_of_its_letter_where_the_two_verdicts_part() -> None:
    got = [probability_of_a(answer, reversed(tokens)) for tokens, answer, _ in TOKENS]
    assert got == [None if p is None else pytest.approx(p, abs=1e-12) for _, _, p in TOKENS]


def test_tokens_before_the_verdict_are_not_looked_at() -> None:
    def backwards():  # type: ignore[no-untyped-def]
        yield from (CLOSE, token("A", 0.6, B=0.2), OPEN)
        raise AssertionError("read on")

    assert probability_of_a(A, backwards()) == pytest.approx(0.75)


def test_openai_token_has_its_own_probability_and_those_at_its_place() -> None:
    listed = {"token": "A", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "B", "logprob": float("-inf")}]}
    assert ReplyToken.of_openai(listed) == ReplyToken("A", {"A": -0.5, "B": LOWEST_LOGPROB})
    assert ReplyToken.of_openai({"token": "A", "logprob": -0.5, "top_logprobs": None}) == ReplyToken("A", {"A": -0.5})
