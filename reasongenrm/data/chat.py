"""The chat format: user, reason and assistant turns to tokens, and generated text back to turns.

One Jinja template per model family is saved with the checkpoint. A judge's generation starts inside the reason turn and
runs to the end of the sequence: `REASON<turn_end> <opening of assistant> [[A]]<turn_end><sequence_end>`. The turn's
closing token is not a stop token, so that reason and verdict come from one request and one prefill.
docs/decisions/0002-one-generation.md has the reasons.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reasongenrm.errors import InputError
from reasongenrm.records import OpeningRole, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "ReasonGenRM chat template"
_TEMPLATES = resources.files("reasongenrm.data") / "chat_templates"
REASONING_PARSER_FILE = "reasongenrm_reasoning_parser.py"  # of vLLM; in every checkpoint, next to the template
REASONING_PARSER = _TEMPLATES / REASONING_PARSER_FILE


@dataclass(frozen=True)
class ChatFamily:
    """The turn markup of one family of models."""

    name: Literal["chatml", "qwen2.5", "llama3"]  # also of its template, `chat_templates/<name>.jinja`
    header: str  # text that opens a turn, with ROLE for the role
    turn_end: str  # the token that closes a turn; not a stop token of a judge
    between_turns: str  # text between a closed turn and the next opening
    sequence_end: str  # the token that ends a judge's generation, its only stop token
    pad_token: str  # neither of the two where the family has a token to spare
    told_by: tuple[str, ...]  # tokens that a tokenizer of this family has

    def opening(self, role: str) -> str:
        """Text that opens a turn of `role`."""
        return self.header.replace("ROLE", role)

    @property
    def assistant_header(self) -> str:
        """What stands between the reason's closing token and the verdict: the assistant turn's opening."""
        return self.between_turns + self.opening("assistant")

    @cached_property
    def template(self) -> str:
        """The family's Jinja template, its opening role not yet chosen."""
        return (_TEMPLATES / f"{self.name}.jinja").read_text(encoding="utf-8")

    @property
    def control_tokens(self) -> list[str]:
        """The tokens that the template keeps out of texts."""
        [listed] = re.findall(r"control_tokens = \[(.*?)\]", self.template)
        return re.findall(r'"([^"]+)"', listed)


_LLAMA3 = ChatFamily(
    name="llama3",
    header="<|start_header_id|>ROLE<|end_header_id|>\n\n",
    turn_end="<|eot_id|>",
    between_turns="",
    sequence_end="<|end_of_text|>",
    pad_token="<|finetune_right_pad_id|>",
    told_by=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
)
_CHATML = ChatFamily(
    name="chatml",
    header="<|im_start|>ROLE\n",
    turn_end="<|im_end|>",
    between_turns="\n",
    sequence_end="<|endoftext|>",
    pad_token="<|im_end|>",  # SmolLM2's own choice; the loss mask and the attention mask leave padding out
    told_by=("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
)
_QWEN = replace(_CHATML, name="qwen2.5", pad_token="<|fim_pad|>", told_by=(*_CHATML.told_by, "<|fim_pad|>"))
# In the order in which they are looked for: Qwen 2.5's vocabulary also has ChatML's tokens.
FAMILIES: tuple[ChatFamily, ...] = (_LLAMA3, _QWEN, _CHATML)

# Tokens that no text of a question, an answer or a reason may become, over all families.
CONTROL_TOKENS = tuple(dict.fromkeys(token for family in FAMILIES for token in family.control_tokens))


def neutralise(text: str) -> str:
    """Put a space into every control token of every family, so that text stays text: "<|im_end|>" -> "< |im_end|>".

    The saved templates do the same for their own family; this is for prompts that a foreign template will render
    (a base model's own, a teacher's). Applying it twice changes nothing more.
    """
    for token in CONTROL_TOKENS:
        text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text


def detect_family(tokenizer: "PreTrainedTokenizerBase") -> ChatFamily:
    """Tell a tokenizer's family from its special tokens.

    Raises:
        InputError: none of the families' turn tokens are in the vocabulary.
    """
    vocabulary = tokenizer.get_vocab()
    for family in FAMILIES:
        if all(token in vocabulary for token in family.told_by):
            return family
    wanted = "; ".join(f"{family.name}: {' '.join(family.told_by)}" for family in FAMILIES)
    raise InputError(
        f"{tokenizer.name_or_path or 'the tokenizer'}: found none of the supported chat families' turn tokens; "
        f"expected all tokens of one of {wanted}. Use an instruct model of one of these families."
    )


def install_template(tokenizer: "PreTrainedTokenizerBase", family: ChatFamily, opening_role: OpeningRole) -> None:
    """Give a tokenizer our template, with the turn that a generation opens by default, and its stop and pad tokens.

    Special tokens of this tokenizer that the family's list does not cover are added to the template's list.
    """
    template = family.template.replace('default("reason")', f'default("{opening_role}")', 1)
    missing = "".join(
        f', "{token.content}"'
        for token in tokenizer.added_tokens_decoder.values()
        if token.special and not any(part in token.content for part in family.control_tokens)
    )
    tokenizer.chat_template = re.sub(r"control_tokens = \[.*?(?=\])", lambda at: at[0] + missing, template, count=1)
    tokenizer.eos_token = family.sequence_end
    tokenizer.pad_token = family.pad_token if family.pad_token in tokenizer.get_vocab() else family.turn_end


def save_reasoning_parser(folder: Path) -> None:
    """Put vLLM's reasoning parser next to a judge's template, so that vLLM tells its reason from its verdict."""
    (folder / REASONING_PARSER_FILE).write_bytes(REASONING_PARSER.read_bytes())


def is_installed(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer's template is ours; a base model keeps its own."""
    return isinstance(tokenizer.chat_template, str) and _MARK in tokenizer.chat_template


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, str]],
    opening_role: OpeningRole | None = None,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Token ids of a conversation, shape (T,), ready to be continued.

    Args:
        opening_role: overrides the template's own default; None leaves it. A foreign template ignores it.

    Raises:
        InputError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise InputError(
            f"{tokenizer.name_or_path}: has no chat template; expected an instruct model. Use one, or train with "
            "train_sft."
        )
    options: dict[str, Any] = {} if opening_role is None else {"opening_role": opening_role}
    options |= {"add_generation_prompt": add_generation_prompt, "return_dict": False}
    return list(map(int, tokenizer.apply_chat_template([dict(message) for message in messages], **options)))


def split_generation(text: str, family: ChatFamily, opening_role: OpeningRole | None) -> tuple[str | None, str]:
    """Split raw generated text, special tokens included, into (reason, answer).

    Args:
        opening_role: the turn in which the generation began; None means a plain chat, all of it the answer.

    Returns:
        The reason is None unless the generation began in a reason turn. The answer is "" when the generation ended
        before an assistant turn, or went on in another role: a reason never counts as an answer.
    """
    text = text.split(family.sequence_end, 1)[0]
    first, closed, rest = text.partition(family.turn_end)
    if opening_role != "reason":
        return None, first.strip()
    if not closed or not rest.startswith(family.assistant_header):
        return first.strip(), ""
    return first.strip(), rest.removeprefix(family.assistant_header).split(family.turn_end, 1)[0].strip()


Span = tuple[int, int]


@dataclass(frozen=True)
class EncodedExample:
    """A training text as token ids, shape (T,), with the spans [start, stop) that masks and scores are made of."""

    input_ids: list[int]
    prompt_span: Span  # user turn and the opening of the turn that is generated
    reason_span: Span  # the reason and its closing token; empty for GenRM
    bridge_span: Span  # the opening of the assistant turn; empty for GenRM, whose prompt has it
    verdict_span: Span  # the verdict and its closing token
    end_span: Span  # the sequence's end token


def encode_reason_example(
    tokenizer: "PreTrainedTokenizerBase", family: ChatFamily, prompt_text: str, reason: str | None, verdict: Verdict
) -> EncodedExample:
    """Tokenise one example piece by piece, so that the spans are exact and equal to what a generation produces.

    Args:
        tokenizer: with our template installed.
        prompt_text: the user turn (`prompts.judge_prompt`).
        reason: R, or None for GenRM.
        verdict: the label, or the verdict to be scored.

    Source: docs/method.md, section 3; ReasonGenRM, ReasonGenRM/src/sft at 0887f2e renders turn by turn as well.
    """
    if reason is not None:
        return encode_reason_examples(tokenizer, family, prompt_text, [reason], verdict)[0]
    prompt = render(tokenizer, [{"role": "user", "content": prompt_text}], opening_role="assistant")
    return _join(prompt, [], [], *_closing(tokenizer, family, verdict))


def encode_reason_examples(
    tokenizer: "PreTrainedTokenizerBase", family: ChatFamily, prompt_text: str, reasons: Sequence[str], verdict: Verdict
) -> list[EncodedExample]:
    """`encode_reason_example` for several reasons of a prompt, which is tokenised once; the reasons on all cores.

    Of sixteen reasons of half the prompt's length, one by one, the prompt would be two thirds of the work.
    """
    prompt = render(tokenizer, [{"role": "user", "content": prompt_text}], opening_role="reason")
    header, closing = encode_text(tokenizer, family.assistant_header), _closing(tokenizer, family, verdict)
    turn_end = tokenizer.convert_tokens_to_ids(family.turn_end)
    texts = [neutralise(reason.strip()) for reason in reasons]
    written = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [_join(prompt, [*ids, turn_end], header, *closing) for ids in written]


def _closing(tokenizer: "PreTrainedTokenizerBase", family: ChatFamily, verdict: Verdict) -> tuple[list[int], list[int]]:
    """The verdict with its closing token, and the sequence's end."""
    turn_end, sequence_end = tokenizer.convert_tokens_to_ids([family.turn_end, family.sequence_end])
    return [*encode_text(tokenizer, verdict), turn_end], [sequence_end]


def _join(*pieces: list[int]) -> EncodedExample:
    """Prompt, reason, assistant header, verdict and end, one after another."""
    spans: list[Span] = []
    input_ids: list[int] = []
    for piece in pieces:
        spans.append((len(input_ids), len(input_ids) + len(piece)))
        input_ids.extend(piece)
    return EncodedExample(input_ids, *spans)


def encode_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of a piece of text, nothing added before or after it."""
    return list(tokenizer.encode(text, add_special_tokens=False))
