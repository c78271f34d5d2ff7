"""vLLM's parser for a ReasonGenRM checkpoint: the reason turn is the reasoning, the verdict the content.

It is in the checkpoint, next to chat_template.jinja, and needs only vLLM (written for 0.32):

    vllm serve CKPT --reasoning-parser-plugin CKPT/reasongenrm_reasoning_parser.py --reasoning-parser reasongenrm

A generation is `REASON<turn_end><opening of assistant>[[A]]<turn_end><sequence_end>`. A grammar (structured_outputs)
begins after the assistant turn's opening. `thinking_token_budget` closes the reason and opens the assistant turn by
force after that number of tokens. Leave `include_reasoning` true: vLLM starts the grammar at the first token without
it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm.reasoning import ReasoningParser, ReasoningParserManager

# An assistant header has 3 to 8 tokens in the vocabularies of the families, and at most one per character in any.
MAX_BRIDGE_TOKENS = 40


@dataclass(frozen=True)
class Markup:
    """The turn markup of a family of models; `header` opens a turn, with ROLE for the role."""

    title: str
    header: str
    turn_end: str
    between_turns: str
    sequence_end: str
    assistant_name: str = "assistant"
    after_assistant: str = ""
    told_by: tuple[str, ...] = ()

    def opening(self, role: str) -> str:
        """Text that opens a turn of `role`."""
        if role == "assistant":
            return self.header.replace("ROLE", self.assistant_name) + self.after_assistant
        return self.header.replace("ROLE", role)

    @property
    def first_token(self) -> str:
        """The token that every opening begins with."""
        return self.header.partition("ROLE")[0]

    @property
    def assistant_header(self) -> str:
        """What stands between the reason's closing token and the content."""
        return self.between_turns + self.opening("assistant")


CHATML = Markup("ChatML", "<|im_start|>ROLE\n", "<|im_end|>", "\n", "<|endoftext|>")
# Those with more tokens of their own first.
MARKUPS = (
    Markup("Llama 3", "<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>", "", "<|end_of_text|>"),
    replace(CHATML, title="Phi 4", header="<|im_start|>ROLE<|im_sep|>", between_turns="", told_by=("<|im_sep|>",)),
    replace(CHATML, title="Qwen 3", after_assistant="<think>\n\n</think>\n\n", told_by=("<think>", "<|fim_pad|>")),
    replace(CHATML, title="Qwen 2.5", told_by=("<|fim_pad|>",)),
    CHATML,
    Markup("Gemma 3", "<start_of_turn>ROLE\n", "<end_of_turn>", "\n", "<eos>", assistant_name="model"),
)


def markup_of(tokenizer: Any, vocabulary: Mapping[str, int]) -> Markup:
    """The family that a judge's chat template names (one of another making: to which its vocabulary belongs).

    Raises:
        ValueError: to none.
    """
    for markup in MARKUPS:
        if f"ReasonGenRM chat template, {markup.title} family" in str(tokenizer.chat_template):
            return replace(markup, sequence_end=tokenizer.eos_token)
    for markup in MARKUPS:
        tokens = (markup.first_token, markup.turn_end, markup.sequence_end, *markup.told_by)
        if all(token in vocabulary for token in tokens):
            return markup
    raise ValueError(
        "reasoning parser 'reasongenrm': the tokenizer has the turn tokens of none of "
        f"{', '.join(markup.title for markup in MARKUPS)}; expected a ReasonGenRM checkpoint. Leave --reasoning-parser "
        "out for other models."
    )


def split(text: str, markup: Markup) -> tuple[str, str]:
    """Generated text, special tokens included, that began in a reason turn, as (reason, content).

    The content is "" as long as no assistant turn has been opened, and where the generation went on in another role.
    """
    text = text.split(markup.sequence_end, 1)[0]
    reason, closed, rest = text.partition(markup.turn_end)
    if not closed or not rest.startswith(markup.assistant_header):
        return reason.strip(), ""
    return reason.strip(), rest.removeprefix(markup.assistant_header).split(markup.turn_end, 1)[0].strip()


def default_opening_role(chat_template: object) -> str:
    """The turn that a generation opens unless it is told otherwise, as the checkpoint's template has it."""
    found = re.search(r'opening_role \| default\("(\w+)"\)', str(chat_template))
    return found[1] if found else "assistant"


class ReasonGenRMReasoningParser(ReasoningParser):
    """One per request."""

    # The parser does its own splitting to the end of the stream: vLLM would otherwise hand on as content all that
    # follows the end of the reasoning, the closing tokens of the turn included.
    engine_based_streaming = True

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        self.markup = markup_of(tokenizer, self.vocab)
        self._first_id = self.vocab[self.markup.first_token]
        self._turn_end_id = self.vocab[self.markup.turn_end]
        self._streamed = ""
        self._template_arguments: dict[str, Any] = dict(kwargs.get("chat_template_kwargs") or {})

    @property
    def reasoning_start_str(self) -> str:
        """For vLLM's thinking_token_budget: where the reason begins."""
        return self.markup.opening("reason")

    @property
    def reasoning_end_str(self) -> str:
        """For vLLM's thinking_token_budget: what is forced when it is spent."""
        return self.markup.turn_end + self.markup.assistant_header

    def has_engine_confirmed_reasoning_end(self) -> bool:
        """Never: see `engine_based_streaming`."""
        return False

    def opens_reason(self, request: Any) -> bool:
        """Whether the generation begins in a reason turn: the same rule as the chat template's."""
        last = request.messages[-1] if request.messages else {}
        if last["role"] == "reason":
            return False
        arguments = self._template_arguments | dict(request.chat_template_kwargs or {})
        role = arguments.get("opening_role") or default_opening_role(self.model_tokenizer.chat_template)
        return bool(role == "reason")

    def adjust_request(self, request: Any) -> Any:
        """Keep the markup in the text for `split`; a plain answer ends with its turn, so that it needs no splitting."""
        if self.opens_reason(request):
            request.skip_special_tokens = False
        else:
            request.stop_token_ids = [*(request.stop_token_ids or []), self._turn_end_id]
        return request

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether the last turn that was opened is the assistant's, and opened whole."""
        for start in range(len(input_ids) - 1, -1, -1):
            if input_ids[start] == self._first_id:
                return self._content_start(input_ids, start) is not None
        return False

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        """Whether the last tokens of `input_ids`, that `delta_ids` are, opened the assistant's turn."""
        num_looked_at = len(list(delta_ids)) + MAX_BRIDGE_TOKENS
        return self.is_reasoning_end(input_ids[-num_looked_at:])

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """The tokens after the assistant turn's opening."""
        for start in range(len(input_ids) - 1, -1, -1):
            if input_ids[start] == self._first_id:
                content_start = self._content_start(input_ids, start)
                return [] if content_start is None else list(input_ids[content_start:])
        return []

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """Generated tokens before the reason's closing token; an answer without a reason has no closing token."""
        ids = list(token_ids)
        return ids.index(self._turn_end_id) if self._turn_end_id in ids else 0

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Split a whole reply."""
        if not self.opens_reason(request):
            return None, model_output
        return split(model_output, self.markup)

    def extract_reasoning_streaming(
        self,
        previous_text: str,  # noqa: ARG002
        current_text: str,  # noqa: ARG002
        delta_text: str,
        previous_token_ids: Sequence[int],  # noqa: ARG002
        current_token_ids: Sequence[int],  # noqa: ARG002
        delta_token_ids: Sequence[int],  # noqa: ARG002
    ) -> Any:
        """What the new text adds to reasoning and content; None if nothing. One parser sees one stream."""
        from vllm.reasoning.basic_parsers import DeltaMessage  # its own module has moved twice

        # Of a parser with engine_based_streaming vLLM keeps no earlier text: the "current" one is the new one alone.
        before = split(self._streamed, self.markup)
        self._streamed += delta_text
        now = split(self._streamed, self.markup)
        # What has been sent is always the beginning of what is to be sent: only white space is held back.
        reasoning, content = now[0].removeprefix(before[0]), now[1].removeprefix(before[1])
        if not reasoning and not content:
            return None
        return DeltaMessage(reasoning=reasoning or None, content=content or None)

    def _content_start(self, ids: Sequence[int], start: int) -> int | None:
        """Where the content begins after an assistant turn's opening at `start`; None if another turn is opened there.

        Any spelling of the role counts, for a model may cut it into other tokens than the tokenizer does.
        """
        opening = self.markup.opening("assistant")
        for stop in range(start + 1, min(start + MAX_BRIDGE_TOKENS, len(ids)) + 1):
            text = self.model_tokenizer.decode(list(ids[start:stop]), skip_special_tokens=False)
            if text.startswith(opening):
                return stop
            if not opening.startswith(text.rstrip("\ufffd")):
                return None
        return None


ReasoningParserManager.register_module("reasongenrm", module=ReasonGenRMReasoningParser)
