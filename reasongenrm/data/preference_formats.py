"""The formats of preference data that people have, one entry each: the columns that tell it, and a row as comparisons.

In goes a row as it was read; out come comparisons (a question, its better and its worse answer), each perhaps dropped
with a cause. pairs.py counts and checks them. docs/data.md shows every format with an example.

Sources: named at each reader; columns are as the data set's card gives them, or a loader that others publish for it.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from reasongenrm.config import PairsConfig
from reasongenrm.data.rows import BadRow, checked_text, parse_json
from reasongenrm.records import Message

_Fields = Mapping[str, Any]
_Conversation = tuple[Message, ...]

_ROLES = {
    **{"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"},
    **{"system": "system", "developer": "system"},
}
# Of OpenAI's chat, Llama's, and ShareGPT's turns: what a tool was asked and what it answered.
_TOOL_ROLES = ("tool", "function", "ipython", "function_call", "observation")
_TRANSCRIPT = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_STEERLM = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


class ReadPair(NamedTuple):
    """A question that ends with a user turn, and two answers."""

    question: _Conversation
    chosen: str
    rejected: str


class DropRowError(Exception):
    """A row, or a comparison of it, holds no preference; its argument is the cause, in snake_case."""


class NotOfShapeError(Exception):
    """A row is not what its format says.

    Attributes:
        cause: in snake_case, for counts: not_an_object, missing_column, wrong_value, wrong_turns.
    """

    def __init__(self, cause: str, problem: str) -> None:
        super().__init__(problem)
        self.cause = cause


@dataclass(frozen=True)
class PreferenceFormat:
    """One format of rows.

    Attributes:
        name: in snake_case, as in a stage's key.
        title: what the format is called in messages and in docs/data.md.
        columns: all of them are there.
        shape: what the columns hold, for messages.
        read: a row's comparisons; raises `NotOfShapeError`, and `DropRowError` where there is none.
        fits: what else tells the format from others with the same columns.
        gather: makes one row of all that have one prompt; None: a row stands alone.
        settings: of `pairs`, which have an effect on this format only.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    shape: str
    read: Callable[[_Fields, PairsConfig], "Iterator[ReadPair | DropRowError]"]
    fits: Callable[[_Fields], bool] = lambda _row: True
    gather: Callable[[Sequence[tuple[str, Any]]], list[tuple[str, Any]]] | None = None
    settings: tuple[str, ...] = ()

    def tells(self, row: Any) -> bool:
        """Whether a row is of this format."""
        return isinstance(row, Mapping) and all(column in row for column in self.columns) and self.fits(row)


def read_comparisons(kind: PreferenceFormat, row: Any, config: PairsConfig) -> list[ReadPair | DropRowError]:
    """A row's comparisons, in the row's order, each perhaps dropped.

    Raises:
        NotOfShapeError: the row is not of the format.
        DropRowError: the whole row holds no preference.
    """
    if not isinstance(row, Mapping):
        raise NotOfShapeError("not_an_object", f"found {type(row).__name__}, no object")
    missing = [column for column in kind.columns if column not in row]
    if missing:
        raise NotOfShapeError("missing_column", f"column '{missing[0]}' is missing, found {', '.join(map(str, row))}")
    return [one if isinstance(one, DropRowError) else _checked(one) for one in kind.read(row, config)]


def _checked(found: ReadPair) -> ReadPair | DropRowError:
    texts = (*(turn.content for turn in found.question), found.chosen, found.rejected)
    if any(not text.strip() for text in texts):
        return DropRowError("empty_turn")
    return DropRowError("equal_answers") if found.chosen == found.rejected else found


# What a column holds


def read_turns(value: Any, column: str) -> _Conversation:
    """A list of turns: OpenAI's {"role", "content"} or ShareGPT's {"from", "value"}; an empty system turn is left out.

    Source of ShareGPT's names: hiyouga/LLaMA-Factory, data/README.md.
    """
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise NotOfShapeError("wrong_value", f"'{column}' is {value_named(value)}, no list of turns")
    turns = [_turn(turn, f"{column}.{place}") for place, turn in enumerate(value)]
    return tuple(turn for turn in turns if turn.role != "system" or turn.content.strip())


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise NotOfShapeError("wrong_value", f"'{where}' is {value_named(turn)}, no turn")
    role = turn.get("role", turn.get("from"))
    if role in _TOOL_ROLES or turn.get("tool_calls") or turn.get("function_call"):
        raise DropRowError("tool_call")
    if not isinstance(role, str) or role not in _ROLES:
        roles = ", ".join(_ROLES)
        raise NotOfShapeError("wrong_turns", f"'{where}' has the role {value_named(role)}; known are {roles}")
    return Message(role=_ROLES[role], content=_content(turn.get("content", turn.get("value")), where))


def _content(content: Any, where: str) -> str:
    """A turn's text; of a list of parts the texts.

    Source of the parts: OpenAI's chat completions and lmarena-ai/arena-human-preference-140k.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise NotOfShapeError("wrong_value", f"'{where}' has {value_named(content)} as content, no text")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, Mapping) and ("image" in str(kind) or part.get("image") is not None):
            raise DropRowError("image_part")
        if kind != "text" or not isinstance(part.get("text"), str):
            raise DropRowError("other_part")
        texts.append(part["text"])
    return "\n".join(texts)


def _prompt(value: Any, column: str) -> _Conversation:
    """A prompt: turns, a transcript that ends with "Assistant:", or the text of one user turn."""
    if not isinstance(value, str):
        return read_turns(value, column)
    if _TRANSCRIPT.match(value.strip()) and value.strip().endswith("\n\nAssistant:"):
        return _transcript(value, column)[:-1]
    return (Message(role="user", content=value),)


def _transcript(text: Any, column: str) -> _Conversation:
    """The turns of a transcript, "\\n\\nHuman: ...\\n\\nAssistant: ...".

    Source: Anthropic/hh-rlhf, its card.
    """
    begin, *parts = _TRANSCRIPT.split(read_text(text, column).strip())
    if begin or not parts:
        raise NotOfShapeError("wrong_value", f"'{column}' is no transcript that begins with 'Human:'")
    roles = ["user" if name == "Human" else "assistant" for name in parts[::2]]
    return tuple(Message(role=role, content=part.strip()) for role, part in zip(roles, parts[1::2], strict=True))


def read_text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise NotOfShapeError("wrong_value", f"'{column}' is {value_named(value)}, no text")
    return value


def _number(value: Any, column: str) -> float:
    """A number, also as a text: CSV has no other."""
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise NotOfShapeError("wrong_value", f"'{column}' is {value_named(value)}, no number")
    return number


def value_named(value: Any) -> str:
    """A value in few words."""
    if value is None:
        return "null"
    text = repr(value) if isinstance(value, str | bool | int | float) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _answered(conversation: _Conversation, column: str) -> tuple[_Conversation, str]:
    """A conversation as the question and its last answer."""
    roles = [turn.role for turn in conversation]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * ((len(spoken) + 1) // 2):
        raise NotOfShapeError(
            "wrong_turns",
            f"roles in '{column}' are out of turn ({', '.join(roles[:8]) or 'no turns'}); after a system turn, if "
            "there is one, come user, assistant, ... in turn, the last an assistant's",
        )
    return conversation[:-1], conversation[-1].content


def _compared(better: _Conversation, worse: _Conversation, columns: tuple[str, str]) -> ReadPair:
    """Two whole conversations that differ in their last answer."""
    (question, chosen), (other, rejected) = _answered(better, columns[0]), _answered(worse, columns[1])
    if any(not turn.content.strip() for turn in (*better, *worse)):
        raise DropRowError("empty_turn")
    if question != other:
        raise DropRowError("questions_differ")
    return ReadPair(question, chosen, rejected)


# Two answers


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_whole(value: Any) -> bool:
    """Whether a list of turns holds the question too: what answers a prompt begins with an assistant's turn."""
    first = value[0] if _is_list(value) and value else None
    role = first.get("role", first.get("from")) if isinstance(first, Mapping) else None
    return _is_list(value) and _ROLES.get(str(role)) != "assistant"


def read_answers(row: _Fields, prompt: str | None = "prompt") -> ReadPair:
    """`chosen` and `rejected` as they come: whole conversations, transcripts, or answers to the prompt."""
    columns = ("chosen", "rejected")
    if prompt is None or prompt not in row or _is_whole(row["chosen"]):
        read = _transcript if isinstance(row["chosen"], str) else read_turns
        better, worse = (read(row[column], column) for column in columns)
        return _compared(better, worse, columns)
    asked = _prompt(row[prompt], prompt)
    better, worse = (
        (
            *asked,
            *((Message(role="assistant", content=value),) if isinstance(value, str) else read_turns(value, column)),
        )
        for column, value in ((column, row[column]) for column in columns)
    )
    return _compared(better, worse, columns)


def _message_lists(row: _Fields, _config: PairsConfig) -> Iterator[ReadPair | DropRowError]:
    """Source: Skywork/Skywork-Reward-Preference-80K-v0.2, its card; TRL calls it the implicit prompt."""
    yield read_answers(row, None)


def _explicit_prompt(row: _Fields, _config: PairsConfig) -> Iterator[ReadPair | DropRowError]:
    """Source: huggingface/trl, docs/source/dataset_formats.md, Preference."""
    yield read_answers(row)


def _sharegpt(row: _Fields, _config: PairsConfig) -> Iterator[ReadPair | DropRowError]:
    """Source: hiyouga/LLaMA-Factory, data/README.md, preference data in ShareGPT's format."""
    yield read_answers(row, "conversations")


def _binarized(row: _Fields, config: PairsConfig) -> Iterator[ReadPair | DropRowError]:
    """Source: HuggingFaceH4/ultrafeedback_binarized, its card."""
    above = _number(row["score_chosen"], "score_chosen") - _number(row["score_rejected"], "score_rejected")
    yield DropRowError("score_not_above") if above <= 0 else _beyond(above, read_answers(row), config)


def _beyond(above: float, found: ReadPair, config: PairsConfig) -> ReadPair | DropRowError:
    """The comparison, if the better answer is so much better as `pairs.margin` asks for."""
    if above <= 0:
        return DropRowError("tie")
    return found if above >= config.margin else DropRowError("below_margin")


def _by_preference(question: _Conversation, answers: tuple[str, str], toward_second: float, config: PairsConfig) -> Any:
    first, second = answers
    better, worse = (second, first) if toward_second > 0 else (first, second)
    return _beyond(abs(toward_second), ReadPair(question, better, worse), config)


def _helpsteer3(row: _Fields, config: PairsConfig) -> Iterator[ReadPair | DropRowError]:
    """A preference from -3 (response 1 is much better) to 3. Source: nvidia/HelpSteer3, its card, preference."""
    question = _asked(read_turns(row["context"], "context"), "context")
    answers = (read_text(row["response1"], "response1"), read_text(row["response2"], "response2"))
    yield _by_preference(question, answers, _number(row["overall_preference"], "overall_preference"), config)


def _helpsteer2_preference(row: _Fields, config: PairsConfig) -> Iterator[ReadPair | DropRowError]:
    """A preference from -3 (response 1 is much better) to 3. Source: nvidia/HelpSteer2, its card, preference."""
    answers = (read_text(row["response_1"], "response_1"), read_text(row["response_2"], "response_2"))
    strength = _number(row["preference_strength"], "preference_strength")
    yield _by_preference(_steerlm_prompt(row["prompt"]), answers, strength, config)


def _asked(question: _Conversation, column: str) -> _Conversation:
    """A question that ends with a user turn."""
    return _answered((*question, Message(role="assistant", content="")), column)[0]


def _steerlm_prompt(value: Any) -> _Conversation:
    """HelpSteer 2's prompt: a user's text; of several turns, each later one behind its mark.

    Source: NVIDIA/NeMo-Aligner, examples/nlp/data/steerlm/common.py.
    """
    first, *marked = _STEERLM.split(read_text(value, "prompt"))
    roles = ["user", *(name.lower() for name in marked[::2])]
    turns = zip(roles, (first, *marked[1::2]), strict=True)
    return _asked(tuple(Message(role=role, content=text) for role, text in turns), "prompt")


_WINNERS = {"model_a": "a", "a": "a", "model_b": "b", "b": "b"}


def _battle(row: _Fields, _config: PairsConfig) -> Iterator[ReadPair | DropRowError]:
    """Source: the cards of lmsys/chatbot_arena_conversations and lmarena-ai/arena-human-preference-140k.

    A tie is "tie", "tie (bothbad)" or "both_bad".
    """
    won = read_text(row["winner"], "winner").strip().lower()
    if won.startswith("tie") or won == "both_bad":
        raise DropRowError("tie")
    if won not in _WINNERS:
        raise NotOfShapeError(
            "wrong_value", f"'winner' is {value_named(won)}; known are model_a, model_b, a, b and ties"
        )
    columns = ("conversation_a", "conversation_b") if _WINNERS[won] == "a" else ("conversation_b", "conversation_a")
    yield _compared(read_turns(row[columns[0]], columns[0]), read_turns(row[columns[1]], columns[1]), columns)


def _battle_in_columns(row: _Fields, _config: PairsConfig) -> Iterator[ReadPair | DropRowError]:
    """Prompts and responses as lists, in CSV as JSON. Source: lmsys/lmsys-arena-human-preference-55k, its card."""
    won_a, won_b = (_number(row[f"winner_model_{letter}"], f"winner_model_{letter}") for letter in "ab")
    if won_a == won_b:
        raise DropRowError("tie")
    columns = ("response_a", "response_b") if won_a > won_b else ("response_b", "response_a")
    prompts = _texts(row["prompt"], "prompt")
    conversations = []
    for column in columns:
        answers = _texts(row[column], column)
        if len(answers) != len(prompts):
            problem = f"'{column}' has {len(answers)} texts, 'prompt' has {len(prompts)}"
            raise NotOfShapeError("wrong_turns", problem)
        texts = [text for asked in zip(prompts, answers, strict=True) for text in asked]
        roles = ("user", "assistant")
        turns = (Message(role=roles[place % 2], content=text) for place, text in enumerate(texts))
        conversations.append(tuple(turns))
    yield _compared(conversations[0], conversations[1], columns)


def _texts(value: Any, column: str) -> list[str]:
    """A list of texts, as a list, as JSON, or one text. A null in it, which this data has, is an empty text."""
    if isinstance(value, str):
        value = _list_of(value)
    if not isinstance(value, list):
        raise NotOfShapeError("wrong_value", f"'{column}' is {value_named(value)}, no list of texts")
    return ["" if text is None else read_text(text, column) for text in value]


def _list_of(text: str) -> list[Any]:
    try:
        value = checked_text(parse_json(text), text)
    except (ValueError, RecursionError):
        return [text]
    if isinstance(value, BadRow):
        raise DropRowError(value.cause)
    return value if isinstance(value, list) else [text]


# More than two answers


def _ranked(
    question: _Conversation, scored: Sequence[tuple[float, str]], config: PairsConfig, margin: bool
) -> Iterator[Any]:
    """The comparisons of answers with scores, higher is better: the best with each worse one, or neighbours.

    Args:
        margin: whether the scores' differences are held to `pairs.margin`; ranks have none.
    """
    if len(scored) < 2:
        raise DropRowError("single_answer")
    held = config if margin else config.model_copy(update={"margin": 0.0})
    in_order = sorted(scored, key=lambda answer: -answer[0])
    pairs = pairwise(in_order) if config.ranked == "neighbours" else ((in_order[0], other) for other in in_order[1:])
    for (high, better), (low, worse) in pairs:
        yield _beyond(high - low, ReadPair(question, better, worse), held)


def _each(row: _Fields, column: str, text: str, score: str) -> list[tuple[float, str]]:
    """The answers of a list of objects, each with its score."""
    answers = row[column]
    if not _is_list(answers) or not all(isinstance(answer, Mapping) for answer in answers):
        raise NotOfShapeError("wrong_value", f"'{column}' is no list of objects with '{text}' and '{score}'")
    return [
        (
            _number(answer.get(score), f"{column}.{place}.{score}"),
            read_text(answer.get(text), f"{column}.{place}.{text}"),
        )
        for place, answer in enumerate(answers)
    ]


def _nectar(row: _Fields, config: PairsConfig) -> Iterator[ReadPair | DropRowError]:
    """Rank 1 is the best. Source: berkeley-nest/Nectar, its card."""
    scored = [(-rank, answer) for rank, answer in _each(row, "answers", "answer", "rank")]
    yield from _ranked(_asked(_prompt(row["prompt"], "prompt"), "prompt"), scored, config, margin=False)


def _ultrafeedback(row: _Fields, config: PairsConfig) -> Iterator[ReadPair | DropRowError]:
    """By `fine-grained_score`, the mean of four ratings: `overall_score` has 10 where 1 was meant in some rows.

    Source: openbmb/UltraFeedback, its card; argilla/ultrafeedback-binarized-preferences, its card, on the error.
    """
    question = (Message(role="user", content=read_text(row["instruction"], "instruction")),)
    yield from _ranked(question, _each(row, "completions", "response", "fine-grained_score"), config, margin=True)


def _helpsteer2(row: _Fields, config: PairsConfig) -> Iterator[ReadPair | DropRowError]:
    """By `helpfulness`, 0 to 4. Source: nvidia/HelpSteer2, its card."""
    scored = _each({"rows": row.get("rows", [row])}, "rows", "response", "helpfulness")
    yield from _ranked(_steerlm_prompt(row["prompt"]), scored, config, margin=True)


def _by_prompt(rows: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """One row for all with one prompt, where the first of them stands; others as they are."""
    found: dict[Any, tuple[str, Any]] = {}
    for number, (where, row) in enumerate(rows):
        if isinstance(row, Mapping) and isinstance(row.get("prompt"), str):
            _, first = found.setdefault(row["prompt"], (where, {**row, "rows": []}))
            first["rows"].append(row)
        else:
            found[number] = (where, row)
    return list(found.values())


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and _TRANSCRIPT.match(value.strip()) is not None


# In the order in which they are looked for: the ones with more columns of their own first.
FORMATS: tuple[PreferenceFormat, ...] = (
    PreferenceFormat(
        "nectar",
        "Nectar's ranked lists",
        ("prompt", "answers"),
        '"prompt", and "answers" of {"answer", "rank"}',
        _nectar,
        settings=("ranked",),
    ),
    PreferenceFormat(
        "ultrafeedback",
        "UltraFeedback",
        ("instruction", "completions"),
        '"instruction", and "completions" of {"response", "fine-grained_score"}',
        _ultrafeedback,
        settings=("ranked", "margin"),
    ),
    PreferenceFormat(
        "helpsteer3",
        "HelpSteer 3 preference",
        ("context", "response1", "response2", "overall_preference"),
        '"context" (turns), "response1", "response2" and "overall_preference" (-3 to 3)',
        _helpsteer3,
        settings=("margin",),
    ),
    PreferenceFormat(
        "helpsteer2_preference",
        "HelpSteer 2 preference",
        ("prompt", "response_1", "response_2", "preference_strength"),
        '"prompt", "response_1", "response_2" and "preference_strength" (-3 to 3)',
        _helpsteer2_preference,
        settings=("margin",),
    ),
    PreferenceFormat(
        "helpsteer2",
        "HelpSteer 2",
        ("prompt", "response", "helpfulness"),
        '"prompt", "response" and "helpfulness", in two rows or more of one prompt',
        _helpsteer2,
        gather=_by_prompt,
        settings=("ranked", "margin"),
    ),
    PreferenceFormat(
        "arena",
        "Arena battles",
        ("conversation_a", "conversation_b", "winner"),
        '"conversation_a" and "conversation_b" (turns), and "winner"',
        _battle,
    ),
    PreferenceFormat(
        "arena_columns",
        "Arena battles in columns",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"),
        '"prompt", "response_a", "response_b" (lists of texts), "winner_model_a" and "winner_model_b" (0 or 1)',
        _battle_in_columns,
    ),
    PreferenceFormat(
        "ultrafeedback_binarized",
        "UltraFeedback, binarized",
        ("chosen", "rejected", "score_chosen", "score_rejected"),
        '"chosen" and "rejected" (turns; or answers, with "prompt"), "score_chosen" and "score_rejected"',
        _binarized,
        settings=("margin",),
    ),
    PreferenceFormat(
        "sharegpt",
        "ShareGPT's preferences",
        ("conversations", "chosen", "rejected"),
        '"conversations" (turns), "chosen" and "rejected" (a turn each)',
        _sharegpt,
    ),
    PreferenceFormat(
        "messages",
        "chosen and rejected as message lists",
        ("chosen", "rejected"),
        '"chosen" and "rejected", each a list of {"role", "content"} turns',
        _message_lists,
        fits=lambda row: _is_whole(row["chosen"]) and _is_whole(row["rejected"]),
    ),
    PreferenceFormat(
        "explicit_prompt",
        "TRL's explicit prompt",
        ("prompt", "chosen", "rejected"),
        '"prompt" (text or turns), "chosen" and "rejected" (texts, or the turns that follow the prompt)',
        _explicit_prompt,
    ),
    PreferenceFormat(
        "transcripts",
        "HH-RLHF transcripts",
        ("chosen", "rejected"),
        '"chosen" and "rejected", each a transcript that begins with "Human:"',
        lambda row, _config: iter([read_answers(row, None)]),
        fits=lambda row: _is_transcript(row["chosen"]) and _is_transcript(row["rejected"]),
    ),
)
COLUMNS: frozenset[str] = frozenset(column for kind in FORMATS for column in kind.columns)
