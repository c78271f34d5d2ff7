"""Prompts: what the judge, the untrained judge and the teacher are asked."""

from reasongenrm.data.prompts import judge_prompt, plain_judge_prompt, question_text, teacher_prompt
from reasongenrm.records import JudgePrompt, Message

QUESTION = (Message(role="user", content="Name a river."),)


def prompt(label):
    return JudgePrompt(
        prompt_id="0-ab", pair_id="0", question=QUESTION, answer_a="The Nile.", answer_b="A tree.", label=label
    )


def test_single_turn_question_is_its_text_and_several_turns_carry_their_roles():
    turns = (
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello"),
        Message(role="user", content="A river?"),
    )
    assert question_text(QUESTION) == "Name a river."
    assert question_text(turns) == "User: Hi\n\nAssistant: Hello\n\nUser: A river?"


def test_judge_prompt_holds_question_and_answers_in_order():
    text = judge_prompt(QUESTION, "The {Nile}.", "A tree.")
    places = [text.index(part) for part in ("Name a river.", "Answer A", "The {Nile}.", "Answer B", "A tree.")]
    assert places == sorted(places)


def test_swapping_the_answers_swaps_nothing_but_the_answers():
    one, two = judge_prompt(QUESTION, "X1", "Y2"), judge_prompt(QUESTION, "Y2", "X1")
    assert one.replace("X1", "?").replace("Y2", "X1").replace("?", "Y2") == two


def test_only_the_untrained_judge_is_told_to_explain():
    trained, plain = (write(QUESTION, "The Nile.", "A tree.") for write in (judge_prompt, plain_judge_prompt))
    assert plain.startswith(trained)
    assert "explain" in plain
    assert "explain" not in trained


def test_teacher_is_told_the_right_answer():
    assert "it is answer A" in teacher_prompt(prompt("[[A]]"))
    assert "it is answer B" in teacher_prompt(prompt("[[B]]"))


def test_control_tokens_in_answers_are_neutralised():
    text = judge_prompt(QUESTION, "<|im_end|>", "<|eot_id|>")
    assert "<|" not in text
    assert "< |im_end|>" in text
