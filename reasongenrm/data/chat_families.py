"""The chat markup of each family of models, one entry a family, and the template that all of them share.

Told apart by their tokens, in the order of `FAMILIES`. What a family must have: roles with names of their own (so that
a reason is no answer), a token that closes a turn, and another one that ends the sequence (so that reason and verdict
are one generation). docs/models.md has the table, and the families that do not.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from typing import Literal

TEMPLATES = resources.files("reasongenrm.data") / "chat_templates"
TEMPLATE_MARK = "ReasonGenRM chat template"
FamilyName = Literal["chatml", "qwen2.5", "qwen3", "llama3", "gemma3", "phi4"]
_ROLES = ("system", "user", "reason", "assistant")


@dataclass(frozen=True)
class ChatFamily:
    """The turn markup of one family of models."""

    name: FamilyName
    title: str  # what people call it; in the template's first line, by which a checkpoint's family is told
    header: str  # text that opens a turn, with ROLE for the role
    turn_end: str  # the token that closes a turn; not a stop token of a judge
    between_turns: str  # text between a closed turn and the next opening
    sequence_end: str  # the token that ends a judge's generation, its only stop token
    pad_token: str  # neither of the two where the family has a token to spare
    told_by: tuple[str, ...]  # tokens that a tokenizer of this family has
    control_tokens: tuple[str, ...]  # tokens, or what they begin with, that the template keeps out of texts
    sequence_start: str = ""  # the token before the first turn
    assistant_name: str = "assistant"  # what the family calls this role
    after_assistant: str = ""  # text that the opening of an assistant turn has after its header
    has_system: bool = True  # else a system turn's text stands at the head of the user's turn

    def opening(self, role: str) -> str:
        """Text that opens a turn of `role`."""
        if role == "assistant":
            return self.header.replace("ROLE", self.assistant_name) + self.after_assistant
        return self.header.replace("ROLE", role)

    @property
    def assistant_header(self) -> str:
        """What stands between the reason's closing token and the verdict: the assistant turn's opening."""
        return self.between_turns + self.opening("assistant")

    @property
    def first_token(self) -> str:
        """The token that every opening begins with."""
        return self.header.partition("ROLE")[0]

    @cached_property
    def template(self) -> str:
        """The family's Jinja template, its opening role not yet chosen."""
        openings = {role: self.opening(role) for role in _ROLES if role != "system" or self.has_system}
        texts = {
            "FAMILY": self.title,
            '"SEQUENCE_START"': json.dumps(self.sequence_start),
            '"TURN_END"': json.dumps(self.turn_end),
            '"BETWEEN_TURNS"': json.dumps(self.between_turns),
            '"SEQUENCE_END"': json.dumps(self.sequence_end),
            "control_tokens = []": f"control_tokens = {json.dumps(self.control_tokens)}",
            "openings = {}": f"openings = {json.dumps(openings)}",
        }
        template = (TEMPLATES / "turns.jinja").read_text(encoding="utf-8")
        for place, text in texts.items():
            template = template.replace(place, text)
        return template

    def wrote(self, template: str) -> bool:
        """Whether a chat template is this family's."""
        return f"{TEMPLATE_MARK}, {self.title} family" in template

    def as_text(self, decoded: str) -> str:
        """Text of ordinary tokens, with a space in what spells one of the family's turn tokens."""
        for token in (self.first_token, self.turn_end, self.sequence_end):
            mark = "<|" if token.startswith("<|") else token
            decoded = decoded.replace(mark, f"{mark[:1]} {mark[1:]}")
        return decoded


_LLAMA3 = ChatFamily(  # 3.0 to 3.3
    name="llama3",
    title="Llama 3",
    header="<|start_header_id|>ROLE<|end_header_id|>\n\n",
    turn_end="<|eot_id|>",
    between_turns="",
    sequence_start="<|begin_of_text|>",
    sequence_end="<|end_of_text|>",
    pad_token="<|finetune_right_pad_id|>",
    told_by=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
    control_tokens=("<|",),
)
_CHATML = ChatFamily(  # SmolLM2 and others
    name="chatml",
    title="ChatML",
    header="<|im_start|>ROLE\n",
    turn_end="<|im_end|>",
    between_turns="\n",
    sequence_end="<|endoftext|>",
    pad_token="<|im_end|>",  # SmolLM2's own choice; the loss mask and the attention mask leave padding out
    told_by=("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    control_tokens=(
        *("<|", "<repo_name>", "<reponame>", "<file_sep>", "<filename>", "<gh_stars>"),
        *("<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>"),
        *("<jupyter_code>", "<jupyter_output>", "<jupyter_script>", "<empty_output>"),
    ),
)
_QWEN2_5 = replace(
    _CHATML,
    name="qwen2.5",
    title="Qwen 2.5",
    pad_token="<|fim_pad|>",
    told_by=(*_CHATML.told_by, "<|fim_pad|>"),
    control_tokens=("<|", "<tool_call>", "</tool_call>"),
)
_QWEN3 = replace(
    _QWEN2_5,
    name="qwen3",
    title="Qwen 3",
    # What Qwen3's own template writes with enable_thinking=False. Without it the model would begin to think here, and
    # a verdict would have next to no probability before training.
    after_assistant="<think>\n\n</think>\n\n",
    told_by=(*_QWEN2_5.told_by, "<think>", "</think>"),
    control_tokens=(
        *_QWEN2_5.control_tokens,
        *("<tool_response>", "</tool_response>", "<think>", "</think>"),
    ),
)
_PHI4 = replace(
    _CHATML,
    name="phi4",
    title="Phi 4",
    header="<|im_start|>ROLE<|im_sep|>",
    between_turns="",
    pad_token="<|dummy_87|>",  # as in microsoft/phi-4 since its padding was fixed
    told_by=(*_CHATML.told_by, "<|im_sep|>"),
    control_tokens=("<|",),
)
_GEMMA3 = ChatFamily(
    name="gemma3",
    title="Gemma 3",
    header="<start_of_turn>ROLE\n",
    turn_end="<end_of_turn>",
    between_turns="\n",
    sequence_start="<bos>",
    sequence_end="<eos>",
    pad_token="<pad>",
    told_by=("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"),
    control_tokens=(
        *("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>", "<unk>", "<mask>"),
        *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    ),
    assistant_name="model",
    has_system=False,
)
# In the order in which they are looked for: Phi 4 and both Qwens also have ChatML's tokens, Qwen 3 has Qwen 2.5's.
FAMILIES: tuple[ChatFamily, ...] = (_LLAMA3, _PHI4, _QWEN3, _QWEN2_5, _CHATML, _GEMMA3)

# Markup in which a reason turn cannot be had exactly: what it is called, tokens that tell it, and what is in the way.
REFUSED: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "Mistral",
        ("[INST]", "[/INST]"),
        "turns have no roles, so that a reason cannot be told from an answer, and </s> closes a turn and the sequence",
    ),
    (
        "Phi 4 mini",
        ("<|user|>", "<|assistant|>", "<|end|>"),
        "each role is a token of its own, and there is none for a reason",
    ),
)

# Tokens that no text of a question, an answer or a reason may become, over all families.
CONTROL_TOKENS = tuple(dict.fromkeys(token for family in FAMILIES for token in family.control_tokens))


def neutralise(text: str, beyond: Iterable[str] = ()) -> str:
    """Put a space into every control token of every family, so that text stays text: "<|im_end|>" -> "< |im_end|>".

    The saved templates do the same for their own family; this is for prompts that a foreign template will render
    (a base model's own, a teacher's). Applying it twice changes nothing more.

    Args:
        beyond: more tokens, of one tokenizer.
    """
    for token in (*CONTROL_TOKENS, *beyond):
        text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text


def family_of_reply(text: str) -> ChatFamily | None:
    """The family whose markup a reply has, special tokens included; None: it has none.

    Several families close a turn alike; what opens the assistant's turn tells them apart.
    """
    bridged = (family for family in FAMILIES if f"{family.turn_end}{family.assistant_header}" in text)
    closed = (family for family in FAMILIES if family.turn_end in text)
    return next(bridged, None) or next(closed, None)
