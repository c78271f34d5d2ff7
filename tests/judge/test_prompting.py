"""The judge's prompt: byte for byte that of the training, whatever the texts hold; what is too long loses its
middle."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasongenrm.data.chat_families import CONTROL_TOKENS
from reasongenrm.data.prompts import judge_prompt, plain_judge_prompt
from reasongenrm.judge.api import Cut, QuestionTurn
from reasongenrm.judge.prompting import Pair
from reasongenrm.records import Message

HOSTILE = {
    "null byte": "a\0b",
    "right-to-left": "\u202eevil\u202c \u2067x\u2069 \u0627\u0644",
    "homoglyphs": "\uff3b\uff3bA\uff3d\uff3d [[\u0410]]",
    "format fields": "{question} {0} {answer_a!r} %s",
    "empty": "",
}


def pair(question: str = "Why?", answer_a: str = "one", answer_b: str = "two", rubric: str | None = None) -> Pair:
    return Pair((QuestionTurn(role="user", content=question),), answer_a, answer_b, rubric)


def content(of: Pair, order: str = "given") -> str:
    (message,) = of.request("vote", "given" if order == "given" else "swapped", "reason").messages
    return message["content"]


@pytest.mark.parametrize("style", ["plain", "reason"])
def test_without_a_rubric_the_prompt_is_that_of_the_training_byte_for_byte(style: str) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Why? {x}")]
    asked = Pair(tuple(QuestionTurn(role=role, content=text) for role, text in turns), "one", "two")  # type: ignore[arg-type]
    question = tuple(Message(role=role, content=text) for role, text in turns)  # type: ignore[arg-type]
    expected = (plain_judge_prompt if style == "plain" else judge_prompt)(question, "one", "two")
    (message,) = asked.request("vote", "given", "plain" if style == "plain" else "reason").messages
    assert message == {"role": "user", "content": expected}
    assert "System: Be brief." in expected


def test_rubric_is_a_section_before_the_verdict_and_changes_nothing_else() -> None:
    with_rubric, without = content(pair(rubric="Facts count.<|im_end|>")), content(pair())
    assert with_rubric == without.replace("\n### Verdict", "\n### Judge by\nFacts count.< |im_end|>\n\n### Verdict")


def test_swapped_order_is_the_given_order_of_the_swapped_pair() -> None:
    assert content(pair(), "swapped") == content(pair(answer_a="two", answer_b="one"))


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_no_control_token_survives_in_any_field(token: str) -> None:
    text = content(pair(*[f"x{token}y"] * 4))
    assert token not in text
    assert text.count(f"x{token[:1]} {token[1:]}y") == 4


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_other_strange_text_goes_in_as_it_is(text: str) -> None:
    assert f"### Answer A\n{text}\n\n### Answer B\ntwo\n" in content(pair(answer_a=text))


def test_lone_surrogate_becomes_one_replacement_character() -> None:
    assert "### Answer A\n\ufffdx\ufffd\n" in content(pair(answer_a="\ud800x\udc00"))
    # Taken out, the surrogate must not leave a control token behind.
    assert "\n< |im\ufffd_end|>\n" in content(pair(answer_a="<|im\ud800_end|>"))


@settings(deadline=None)
@given(st.text(alphabet=st.characters(), max_size=30), st.text(alphabet=st.characters(), max_size=30))
def test_any_text_makes_a_prompt_that_can_be_sent(first: str, second: str) -> None:
    question = first.encode("utf-8", errors="replace").decode()  # a turn takes no lone surrogates
    content(pair(question, second, first, second)).encode("utf-8")


def test_longest_texts_are_cut_first_in_their_middle_and_said() -> None:
    # 4 + 10 + 100 characters into 34: the question and the short answer stay, the long answer keeps 34 - 14 = 20.
    long = "h" * 50 + "t" * 50
    cut = pair("Why?", "x" * 10, long).cut_to(34)
    assert (cut.question[0].content, cut.answer_a) == ("Why?", "x" * 10)
    assert cut.answer_b == "h" * 10 + "\n[... 80 characters left out ...]\n" + "t" * 10
    assert cut.cuts == (Cut(field="answer_b", num_chars=80),)


def test_two_long_answers_are_cut_to_the_same_length() -> None:
    # 4 + 100 + 60 into 44: (44 - 4) / 2 = 20 each.
    cut = pair("Why?", "x" * 100, "y" * 60).cut_to(44)
    assert cut.cuts == (Cut(field="answer_a", num_chars=80), Cut(field="answer_b", num_chars=40))


def test_conversation_that_is_too_long_becomes_one_text_that_keeps_its_end() -> None:
    turns = (
        QuestionTurn(role="user", content="a" * 100),
        QuestionTurn(role="assistant", content="b"),
        QuestionTurn(role="user", content="Why?"),
    )
    cut = Pair(turns, "1", "2").cut_to(40)
    assert cut.question[0].content.startswith("User: a")
    assert cut.question[0].content.endswith("User: Why?")


@settings(deadline=None)
@given(
    st.text(alphabet="q", max_size=60),
    st.text(alphabet="a", max_size=60),
    st.text(alphabet="b", max_size=60),
    st.integers(1, 200),
)
def test_cut_texts_fit_say_what_is_missing_and_do_not_depend_on_who_is_a(
    question: str, first: str, second: str, budget: int
) -> None:
    cut, swapped = pair(question, first, second).cut_to(budget), pair(question, second, first).cut_to(budget)
    assert (cut.question, cut.answer_a, cut.answer_b) == (swapped.question, swapped.answer_b, swapped.answer_a)
    missing = {said.field: said.num_chars for said in cut.cuts}
    num_chars = len(question + first + second)
    assert num_chars - sum(missing.values()) <= budget
    assert (num_chars <= budget) == (not missing)
    for field, text in (("answer_a", cut.answer_a), ("answer_b", cut.answer_b)):
        assert (f"[... {missing[field]} characters left out ...]" in text) if field in missing else ("..." not in text)
