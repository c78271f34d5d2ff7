"""prepare_pairs: preference rows in, judge prompts out.

Rows are of one of the formats of preference_formats.py, told from their columns. A row that cannot be read stops the
stage, since the file is then not what it was taken for; a row of the format that holds no preference (equal answers, a
tie, an image) is dropped and counted by cause.
"""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from reasongenrm.config import PairsConfig
from reasongenrm.data.preference_formats import (
    COLUMNS,
    FORMATS,
    DropRowError,
    NotOfShapeError,
    PreferenceFormat,
    read_comparisons,
)
from reasongenrm.data.prompts import judge_prompt
from reasongenrm.data.row_files import read_rows_of
from reasongenrm.data.rows import BadRow, hub_commit, hub_rows, renamed_row, take
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.records import Drops, JudgePrompt, PreferencePair, dump_records
from reasongenrm.store.artifacts import ArtifactRef, Store, digest_bytes, download, is_hub_name, read_uri
from reasongenrm.store.stage import Stage, say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN_CHARS = 200


class _RowError(InputError):
    """A row that cannot be read; `cause` is for counts."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


def read_rows(preferences_uri: str, config: PairsConfig) -> tuple[str, list[tuple[str, Any]]]:
    """Read preference rows from a local file, an s3:// object, or a data set's hub name.

    Args:
        config: which split and subset of a data set on the hub.

    Returns:
        The content's address ("sha256:..."), and each row with the name to call it by in messages. A row that cannot be
        read is a `rows.BadRow`.

    Raises:
        InputError: no such file, an empty file, a file that is not what its ending says.
        ConfigError: a split or a subset of what is no data set on the hub.
    """
    if is_hub_name(preferences_uri):
        commit = hub_commit(preferences_uri)
        return f"hub:{preferences_uri}@{commit}", hub_rows(preferences_uri, config.split, commit, config.subset)
    for name in sorted(config.model_dump(exclude_defaults=True).keys() & {"split", "subset"}):
        raise ConfigError(f"pairs.{name} is of a data set on the hub, but {preferences_uri} is a file. Leave it out.")
    data = read_uri(preferences_uri)
    return digest_bytes(data), read_rows_of(data, preferences_uri)


def tell_format(rows: Sequence[tuple[str, Any]], config: PairsConfig) -> PreferenceFormat:
    """The format of rows: that of the first one that has the columns of any.

    Raises:
        InputError: no row has; shows the first one, and what was looked for.
        ConfigError: `config` names a column that no format has, or sets what has no effect on this format.
    """
    unknown = sorted(config.columns.keys() - COLUMNS - {"source"})
    if unknown:
        raise ConfigError(
            f"pairs.columns: no format has a column '{unknown[0]}'; expected OURS=YOURS, such as prompt=question, with "
            f"one of ours: {', '.join(sorted(COLUMNS))}."
        )
    asked = config.columns.keys() - {"source"}
    kinds = [kind for kind in FORMATS if asked <= {"prompt", *kind.columns}]
    where, row = rows[0]
    for place, raw in rows:
        if isinstance(raw, BadRow):
            continue
        renamed = renamed_row(raw, config.columns)
        for kind in kinds:
            if kind.tells(renamed):
                _check_settings(kind, config)
                return kind
        if isinstance(row, BadRow):
            where, row = place, raw
    if isinstance(row, BadRow):
        raise InputError(f"{where}: {row.problem}, and no other row can be read; expected {_way_out(where)}")
    absent = [name for name in config.columns.values() if isinstance(row, Mapping) and name not in row]
    if absent:
        raise InputError(
            f"{where}: no column '{absent[0]}', which pairs.columns (--columns) names; found "
            f"{', '.join(map(str, row))}. Correct the name."
        )
    nearest = _nearest(renamed_row(row, config.columns), kinds)
    known = f"columns {', '.join(map(str, row))}" if isinstance(row, Mapping) else f"a {type(row).__name__}, no object"
    raise InputError(
        f"{where}: {known}; no format of preferences has these{nearest}. The row: "
        f"{_short(row)}. Say which column is which: `reasongenrm convert {_file_of(where)} --columns "
        "prompt=YOURS,chosen=YOURS,rejected=YOURS`. docs/data.md has the formats."
    )


def _nearest(row: Any, kinds: Sequence[PreferenceFormat]) -> str:
    """The format of which a row has the most columns, in words."""
    if not isinstance(row, Mapping) or not kinds:
        return ""
    # On equal terms the later one: the formats that many files have stand at the end.
    kind = max(reversed(kinds), key=lambda kind: sum(column in row for column in kind.columns) / len(kind.columns))
    return f" (nearest: {kind.title}, {kind.shape})" if any(column in row for column in kind.columns) else ""


def _check_settings(kind: PreferenceFormat, config: PairsConfig) -> None:
    changed = config.model_dump(exclude_defaults=True).keys() & {"ranked", "margin"}
    useless = sorted(changed - set(kind.settings))
    if useless:
        users = ", ".join(other.title for other in FORMATS if useless[0] in other.settings)
        raise ConfigError(
            f"pairs.{useless[0]} has no effect on rows of the format '{kind.title}'; expected it with {users}. "
            "Leave it out."
        )


def _file_of(where: str) -> str:
    """The file's name in a row's place, "file line 3"."""
    return where.rsplit(" ", 2)[0]


def _short(row: Any) -> str:
    text = json.dumps(row, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _way_out(where: str) -> str:
    return (
        "a row that can be read. Fix or remove it, set pairs.bad_rows: drop to leave such rows out (counted), or look "
        f"at the file with `reasongenrm convert {_file_of(where)}`."
    )


def parse_pair(
    row: Any, where: str, kind: PreferenceFormat, config: PairsConfig
) -> list[PreferencePair | DropRowError]:
    """One row's comparisons as pairs without an id, each perhaps dropped.

    Raises:
        _RowError: the row cannot be read, or is not of the format.
    """
    if isinstance(row, BadRow):
        raise _RowError(row.cause, f"{where}: {row.problem}; expected {_way_out(where)}")
    try:
        found = read_comparisons(kind, row, config)
    except DropRowError as dropped:
        found = [dropped]
    except NotOfShapeError as wrong:
        raise _RowError(
            wrong.cause,
            f"{where}: {wrong}; read as {kind.title}, expected {kind.shape}. The row: {_short(row)}. Fix or remove it, "
            "set pairs.bad_rows: drop to leave such rows out (counted), or look at the file with `reasongenrm convert "
            f"{_file_of(where)}`.",
        ) from wrong
    source = str(row.get("source") or "")
    return [
        one if isinstance(one, DropRowError) else PreferencePair(pair_id="", source=source, **one._asdict())
        for one in found
    ]


def parse_pairs(rows: Sequence[tuple[str, Any]], drops: Drops, config: PairsConfig) -> list[PreferencePair]:
    """All pairs of rows that hold a preference; the others are counted in `drops`.

    `drops.num_in` counts comparisons: one of a row with two answers, several of a ranked list.

    Raises:
        InputError: no row has the columns of a format; with `bad_rows: error`, a row that cannot be read.
        ConfigError: see `tell_format`.
    """
    kind = tell_format(rows, config)
    renamed = [(where, renamed_row(row, config.columns)) for where, row in rows]
    pairs: list[PreferencePair] = []
    for number, (where, row) in enumerate(kind.gather(renamed) if kind.gather else renamed):
        try:
            found = parse_pair(row, where, kind, config)
        except _RowError as error:
            if config.bad_rows == "error":
                raise
            drops.num_in += 1
            drops.drop(error.cause, str(error))
            continue
        for place, one in enumerate(found):
            drops.num_in += 1
            if isinstance(one, DropRowError):
                drops.drop(str(one), where)
            else:
                pair_id = f"{number:06}" if len(found) == 1 else f"{number:06}.{place}"
                pairs.append(one.model_copy(update={"pair_id": pair_id}))
    return pairs


def said_of(rows: Sequence[tuple[str, Any]], name: str, config: PairsConfig) -> str:
    """What rows were read as, in one line."""
    return f"{name}: {len(rows):,} rows, read as {tell_format(rows, config).title}"


def as_messages(pairs: Sequence[PreferencePair]) -> Iterator[dict[str, Any]]:
    """Pairs in the project's own form: chosen and rejected as message lists, and the source if there is one."""
    for pair in pairs:
        asked = [turn.model_dump() for turn in pair.question]
        row: dict[str, Any] = {
            side: [*asked, {"role": "assistant", "content": text}]
            for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
        }
        yield row | ({"source": pair.source} if pair.source else {})


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
        ConfigError: see `tell_format`.
        EmptyStageError: no row is left.
    """
    digest, rows = read_rows(preferences_uri, config)
    kind = tell_format(rows, config)
    say(f"prepare_pairs: {said_of(rows, preferences_uri, config)}")
    # Message lists without bad rows give what they gave before there were other formats, under the same key.
    extra = {} if kind.name == "messages" and config.bad_rows == "error" else {"format": kind.name}
    inputs: dict[str, ArtifactRef | str] = {"preferences": digest}
    if config.max_prompt_tokens is not None:
        inputs["model"] = model  # its tokenizer counts the tokens
    with Stage(store, "prepare_pairs", config, inputs, extra) as stage:
        if stage.done:
            return stage.done
        drops = Drops()
        pairs = parse_pairs(rows, drops, config)
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
