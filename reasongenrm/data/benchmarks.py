"""The benchmark's rows: where they come from, and whether they are valid.

In goes a hub name, a local JSON Lines file or an s3:// URI in RewardBench's own schema (prompt, chosen, rejected,
subset, id, and the two models' names); out come checked rows for `evaluation.py` to have judged and `metrics.py` to
score. A benchmark with other subsets works too: it has subsets, but no sections.
"""

import difflib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reasongenrm.data.sections import SECTION_OF, Coverage, coverage_of
from reasongenrm.errors import InputError
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


@dataclass(frozen=True)
class Benchmark:
    """Rows to judge, in file order, with where they came from.

    Attributes:
        uri: what was asked for.
        rows: the rows to judge, after `spread`; row ids are unique.
        num_available_rows: how many there were before `spread`.
        digest: "sha256:..." of all available rows, the same for any place they were read from.
    """

    uri: str
    rows: tuple[BenchmarkRow, ...]
    num_available_rows: int
    digest: str

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
        if not self.is_rewardbench:
            return None
        return coverage_of(row.subset for row in self.rows)


def load_benchmark(uri: str, limit: int | None = None, seed: int = 0) -> Benchmark:
    """Read and check a benchmark.

    The form of `uri` alone says where to look: `owner/name` is a dataset on the hub (its split "filtered"), `s3://...` an
    object, and everything else, such as a name that ends in .jsonl, a local file.

    Args:
        uri: a hub name, a local file, or an s3:// URI of a JSON Lines file.
        limit: the most rows, spread over the subsets (see `spread`).
        seed: of that choice.

    Raises:
        InputError: nothing is there, it is not JSON Lines, or a row does not fit the schema; names file and row.
    """
    raw = _read_hub(uri) if is_hub_name(uri) else _parse_lines(read_uri(uri), uri)
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


def _read_hub(name: str) -> list[tuple[str, Any]]:
    """Rows of a hub dataset with where each stands."""
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split=HUB_SPLIT)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{name}: the hub gave no dataset with a split '{HUB_SPLIT}': {' '.join(str(error).split())[:300]}. "
            "Check the name and the network, or give a JSON Lines file (a name that ends in .jsonl, or ./path)."
        ) from error
    return [(f"{name} row {number}", dict(row)) for number, row in enumerate(dataset, start=1)]


def _parse_lines(data: bytes, uri: str) -> list[tuple[str, Any]]:
    """JSON Lines, each with where it stands."""
    rows = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append((f"{uri} line {number}", json.loads(line)))
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
            raise InputError(
                f"{uri} line {number}: not JSON ({error}); expected JSON Lines in UTF-8, one object a line. "
                "Give the benchmark as .jsonl."
            ) from error
    return rows


def _checked_rows(raw: Sequence[tuple[str, Any]], uri: str) -> list[BenchmarkRow]:
    """Check every row alone, then that ids are unique and the subsets go together."""
    if not raw:
        raise InputError(f"{uri}: no rows; expected JSON Lines with {_SCHEMA}. Check that the file was written whole.")
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
        f"{uri}: {num_known} rows are of RewardBench's subsets, mixed with unknown subsets: {names}{more}, the first at "
        f"{first}; expected only RewardBench's 23 subsets (they have sections), or only other subsets (they have none). "
        "Correct the names, or put your own rows into a separate file."
    )


def _meant(subset: str) -> str:
    close = difflib.get_close_matches(subset, SECTION_OF, n=1, cutoff=0.8)
    return f"; '{close[0]}' meant?" if close else ""


def _row(fields: Any, where: str) -> BenchmarkRow:
    if not isinstance(fields, dict):
        raise InputError(f"{where}: found {_kind(fields)}, expected an object with {_SCHEMA}. Correct the row.")
    subset, chosen, rejected = (_text(fields, name, where) for name in ("subset", "chosen", "rejected"))
    if not subset.strip():
        raise InputError(
            f"{where}: 'subset' is empty; expected a name. Rows without groups can share one, such as 'all'."
        )
    if chosen == rejected:
        raise InputError(
            f"{where}: 'chosen' and 'rejected' are the same text ({_short(chosen)}); expected two different answers. "
            "Remove the row: no judge can be right about it."
        )
    return BenchmarkRow(
        row_id=f"{subset}/{_identity(fields, where)}",
        subset=subset,
        question=_question(_field(fields, "prompt", where), where),
        chosen=chosen,
        rejected=rejected,
        chosen_model=_text(fields, "chosen_model", where) if "chosen_model" in fields else "",
        rejected_model=_text(fields, "rejected_model", where) if "rejected_model" in fields else "",
    )


def _field(fields: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in fields:
        found = ", ".join(map(str, fields)) or "none"
        raise InputError(f"{where}: no field '{name}' (found: {found}); expected {_SCHEMA}. Add the field.")
    return fields[name]


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    value = _field(fields, name, where)
    if not isinstance(value, str):
        raise InputError(f"{where}: '{name}' is {_kind(value)} ({_short(value)}), expected text. Correct the row.")
    return _unicode(value, name, where)


def _unicode(value: str, name: str, where: str) -> str:
    """JSON can spell half a surrogate pair, which no file can hold as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: '{name}' holds half a surrogate pair at character {error.start}, which is no text. Correct the row."
        ) from error
    return value


def _identity(fields: Mapping[str, Any], where: str) -> str:
    value = _field(fields, "id", where)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise InputError(
            f"{where}: 'id' is {_kind(value)} ({_short(value)}), expected text or a whole number. Correct the row."
        )
    return _unicode(str(value), "id", where)


def _question(value: Any, where: str) -> tuple[Message, ...]:
    """A prompt as messages: text is one user turn; a list of messages ends with a user turn."""
    if isinstance(value, str):
        turns: list[Any] = [{"role": "user", "content": value}]
    elif isinstance(value, list):
        turns = value
    else:
        raise InputError(
            f"{where}: 'prompt' is {_kind(value)} ({_short(value)}), expected text or a list of messages. Correct the row."
        )
    messages = tuple(_message(turn, number, where) for number, turn in enumerate(turns, start=1))
    if not messages or messages[-1].role != "user":
        found = f"ends with a turn of '{messages[-1].role}'" if messages else "has no messages"
        raise InputError(
            f"{where}: 'prompt' {found}, expected a user turn at its end, the one that is answered. Correct the row."
        )
    if not messages[-1].content.strip():
        raise InputError(f"{where}: 'prompt' is empty, expected a question. Correct or remove the row.")
    return messages


def _message(turn: Any, number: int, where: str) -> Message:
    if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
        raise InputError(
            f"{where}: 'prompt' message {number} is {_short(turn)}, expected an object with role and content. Correct the row."
        )
    role: Literal["system", "user", "assistant"]
    match turn["role"]:
        case "system" | "user" | "assistant" as role:
            pass
        case other:
            raise InputError(
                f"{where}: 'prompt' message {number} has role {other!r}, expected system, user or assistant. Correct the row."
            )
    return Message(role=role, content=_text(turn, "content", f"{where}, 'prompt' message {number}"))


def _kind(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "true/false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
