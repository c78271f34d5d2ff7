"""prepare_pairs: preference rows in, judge prompts out.

A row is {"chosen": [turns], "rejected": [turns]}: two conversations that differ in their last assistant turn. A row
that is not of this shape stops the stage, since the file is then not what it was taken for; a row of the right shape
that holds no preference (equal answers, an empty turn, other questions) is dropped and counted by cause.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from reasongenrm.config import PairsConfig
from reasongenrm.data.prompts import judge_prompt
from reasongenrm.data.rows import hub_commit, hub_rows, parse_json_lines, take
from reasongenrm.errors import InputError, validated
from reasongenrm.records import Drops, JudgePrompt, Message, PreferencePair, dump_records
from reasongenrm.store.artifacts import ArtifactRef, Store, digest_bytes, download, is_hub_name, read_uri
from reasongenrm.store.stage import Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHAPE = 'a JSON object with "chosen" and "rejected", each a list of {"role", "content"} turns'


class _Row(BaseModel):
    """A row as it is read; further columns are left aside."""

    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    source: Any = None


class _DropRowError(Exception):
    """A row holds no preference; its argument is the cause, in snake_case."""


def read_rows(preferences_uri: str) -> tuple[str, list[tuple[str, Any]]]:
    """Read preference rows from a local JSON Lines file, an s3:// object, or a data set's hub name.

    Returns:
        The content's address ("sha256:..."), and each row with the name to call it by in messages.

    Raises:
        InputError: no such file, an empty file, a line that is not JSON.
    """
    if is_hub_name(preferences_uri):
        commit = hub_commit(preferences_uri)
        return f"hub:{preferences_uri}@{commit}", hub_rows(preferences_uri, "train", commit)
    data = read_uri(preferences_uri)
    return digest_bytes(data), list(parse_json_lines(data, preferences_uri, _SHAPE))


def parse_pair(row: Any, where: str, pair_id: str) -> PreferencePair:
    """One row as a preference pair.

    Raises:
        InputError: the row is not of the shape: a field is missing, a turn is malformed, roles are out of turn.
        _DropRowError: the row is of the shape, but holds no preference.
    """
    with validated(where, f"{_SHAPE}. Fix or remove the row."):
        checked = _Row.model_validate(row)
    chosen, rejected = checked.chosen, checked.rejected
    _check_roles(chosen, "chosen", where)
    _check_roles(rejected, "rejected", where)
    if any(not turn.content.strip() for turn in (*chosen, *rejected)):
        raise _DropRowError("empty_turn")
    if chosen[:-1] != rejected[:-1]:
        raise _DropRowError("questions_differ")
    if chosen[-1] == rejected[-1]:
        raise _DropRowError("equal_answers")
    return PreferencePair(
        pair_id=pair_id,
        question=chosen[:-1],
        chosen=chosen[-1].content,
        rejected=rejected[-1].content,
        source=str(checked.source or ""),
    )


def _check_roles(turns: Sequence[Message], side: str, where: str) -> None:
    """User and assistant in turn, from user to assistant."""
    roles = [turn.role for turn in turns]
    if not roles or roles != ["user", "assistant"] * ((len(roles) + 1) // 2):
        raise InputError(
            f"{where}: roles in '{side}' are out of turn ({', '.join(roles[:8]) or 'no turns'}); expected user, "
            "assistant, ... in turn, ending with assistant. Fix or remove the row, or set pairs.bad_rows: drop to "
            "leave such rows out (counted)."
        )


def parse_pairs(rows: Sequence[tuple[str, Any]], drops: Drops, bad_rows: str) -> list[PreferencePair]:
    """All rows that hold a preference; the others are counted in `drops`.

    Args:
        bad_rows: "error" stops at the first row that is not of the shape; "drop" counts it as malformed.
    """
    pairs = []
    for number, (where, row) in enumerate(rows):
        drops.num_in += 1
        try:
            pairs.append(parse_pair(row, where, pair_id=f"{number:06}"))
        except _DropRowError as cause:
            drops.drop(str(cause), where)
        except InputError as error:
            if bad_rows == "error":
                raise
            drops.drop("malformed", str(error))
    return pairs


def make_judge_prompts(pairs: Sequence[PreferencePair], order: str, seed: int) -> list[JudgePrompt]:
    """Judge prompts of pairs: both orders of each ("mirrored"), or one drawn by a seeded coin ("random").

    "random" deals a shuffled deck of as many A as B, so that the labels are balanced in small sets too; a model trained
    with the chosen answer always in one place learns that place. Source: docs/method.md, Records.
    """
    if order == "mirrored":
        return [_judge(pair, chosen_first) for pair in pairs for chosen_first in (True, False)]
    deck = [place % 2 == 0 for place in range(len(pairs))]
    random.Random(seed).shuffle(deck)
    return [_judge(pair, chosen_first) for pair, chosen_first in zip(pairs, deck, strict=True)]


def _judge(pair: PreferencePair, chosen_first: bool) -> JudgePrompt:
    first, second = (pair.chosen, pair.rejected) if chosen_first else (pair.rejected, pair.chosen)
    return JudgePrompt(
        prompt_id=f"{pair.pair_id}-{'ab' if chosen_first else 'ba'}",
        pair_id=pair.pair_id,
        question=pair.question,
        answer_a=first,
        answer_b=second,
        label="[[A]]" if chosen_first else "[[B]]",
        source=pair.source,
    )


def drop_long_pairs(
    pairs: Sequence[PreferencePair], tokenizer: "PreTrainedTokenizerBase", max_prompt_tokens: int, drops: Drops
) -> list[PreferencePair]:
    """Pairs whose judge prompt has at most `max_prompt_tokens` tokens; the others are counted."""
    kept = []
    for pair in pairs:
        num_tokens = len(tokenizer.encode(judge_prompt(pair.question, pair.chosen, pair.rejected)))
        if num_tokens <= max_prompt_tokens:
            kept.append(pair)
        else:
            drops.drop("prompt_too_long", f"pair {pair.pair_id}: {num_tokens} tokens")
    return kept


def prepare_pairs(store: Store, config: PairsConfig, preferences_uri: str, model: ArtifactRef) -> ArtifactRef:
    """Stage: preference rows to judge prompts (prompts.jsonl).

    Raises:
        InputError: the file, or a row of it, is not what was expected.
        EmptyStageError: no row is left.
    """
    digest, rows = read_rows(preferences_uri)
    inputs: dict[str, ArtifactRef | str] = {"preferences": digest}
    if config.max_prompt_tokens is not None:
        inputs["model"] = model  # its tokenizer counts the tokens
    with Stage(store, "prepare_pairs", config, inputs) as stage:
        if stage.done:
            return stage.done
        drops = Drops()
        pairs = parse_pairs(rows, drops, config.bad_rows)
        if config.max_prompt_tokens is not None:
            from transformers import AutoTokenizer

            with TemporaryDirectory() as folder:
                tokenizer = AutoTokenizer.from_pretrained(download(model, Path(folder)))
            pairs = drop_long_pairs(pairs, tokenizer, config.max_prompt_tokens, drops)
        selected = take(pairs, config.limit, config.seed)
        for pair in set(pairs) - set(selected):
            drops.drop("over_limit", f"pair {pair.pair_id}")
        drops.num_out = len(selected)
        advice = f"Check {preferences_uri}, and pairs.max_prompt_tokens ({config.max_prompt_tokens})."
        drops.require_some("prepare_pairs", advice)
        prompts = make_judge_prompts(selected, config.order, config.seed)
        stage.add_bytes("prompts.jsonl", dump_records(prompts))
        num_a = sum(prompt.label == "[[A]]" for prompt in prompts)
        return stage.finish(drops.counts(), {"num_prompts": len(prompts), "label_a_fraction": num_a / len(prompts)})
