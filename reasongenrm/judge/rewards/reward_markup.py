"""A prompt in chat markup back to turns, for trainers that pass on only the rendered text."""

import re

from reasongenrm.data.chat_families import FAMILIES, ChatFamily
from reasongenrm.judge.api import MAX_TURNS, QuestionTurn

_BEGIN = re.compile(r"(<[^<>\s]{1,40}>)?\s*")  # at most one token, such as <|begin_of_text|>


def read_turns(prompt: str) -> tuple[list[QuestionTurn], str] | None:
    """Read a templated prompt.

    Returns:
        The turns, the last one the user's, and what the prompt already says in the assistant's name ("" as a rule);
        None if the text is not markup of a family that is known here, from its first character to its last.
    """
    return next((found for family in FAMILIES if (found := _of_family(prompt, family)) is not None), None)


def without_turn_end(answer: str) -> str:
    """An answer without the tokens that close its turn and the sequence."""
    ends = tuple(token for family in FAMILIES for token in (family.turn_end, family.sequence_end))
    text = answer.rstrip()
    while text.endswith(ends):
        for token in ends:
            text = text.removesuffix(token)
        text = text.rstrip()
    return text


def _of_family(prompt: str, family: ChatFamily) -> tuple[list[QuestionTurn], str] | None:
    header = re.compile(re.escape(family.header).replace("ROLE", f"(system|user|{family.assistant_name})"))
    start, *rest = header.split(prompt)
    if not rest or _BEGIN.fullmatch(start) is None:
        return None
    *turns, (last_role, opened) = zip(rest[::2], rest[1::2], strict=True)
    if last_role != family.assistant_name or family.turn_end in opened or not turns or len(turns) > MAX_TURNS:
        return None
    found = []
    for role, text in turns:
        content, end, after = text.partition(family.turn_end)
        if not end or after.strip():
            return None
        ours = "assistant" if role == family.assistant_name else role
        found.append(QuestionTurn.model_validate({"role": ours, "content": content.strip()}))
    return (found, opened.lstrip("\n")) if found[-1].role == "user" else None
