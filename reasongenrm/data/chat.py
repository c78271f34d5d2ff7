"""The chat format: user, reason and assistant turns to tokens, and generated text back to turns.

A Jinja template in the markup of the model's family (chat_families.py) is saved with the checkpoint. A judge's
generation starts inside the reason turn and runs to the end of the sequence: `REASON<turn_end> <opening of assistant>
[[A]]<turn_end><sequence_end>`. The turn's closing token is not a stop token, so that reason and verdict come from one
request and one prefill.
docs/decisions/0002-one-generation.md has the reasons.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasongenrm.data.chat_families import (
    CONTROL_TOKENS,
    FAMILIES,
    REFUSED,
    TEMPLATE_MARK,
    TEMPLATES,
    ChatFamily,
    neutralise,
)
from reasongenrm.errors import InputError
from reasongenrm.records import OpeningRole, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASONING_PARSER_FILE = "reasongenrm_reasoning_parser.py"  # of vLLM; in every checkpoint, next to the template
REASONING_PARSER = TEMPLATES / REASONING_PARSER_FILE
FAMILY_KEY = "reasongenrm_chat_family"  # in the tokenizer_config.json of a model imported with model.chat_family
# What closes a sequence in the families and in Llama 2's and Mistral's vocabulary, which ChatML is often put into.
_SEQUENCE_ENDS = (*dict.fromkeys(family.sequence_end for family in FAMILIES), "</s>")
# For templates of others; one leaves out what it does not know, as ours does. Qwen 3 is not to think before a verdict.
# Llama 3.2 and 3.3 are not to see today's date, or a base model's figures would be others tomorrow; they get the one
# of Llama 3.1's template.
TEMPLATE_OPTIONS: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}


def detect_family(tokenizer: "PreTrainedTokenizerBase") -> ChatFamily:
    """Tell a tokenizer's family: from our template, from what `model.chat_family` said at import, or from its tokens.

    Raises:
        InputError: none of the families' turn tokens are in the vocabulary.
    """
    if is_installed(tokenizer):
        written = next((family for family in FAMILIES if family.wrote(str(tokenizer.chat_template))), None)
        if written is not None:
            return replace(written, sequence_end=str(tokenizer.eos_token))
    if FAMILY_KEY in tokenizer.init_kwargs:
        return named_family(tokenizer, tokenizer.init_kwargs[FAMILY_KEY])
    family = told_family(tokenizer)
    if family is not None:
        return family
    vocabulary = tokenizer.get_vocab()
    where = tokenizer.name_or_path or "the tokenizer"
    for title, tokens, reason in REFUSED:
        if all(token in vocabulary for token in tokens):
            raise InputError(
                f"{where}: has the turn markup of {title}, in which a reason turn cannot be had: {reason}. Use a model "
                f"of one of {', '.join(family.title for family in FAMILIES)}."
            )
    wanted = "; ".join(f"{family.name}: {' '.join(family.told_by)}" for family in FAMILIES)
    raise InputError(
        f"{where}: found none of the supported chat families' turn tokens; expected all tokens of one of {wanted}. "
        "Use an instruct model of one of these families; where only the token that ends the sequence is another, name "
        "the family in model.chat_family."
    )


def told_family(tokenizer: "PreTrainedTokenizerBase") -> ChatFamily | None:
    """The family that a vocabulary tells, if any."""
    vocabulary = tokenizer.get_vocab()
    return next((family for family in FAMILIES if all(token in vocabulary for token in family.told_by)), None)


def named_family(tokenizer: "PreTrainedTokenizerBase", name: str) -> ChatFamily:
    """The family of this name, for a tokenizer that need not have all tokens that tell it.

    Its turn tokens must be there. Where the token that ends a sequence is not, it is another family's that is.

    Raises:
        InputError: a turn token is missing, or nothing but the turn's closing token ends a sequence.
    """
    [family] = [family for family in FAMILIES if family.name == name]
    vocabulary = tokenizer.get_vocab()
    turn_tokens = [*re.findall(r"<[^<>]+>", family.header), family.turn_end]
    missing = [token for token in turn_tokens if token not in vocabulary]
    ends = [token for token in (family.sequence_end, *_SEQUENCE_ENDS) if token in vocabulary]
    if missing or not ends:
        raise InputError(
            f"{tokenizer.name_or_path or 'the tokenizer'}: model.chat_family is {name}, but the vocabulary lacks "
            f"{' '.join(missing) or 'a token that ends the sequence'}; expected {' '.join(turn_tokens)} and one of "
            f"{' '.join(_SEQUENCE_ENDS)}, each a token of its own. Leave chat_family out, or use another model."
        )
    return replace(family, sequence_end=ends[0])


def install_template(tokenizer: "PreTrainedTokenizerBase", family: ChatFamily, opening_role: OpeningRole) -> None:
    """Give a tokenizer our template, with the turn that a generation opens by default, and its stop and pad tokens.

    Special tokens of this tokenizer that the family's list does not cover are added to the template's list.

    Args:
        family: of `detect_family`.
    """
    template = family.template.replace('default("reason")', f'default("{opening_role}")', 1)
    missing = "".join(f', "{token}"' for token in _special_beyond(tokenizer, family.control_tokens))
    tokenizer.chat_template = re.sub(r"control_tokens = \[.*?(?=\])", lambda at: at[0] + missing, template, count=1)
    tokenizer.eos_token = family.sequence_end
    tokenizer.pad_token = family.pad_token if family.pad_token in tokenizer.get_vocab() else family.turn_end


def _special_beyond(tokenizer: "PreTrainedTokenizerBase", control_tokens: Sequence[str]) -> list[str]:
    """A tokenizer's special tokens that a list of control tokens does not cover."""
    special = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return [token for token in special if not any(part in token for part in control_tokens)]


def save_reasoning_parser(folder: Path) -> None:
    """Put vLLM's reasoning parser next to a judge's template, so that vLLM tells its reason from its verdict."""
    (folder / REASONING_PARSER_FILE).write_bytes(REASONING_PARSER.read_bytes())


def is_installed(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer's template is ours; a base model keeps its own."""
    return isinstance(tokenizer.chat_template, str) and TEMPLATE_MARK in tokenizer.chat_template


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
    options |= TEMPLATE_OPTIONS | {"add_generation_prompt": add_generation_prompt, "return_dict": False}
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
    beyond = _special_beyond(tokenizer, CONTROL_TOKENS)
    texts = [neutralise(reason.strip(), beyond) for reason in reasons]
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
