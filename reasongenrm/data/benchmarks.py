"""The benchmark's rows: where they come from, and whether they are valid.

In goes a hub name, a local JSON Lines file or an s3:// URI in RewardBench's own schema (prompt, chosen, rejected,
subset, id, and the two models' names); out come checked rows for `evaluation.py` to have judged and `metrics.py` to
score. A benchmark with other subsets works too: it has subsets, but no sections.
"""

import difflib
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reasongenrm.data.rows import hub_rows, parse_json_lines
from reasongenrm.data.sections import SECTION_OF, Coverage, coverage_of
from reasongenrm.errors import InputError, validated
from reasongenrm.records import JudgePrompt, Message, Order, Record, Verdict, dump_records
from reasongenrm.store.artifacts import digest_bytes, is_hub_name, read_uri

ORDERS: tuple[Order, Order] = ("chosen_first", "rejected_first")
LABELS: dict[Order, Verdict] = {"chosen_first": "[[A]]", "rejected_first": "[[B]]"}
HUB_SPLIT = "filtered"  # the split that RewardBench's scores are made from

_SCHEMA = "prompt, chosen, rejected, subset (text) and id (text or a whole number), as in allenai/reward-bench"


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


class _Turn(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["system", "user", "assistant"]
    content: str


class _Fields(BaseModel):
    """A row as it is read; further columns are left aside."""

    model_config = ConfigDict(strict=True)

    prompt: str | list[_Turn]
    chosen: str
    rejected: str
    subset: str
    id: int | Annotated[str, Field(min_length=1)]
    chosen_model: str = ""
    rejected_model: str = ""

    @model_validator(mode="after")
    def _can_be_judged(self) -> "_Fields":
        last = self.prompt if isinstance(self.prompt, str) else self.prompt[-1].content if self.prompt else ""
        if not self.subset.strip():
            raise ValueError("subset is empty (rows without groups can share a name, such as 'all')")
        if self.chosen == self.rejected:
            raise ValueError(f"chosen and rejected are the same text ({self.chosen[:60]!r}): no judge can be right")
        if not isinstance(self.prompt, str) and [turn.role for turn in self.prompt][-1:] != ["user"]:
            raise ValueError("prompt does not end with a user turn, the one that is answered")
        if not last.strip():
            raise ValueError("prompt is empty")
        return self


@dataclass(frozen=True)
class Benchmark:
    """Rows to judge, in file order, with where they came from."""

    uri: str  # what was asked for
    rows: tuple[BenchmarkRow, ...]  # to judge, after `spread`; row ids are unique
    num_available_rows: int  # before `spread`
    digest: str  # "sha256:..." of all available rows, the same for any place they were read from

    @property
    def name(self) -> str:
        """The last part of the URI, for titles."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    @property
    def is_rewardbench(self) -> bool:
        """Whether the subsets are RewardBench's, and so have sections."""
        return self.rows[0].subset in SECTION_OF

    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets that have rows: in section order for RewardBench, else in file order."""
        present = dict.fromkeys(row.subset for row in self.rows)
        return tuple(subset for subset in SECTION_OF if subset in present) if self.is_rewardbench else tuple(present)

    def coverage(self) -> Coverage | None:
        """What was judged of RewardBench's filtered split; None for a benchmark with other subsets."""
        return coverage_of(row.subset for row in self.rows) if self.is_rewardbench else None


def load_benchmark(uri: str, limit: int | None = None, seed: int = 0) -> Benchmark:
    """Read and check a benchmark.

    The form of `uri` alone says where to look: `owner/name` is a dataset on the hub (its split "filtered"), `s3://...`
    an object, and everything else, such as a name that ends in .jsonl, a local file.

    Args:
        uri: a hub name, a local file, or an s3:// URI of a JSON Lines file.
        limit: the most rows, spread over the subsets (see `spread`).
        seed: of that choice.

    Raises:
        InputError: nothing is there, it is not JSON Lines, or a row does not fit the schema; names file and row.
    """
    if is_hub_name(uri):
        raw = hub_rows(uri, HUB_SPLIT)
    else:
        raw = list(parse_json_lines(read_uri(uri), uri, f"an object with {_SCHEMA}"))
    rows = _checked_rows(raw, uri)
    return Benchmark(uri, tuple(spread(rows, limit, seed)), len(rows), rows_digest(rows))


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


def _checked_rows(raw: Sequence[tuple[str, Any]], uri: str) -> list[BenchmarkRow]:
    """Check every row alone, then that ids are unique and the subsets go together."""
    rows: list[BenchmarkRow] = []
    first_at: dict[str, str] = {}
    for where, fields in raw:
        row = _row(fields, where)
        if row.row_id in first_at:
            raise InputError(
                f"{where}: id {row.row_id.removeprefix(row.subset + '/')!r} of subset '{row.subset}' was already at "
                f"{first_at[row.row_id]}; expected an id once in its subset. Remove the copy or give it another id."
            )
        first_at[row.row_id] = where
        rows.append(row)
    _check_subsets(rows, [where for where, _ in raw], uri)
    return rows


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


def _row(fields: Any, where: str) -> BenchmarkRow:
    with validated(where, f"an object with {_SCHEMA}. Correct or remove the row."):
        row = _Fields.model_validate(fields)
    prompt = [_Turn(role="user", content=row.prompt)] if isinstance(row.prompt, str) else row.prompt
    return BenchmarkRow(
        row_id=f"{row.subset}/{row.id}",
        question=tuple(Message(role=turn.role, content=turn.content) for turn in prompt),
        **row.model_dump(exclude={"id", "prompt"}),
    )
