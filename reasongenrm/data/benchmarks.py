"""The benchmark's rows: where they come from, and whether they are valid.

In goes a hub name, a local file or an s3:// URI in RewardBench's own schema (prompt, chosen, rejected, subset, id, and
the two models' names); out come checked rows for `evaluation.py` to have judged and `metrics.py` to score. A benchmark
with other subsets works too: it has subsets, but no sections. Turns are read as those of preferences are
(preference_formats.py), and what holds no preference is dropped and counted by cause. docs/data.md says it for users.
"""

import difflib
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reasongenrm.data.preference_formats import (
    DropRowError,
    NotOfShapeError,
    ReadPair,
    read_answers,
    read_text,
    read_turns,
    value_named,
)
from reasongenrm.data.row_files import read_rows_of
from reasongenrm.data.rows import BadRow, hub_rows, renamed_row
from reasongenrm.data.sections import SECTION_OF, Coverage, coverage_of
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.records import Drops, JudgePrompt, Message, Order, Record, Verdict, dump_records
from reasongenrm.store.artifacts import digest_bytes, is_hub_name, read_uri

ORDERS: tuple[Order, Order] = ("chosen_first", "rejected_first")
LABELS: dict[Order, Verdict] = {"chosen_first": "[[A]]", "rejected_first": "[[B]]"}
HUB_SPLIT = "filtered"  # the split that RewardBench's scores are made from

ONE_SUBSET = "all"  # of rows that name none
COLUMNS = ("prompt", "chosen", "rejected", "subset", "id", "chosen_model", "rejected_model")
_SCHEMA = (
    "an object with prompt (text or turns), chosen and rejected (texts or turns), and perhaps subset and id, as in "
    "allenai/reward-bench; docs/data.md has the forms. Fix or remove the row."
)


class BenchmarkRow(Record):
    """One row of the benchmark: a question and two answers, one of them better.

    `row_id` is "subset/id": in RewardBench an id is unique within its subset only.
    """

    row_id: str
    subset: str
    question: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_model: str = ""
    rejected_model: str = ""

    def prompt(self, order: Order) -> JudgePrompt:
        """The row as a judge sees it in one order of its answers."""
        first, second = (self.chosen, self.rejected) if order == "chosen_first" else (self.rejected, self.chosen)
        return JudgePrompt(
            prompt_id=f"{self.row_id}:{order}",
            pair_id=self.row_id,
            question=self.question,
            answer_a=first,
            answer_b=second,
            label=LABELS[order],
            source=self.subset,
        )


@dataclass(frozen=True)
class Benchmark:
    """Rows to judge, in file order, with where they came from."""

    uri: str  # what was asked for
    rows: tuple[BenchmarkRow, ...]  # to judge, after `spread`; row ids are unique
    num_available_rows: int  # before `spread`
    digest: str  # "sha256:..." of all available rows, the same for any place they were read from
    drops: Drops = field(default_factory=Drops)  # what was read, and what of it holds no preference

    @property
    def name(self) -> str:
        """The last part of the URI, for titles."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def is_rewardbench(self) -> bool:
        """Whether the subsets are RewardBench's, and so have sections."""
        return self.rows[0].subset in SECTION_OF

    @property
    def said(self) -> str:
        """What was read, and what of it was dropped, in one line."""
        subsets = f"{len(self.subsets())} subset{'s' * (len(self.subsets()) > 1)}"
        kept = f"{self.uri}: {self.num_available_rows:,} benchmark rows in {subsets}"
        return kept + "".join(
            f", {count} dropped as {cause} (first: {self.drops.examples[cause]})"
            for cause, count in sorted(self.drops.causes.items())
        )

    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets that have rows: in section order for RewardBench, else in file order."""
        present = dict.fromkeys(row.subset for row in self.rows)
        return tuple(subset for subset in SECTION_OF if subset in present) if self.is_rewardbench else tuple(present)

    def coverage(self) -> Coverage | None:
        """What was judged of RewardBench's filtered split; None for a benchmark with other subsets."""
        return coverage_of(row.subset for row in self.rows) if self.is_rewardbench else None


def load_benchmark(
    uri: str, limit: int | None = None, seed: int = 0, columns: Mapping[str, str] | None = None
) -> Benchmark:
    """Read and check a benchmark.

    The form of `uri` alone says where to look: `owner/name` is a dataset on the hub (its split "filtered"), `s3://...`
    an object, and everything else, such as a name that ends in .jsonl, a local file.

    Args:
        uri: a hub name, a local file, or an s3:// URI; files as `row_files.read_rows_of` reads them.
        limit: the most rows, spread over the subsets (see `spread`).
        seed: of that choice.
        columns: our names of columns -> the file's own, where they differ.

    Raises:
        InputError: nothing is there, or a row does not fit the schema; names file and row.
        EmptyStageError: no row holds a preference.
        ConfigError: `columns` has a name that is none of ours.
    """
    raw = hub_rows(uri, HUB_SPLIT) if is_hub_name(uri) else read_rows_of(read_uri(uri), uri)
    drops = Drops()
    rows = _checked_rows(_renamed_rows(raw, columns or {}), uri, drops)
    return Benchmark(uri, tuple(spread(rows, limit, seed)), len(rows), rows_digest(rows), drops)


def _renamed_rows(raw: Sequence[tuple[str, Any]], columns: Mapping[str, str]) -> list[tuple[str, Any]]:
    unknown = sorted(columns.keys() - set(COLUMNS))
    if unknown:
        raise ConfigError(
            f"evaluate.columns: a benchmark has no column '{unknown[0]}'; expected OURS=YOURS, such as "
            f"prompt=question, with one of ours: {', '.join(COLUMNS)}."
        )
    where, first = raw[0]
    absent = [name for name in columns.values() if isinstance(first, Mapping) and name not in first]
    if absent:
        raise InputError(
            f"{where}: no column '{absent[0]}', which evaluate.columns names; found {', '.join(map(str, first))}. "
            "Correct the name."
        )
    return [(where, renamed_row(row, columns)) for where, row in raw]


def rows_digest(rows: Iterable[BenchmarkRow]) -> str:
    """The content address of rows, "sha256:...": the same wherever and however they are stored."""
    return digest_bytes(dump_records(rows))


def spread(rows: Sequence[BenchmarkRow], limit: int | None, seed: int) -> list[BenchmarkRow]:
    """At most `limit` rows, over the subsets in proportion, each with at least one row if `limit` admits it.

    Which rows of a subset are taken is drawn with `seed`; the file's order is kept.
    """
    if limit is None or limit >= len(rows):
        return list(rows)
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.subset, []).append(place)
    quotas = _quotas({subset: len(found) for subset, found in places.items()}, limit)
    chosen: list[int] = []
    for subset, found in places.items():
        # The subset's name is part of the seed: what is drawn from it does not depend on which others are there.
        chosen += random.Random(f"{seed}/{subset}").sample(found, quotas[subset])
    return [rows[place] for place in sorted(chosen)]


def _quotas(sizes: Mapping[str, int], limit: int) -> dict[str, int]:
    """Share `limit` out in proportion to `sizes` by largest remainders, one each first where that is possible."""
    each = 1 if limit >= len(sizes) else 0
    left, total = limit - each * len(sizes), sum(sizes.values()) - each * len(sizes)
    exact = {name: left * (size - each) / total for name, size in sizes.items()}
    quotas = {name: each + int(share) for name, share in exact.items()}
    by_remainder = sorted(sizes, key=lambda name: (int(exact[name]) - exact[name], -sizes[name]))
    for name in by_remainder[: limit - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _checked_rows(raw: Sequence[tuple[str, Any]], uri: str, drops: Drops) -> list[BenchmarkRow]:
    """Check every row alone, then that ids are unique and the subsets go together."""
    rows: list[BenchmarkRow] = []
    first_at: dict[str, tuple[str, str]] = {}  # row id -> where it was, and its subset
    for number, (where, fields) in enumerate(raw, start=1):
        drops.num_in += 1
        try:
            row = _row(fields, number)
        except NotOfShapeError as wrong:
            raise InputError(f"{where}: {wrong}; expected {_SCHEMA}") from wrong
        except DropRowError as dropped:
            drops.drop(str(dropped), where)
            continue
        if row.row_id in first_at:
            raise InputError(f"{where}: {_clash(row, *first_at[row.row_id])}")
        first_at[row.row_id] = where, row.subset
        rows.append(row)
    drops.num_out = len(rows)
    drops.require_some(uri, "Give a benchmark whose rows have a better and a worse answer.")
    _check_subsets(rows, [where for where, _ in first_at.values()], uri)
    return rows


def _clash(row: BenchmarkRow, where: str, subset: str) -> str:
    """Why two rows have one row id."""
    row_id = row.row_id.removeprefix(f"{row.subset}/")
    if row.subset == subset:
        return (
            f"id {row_id!r} of subset '{subset}' was already at {where}; expected an id once in its subset (a row "
            "without one has its number in the file). Remove the copy or give it another id."
        )
    other = row.row_id.removeprefix(f"{subset}/")
    return (
        f"id {row_id!r} of subset '{row.subset}' and id {other!r} of subset '{subset}' at {where} are both called "
        f"'{row.row_id}'; expected names that differ. Rename one of the subsets or ids, without a slash."
    )


def _check_subsets(rows: Sequence[BenchmarkRow], places: Sequence[str], uri: str) -> None:
    """Refuse RewardBench's subsets mixed with unknown ones: no sections could be formed."""
    unknown = Counter(row.subset for row in rows if row.subset not in SECTION_OF)
    num_known = len(rows) - sum(unknown.values())
    if not unknown or not num_known:
        return
    first = next(where for row, where in zip(rows, places, strict=True) if row.subset in unknown)
    names = ", ".join(f"'{subset}' ({num} rows{_meant(subset)})" for subset, num in unknown.most_common(5))
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    raise InputError(
        f"{uri}: {num_known} rows are of RewardBench's subsets, mixed with unknown subsets: {names}{more}, the first "
        f"at {first}; expected only RewardBench's 23 subsets (they have sections), or only other subsets (they have "
        "none). Correct the names, or put your own rows into a separate file."
    )


def _meant(subset: str) -> str:
    close = difflib.get_close_matches(subset, SECTION_OF, n=1, cutoff=0.8)
    return f"; '{close[0]}' meant?" if close else ""


def _row(fields: Any, number: int) -> BenchmarkRow:
    """One row, the `number`th of its file.

    Raises:
        NotOfShapeError, DropRowError: see there.
    """
    if isinstance(fields, BadRow):
        raise NotOfShapeError(fields.cause, fields.problem)
    if not isinstance(fields, Mapping):
        raise NotOfShapeError("not_an_object", f"found {value_named(fields)}, no object")
    question, chosen, rejected = _preferred(fields)
    if chosen == rejected:
        raise DropRowError("equal_answers")
    subset = _name(fields, "subset") or ONE_SUBSET
    return BenchmarkRow(
        row_id=f"{subset}/{_id(fields) or number}",
        subset=subset,
        question=question,
        chosen=chosen,
        rejected=rejected,
        chosen_model=_name(fields, "chosen_model"),
        rejected_model=_name(fields, "rejected_model"),
    )


def _preferred(fields: Mapping[str, Any]) -> ReadPair:
    """The question and both answers; without a prompt, of two whole conversations, as preferences have them."""
    for column in ("chosen", "rejected"):
        if column not in fields:
            raise NotOfShapeError(
                "missing_column", f"column '{column}' is missing, found {', '.join(map(str, fields))}"
            )
    if fields.get("prompt") is None:
        try:
            return read_answers(fields, None)
        except NotOfShapeError as wrong:
            raise NotOfShapeError(wrong.cause, f"there is no prompt, and {wrong}") from wrong
    prompt = fields["prompt"]
    # A text stays as it is, also one in the form of a transcript: the digests of stored evaluations hold it so.
    question = (Message(role="user", content=prompt),) if isinstance(prompt, str) else read_turns(prompt, "prompt")
    if [turn.role for turn in question][-1:] != ["user"]:
        raise NotOfShapeError("wrong_turns", "'prompt' does not end with a user turn, the one that is answered")
    if not question[-1].content.strip():
        raise NotOfShapeError("wrong_value", "'prompt' is empty")
    return ReadPair(question, *(_answer(fields[column], column, question) for column in ("chosen", "rejected")))


def _answer(value: Any, column: str, question: tuple[Message, ...]) -> str:
    """An answer: a text, or the assistant's turn behind the prompt, which may be repeated before it."""
    if not isinstance(value, list | tuple | Mapping):
        return read_text(value, column)
    *before, last = read_turns(value, column) or (Message(role="user", content=""),)
    if last.role != "assistant":
        raise NotOfShapeError("wrong_turns", f"'{column}' does not end with an assistant's turn, the answer")
    if before and tuple(before) != question:
        raise DropRowError("questions_differ")
    return last.content


def _name(fields: Mapping[str, Any], column: str) -> str:
    """A text that may be missing: "" then."""
    value = fields.get(column)
    return "" if value is None else read_text(value, column).strip() and value


def _id(fields: Mapping[str, Any]) -> str:
    value = fields.get("id")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _name(fields, "id")
