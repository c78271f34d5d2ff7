"""vLLM's reasoning parser without vLLM: a stand-in for the two names that it is registered with, all else as
shipped."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from reasongenrm.data import chat
from reasongenrm.data.chat import REASONING_PARSER_FILE, render, save_reasoning_parser, split_generation
from tests.tiny import FAMILIES, tiny_checkpoint, tiny_tokenizer

QUESTION = [{"role": "user", "content": "Which?"}]


class Base:
    """What vLLM's ReasoningParser does at construction."""

    def __init__(self, tokenizer: Any, *_: Any, **__: Any) -> None:
        self.model_tokenizer = tokenizer
        self.vocab = tokenizer.get_vocab()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    registered: dict[str, Any] = {}
    reasoning, basic = ModuleType("vllm.reasoning"), ModuleType("vllm.reasoning.basic_parsers")
    manager = SimpleNamespace(register_module=lambda name, module: registered.update({name: module}))
    vars(reasoning).update(ReasoningParser=Base, ReasoningParserManager=manager)
    vars(basic).update(DeltaMessage=SimpleNamespace)
    for module in (ModuleType("vllm"), reasoning, basic):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    save_reasoning_parser(tmp_path)
    spec = importlib.util.spec_from_file_location("reasongenrm_reasoning_parser", tmp_path / REASONING_PARSER_FILE)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, found)
    spec.loader.exec_module(found)
    assert registered == {"reasongenrm": found.ReasonGenRMReasoningParser}
    return found


class Judge:
    """A family's tokenizer as a checkpoint has it, and the parser of one request."""

    def __init__(self, plugin: Any, family: Any, **template_arguments: Any) -> None:
        self.tokenizer = tiny_tokenizer(family)
        self.family = chat.detect_family(self.tokenizer)
        chat.install_template(self.tokenizer, self.family, "reason")
        self.parser = plugin.ReasonGenRMReasoningParser(self.tokenizer, chat_template_kwargs=template_arguments)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def request(self, messages: list[dict[str, str]] = QUESTION, **template_arguments: str) -> Any:
        return SimpleNamespace(
            messages=messages,
            chat_template_kwargs=template_arguments or None,
            skip_special_tokens=True,
            stop_token_ids=None,
        )

    def stream(self, text: str, size: int = 1) -> list[Any]:
        """The messages of a stream of `size` tokens at a time."""
        ids = self.ids(text)
        pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
        texts = [self.tokenizer.decode(piece, skip_special_tokens=False) for piece in pieces]
        # As vLLM 0.32 calls a parser with engine_based_streaming: nothing of what came before.
        messages = [
            self.parser.extract_reasoning_streaming("", text, text, [], piece, piece)
            for piece, text in zip(pieces, texts, strict=True)
        ]
        return [message for message in messages if message is not None]


@pytest.fixture(params=FAMILIES)
def judge(plugin: Any, request: pytest.FixtureRequest) -> Judge:
    return Judge(plugin, request.param)


def generation(judge: Judge, reason: str = "A is right.", content: str = "[[A]]") -> str:
    family = judge.family
    return f"{reason}{family.turn_end}{family.assistant_header}{content}{family.turn_end}"


def test_markup_is_that_of_the_family(judge: Judge) -> None:
    markup, family = judge.parser.markup, judge.family
    assert (markup.header, markup.turn_end, markup.between_turns, markup.sequence_end, markup.assistant_header) == (
        family.header,
        family.turn_end,
        family.between_turns,
        family.sequence_end,
        family.assistant_header,
    )


def test_tokenizer_of_another_family_is_refused(plugin: Any) -> None:
    with pytest.raises(ValueError, match="turn tokens of none of Llama 3, Phi 4"):
        plugin.markup_of(SimpleNamespace(chat_template=None), {"<s>": 0})


def test_reply_is_split_as_everywhere_else(judge: Judge) -> None:
    family = judge.family
    whole = generation(judge)
    for text in (
        whole,
        whole + family.sequence_end + "more",
        whole + f"{family.between_turns}{family.opening('user')}No, [[B]]",
        "A reason without an end",
        f"A.{family.turn_end}",
        f"A.{family.turn_end}{family.between_turns}{family.opening('user')}[[B]]{family.turn_end}",
        "",
    ):
        split = judge.parser.extract_reasoning(text, judge.request())
        assert split == split_generation(text, family, "reason")
    assert judge.parser.extract_reasoning(whole, judge.request()) == ("A is right.", "[[A]]")


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_stream_adds_up_to_the_reply_and_has_no_markup(judge: Judge, size: int) -> None:
    messages = judge.stream(generation(judge, "A  is\n\nright. "), size)
    assert "".join(message.reasoning or "" for message in messages) == "A  is\n\nright."
    assert "".join(message.content or "" for message in messages) == "[[A]]"
    assert all(message.reasoning or message.content for message in messages)


def test_another_roles_turn_is_never_streamed_as_content(judge: Judge) -> None:
    family = judge.family
    messages = judge.stream(f"A.{family.turn_end}{family.between_turns}{family.opening('user')}[[B]]{family.turn_end}")
    assert [(message.reasoning, message.content) for message in messages] == [("A.", None)] or all(
        message.content is None for message in messages
    )


def test_reasoning_ends_when_the_assistants_turn_has_been_opened_whole(judge: Judge) -> None:
    prompt = render(judge.tokenizer, QUESTION)
    assert not judge.parser.is_reasoning_end(prompt)
    ids = judge.ids(generation(judge))
    first_content = len(judge.ids(f"A is right.{judge.family.turn_end}{judge.family.assistant_header}"))
    for stop in range(1, len(ids) + 1):
        ended = judge.parser.is_reasoning_end_streaming(prompt + ids[:stop], ids[stop - 1 : stop])
        assert ended == (stop >= first_content)
    assert judge.parser.extract_content_ids(ids) == ids[first_content:]
    assert judge.parser.extract_content_ids(ids[: first_content - 1]) == []


def test_opening_in_other_tokens_than_the_tokenizers_ends_the_reasoning_too(judge: Judge) -> None:
    family = judge.family
    name = family.assistant_name
    header, _, rest = family.opening("assistant").partition(name)
    ids = judge.ids(header) + [token for letter in name for token in judge.ids(letter)] + judge.ids(rest)
    assert judge.parser.is_reasoning_end(ids)
    assert not judge.parser.is_reasoning_end(ids[:-1])


def test_prompt_that_opens_the_assistants_turn_has_no_reasoning(judge: Judge) -> None:
    assert judge.parser.is_reasoning_end(render(judge.tokenizer, QUESTION, opening_role="assistant"))
    turns = [*QUESTION, {"role": "reason", "content": "A."}]
    assert judge.parser.is_reasoning_end(render(judge.tokenizer, turns))
    later = [*turns, {"role": "assistant", "content": "[[A]]"}, *QUESTION]
    assert not judge.parser.is_reasoning_end(render(judge.tokenizer, later))


def test_words_that_look_like_markup_end_no_reasoning(judge: Judge) -> None:
    spelled = f"{judge.family.turn_end}{judge.family.assistant_header}[[A]]"
    ids = [token for letter in spelled for token in judge.ids(letter)]
    assert not judge.parser.is_reasoning_end(render(judge.tokenizer, QUESTION) + ids)


def test_request_keeps_markup_for_a_reason_and_stops_with_the_turn_without_one(judge: Judge) -> None:
    kept = judge.parser.adjust_request(judge.request())
    assert (kept.skip_special_tokens, kept.stop_token_ids) == (False, None)
    turn_end = judge.tokenizer.convert_tokens_to_ids(judge.family.turn_end)
    after_reason = judge.request([*QUESTION, {"role": "reason", "content": "A."}])
    for plain in (judge.request(opening_role="assistant"), after_reason):
        adjusted = judge.parser.adjust_request(plain)
        assert (adjusted.skip_special_tokens, adjusted.stop_token_ids) == (True, [turn_end])
        assert judge.parser.extract_reasoning("[[A]]", plain) == (None, "[[A]]")


def test_opening_role_comes_from_server_request_or_template_in_that_order(plugin: Any) -> None:
    assert not Judge(plugin, "chatml", opening_role="assistant").parser.opens_reason(Judge(plugin, "chatml").request())
    judge = Judge(plugin, "chatml")
    chat.install_template(judge.tokenizer, judge.family, "assistant")  # a GenRM's
    assert not judge.parser.opens_reason(judge.request())
    assert judge.parser.opens_reason(judge.request(opening_role="reason"))


def test_tokens_of_the_reason_are_counted(judge: Judge) -> None:
    assert judge.parser.count_reasoning_tokens(judge.ids(generation(judge))) == len(judge.ids("A is right."))
    assert judge.parser.count_reasoning_tokens(judge.ids("[[A]]")) == 0


def test_budget_closes_the_reason_with_the_bridge(judge: Judge) -> None:
    assert judge.parser.reasoning_start_str == judge.family.opening("reason")
    assert judge.parser.reasoning_end_str == judge.family.turn_end + judge.family.assistant_header
    assert not judge.parser.has_engine_confirmed_reasoning_end()


def test_checkpoint_with_our_template_has_the_parser_and_a_base_has_none(tmp_path: Path) -> None:
    judge = tiny_checkpoint(tmp_path / "judge", "chatml", opening_role="reason")
    assert (judge / REASONING_PARSER_FILE).is_file()
    assert not (tiny_checkpoint(tmp_path / "base", "chatml") / REASONING_PARSER_FILE).exists()
