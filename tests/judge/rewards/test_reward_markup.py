"""Prompts that were templated by a trainer, read back."""

import pytest

from reasongenrm.judge.rewards.reward_markup import read_turns, without_turn_end

LLAMA = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
CHATML = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_conversation_is_read_turn_by_turn() -> None:
    found = read_turns(LLAMA)
    assert found is not None
    assert [(turn.role, turn.content) for turn in found[0]] == [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
    assert found[1] == ""


def test_what_the_template_opens_the_answer_with_belongs_to_the_answer() -> None:
    found = read_turns(CHATML + "<think>\n")
    assert found is not None
    assert found[1] == "<think>\n"


@pytest.mark.parametrize(
    "prompt",
    [
        "Name a prime.",
        "",
        "Before. " + CHATML,
        CHATML + "done<|im_end|>\n",
        "<|im_start|>assistant\n",
        "<|im_start|>user\nHi\n<|im_start|>assistant\n",
        "<|im_start|>user\nHi<|im_end|> and more\n<|im_start|>assistant\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>assistant\n",
    ],
)
def test_what_is_not_wholly_markup_is_left_as_it_is(prompt: str) -> None:
    assert read_turns(prompt) is None


def test_closing_tokens_go_and_nothing_else_does() -> None:
    assert without_turn_end("7<|im_end|>\n<|endoftext|>") == "7"
    assert without_turn_end("7 <|im_end|> is a token") == "7 <|im_end|> is a token"
    assert without_turn_end("<|eot_id|>") == ""
