"""A file of pairs, judged: pairs in, JSON Lines out.

A row in is {"question", "answer_a", "answer_b"}, with any other option of `api.JudgeOptions` and an "id" if wanted; or
it is of one of the formats of preferences (docs/data.md), and then answer A is the chosen one and B the rejected. A
line out is a `JudgedPair`. Judgments are added to OUTPUT.partial as they come; a run that is killed and started again
reads them there. When all are there, they become OUTPUT in the order of the pairs, in one step.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from reasongenrm.config import PairsConfig
from reasongenrm.data.pairs import parse_pairs
from reasongenrm.data.preference_formats import FORMATS
from reasongenrm.data.row_files import read_rows_of
from reasongenrm.data.rows import BadRow
from reasongenrm.errors import EmptyStageError, InputError, validated
from reasongenrm.judge.api import AnswerPair, ErrorDetail, PairwiseRequest, PairwiseResponse
from reasongenrm.judge.client.client import Judge
from reasongenrm.judge.client.client_errors import JudgeClientError, JudgeRequestError
from reasongenrm.progress import track
from reasongenrm.records import Drops, Record, dump_records

logger = logging.getLogger(__name__)


class _PairLine(AnswerPair):
    id: str | int | None = None


class JudgedPair(Record):
    """One line of the output: a judgment, or why there is none."""

    id: str  # the pair's own, or "line N"
    asked: str  # SHA-256 of the request: a judgment of an earlier run is used again only for the same one
    result: PairwiseResponse | None = None
    error: ErrorDetail | None = None


class FileSummary(BaseModel):
    """What became of a file's pairs; every pair is counted once."""

    num_in: int
    num_a: int
    num_b: int
    num_tie: int
    num_unread: int
    num_dropped: dict[str, int]
    num_inconsistent: int
    mean_p_a: float | None

    def line(self) -> str:
        """The counts, for people."""
        mean = "" if self.mean_p_a is None else f", mean P(A better) {self.mean_p_a:.3f}"
        dropped = "".join(f", {count} dropped as {code}" for code, count in sorted(self.num_dropped.items()))
        return (
            f"{self.num_in} pairs: {self.num_a} A, {self.num_b} B, {self.num_tie} ties "
            f"({self.num_inconsistent} with orders that disagree), {self.num_unread} unread{dropped}{mean}"
        )


def judge_file(judge: Judge, pairs: Path, output: Path, options: Mapping[str, Any], concurrency: int) -> FileSummary:
    """Have each pair of a file judged.

    A pair that the judge refuses stands in the output with its error; any other failure ends the run, and what was
    judged is kept for the next one.

    Args:
        options: for pairs that do not set them themselves.

    Raises:
        InputError: a row is no pair, an id comes twice, or there is none.
        JudgeClientError: the judge cannot be reached, fails, or refuses the key.
        EmptyStageError: every pair was refused or dropped.
    """
    drops = Drops()
    asked = _read_pairs(pairs, options, drops)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    judged = _read_partial(partial, {name: _digest(request) for name, request in asked.items()})
    left = [name for name in asked if name not in judged]
    with track("judge", len(asked), "pair") as tracker, partial.open("ab") as file:
        tracker.start_at(len(asked) - len(left))

        def keep(number: int, answer: Any) -> None:
            name = left[number]
            outcome = {"error": _detail(answer)} if isinstance(answer, JudgeClientError) else {"result": answer}
            judged[name] = JudgedPair(id=name, asked=_digest(asked[name]), **outcome)
            file.write(dump_records([judged[name]]))
            file.flush()
            tracker.advance()

        requests = [asked[name] for name in left]
        judge.ask_many(requests, concurrency=concurrency, return_errors=JudgeRequestError, on_done=keep)
    lines = [judged[name] for name in asked]
    whole = output.with_name(output.name + ".new")
    whole.write_bytes(dump_records(lines))
    whole.replace(output)
    partial.unlink()
    summary = _summary(lines, drops)
    if all(line.result is None for line in lines):
        raise EmptyStageError(f"{pairs}: {summary.line()}; expected judgments. {output} has the judge's words on each.")
    return summary


def _read_pairs(path: Path, options: Mapping[str, Any], drops: Drops) -> dict[str, PairwiseRequest]:
    """The requests by id; preferences that are no pair are counted in `drops`."""
    expected = "question, answer_a, answer_b and, if wanted, id and the judge's options; or preferences (docs/data.md)"
    if not path.is_file():
        raise InputError(f"{path}: is no file; expected rows with {expected}. Fix --file.")
    rows = read_rows_of(path.read_bytes(), path.name)
    first = next((row for _, row in rows if not isinstance(row, BadRow)), None)
    if any(kind.tells(first) for kind in FORMATS):
        rows = list(_preferences(rows, path.name, drops))
    found: dict[str, PairwiseRequest] = {}
    for where, row in rows:
        if isinstance(row, BadRow):
            raise InputError(f"{where}: {row.problem}; expected {expected}. Fix the row.")
        with validated(where, f"{expected}. Fix the row."):
            pair = _PairLine.model_validate(row)
            request = PairwiseRequest.model_validate({**options, **pair.model_dump(exclude_unset=True, exclude={"id"})})
        name = where.removeprefix(f"{path.name} ") if pair.id is None else str(pair.id)
        if name in found:
            raise InputError(f"{where}: id {name!r} came before; expected ids that differ. Fix it.")
        found[name] = request
    if not found:
        raise EmptyStageError(f"{path}: no pair is left; dropped: {dict(drops.causes)}. Check the file.")
    return found


def _preferences(rows: Sequence[tuple[str, Any]], name: str, drops: Drops) -> Iterator[tuple[str, Any]]:
    """Rows of preferences as rows of pairs, the chosen answer first."""
    for pair in parse_pairs(rows, drops, PairsConfig()):
        asked = {"question": [turn.model_dump() for turn in pair.question]}
        yield f"{name} {pair.pair_id}", {**asked, "answer_a": pair.chosen, "answer_b": pair.rejected}


def _read_partial(path: Path, digests: Mapping[str, str]) -> dict[str, JudgedPair]:
    """Judgments of an earlier run for the same requests; the file is left with whole lines only."""
    if not path.is_file():
        return {}
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]  # a killed run may have left half a line
    path.write_bytes(whole)
    found = {}
    for line in whole.split(b"\n")[:-1]:
        with validated(str(path), "what an earlier run leaves. Remove the file to judge all pairs again."):
            judged = JudgedPair.model_validate_json(line)
        if digests.get(judged.id) == judged.asked:
            found[judged.id] = judged
    logger.info("%s: %d of %d pairs were judged before", path.name, len(found), len(digests))
    return found


def _digest(request: PairwiseRequest) -> str:
    return hashlib.sha256(json.dumps(request.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _detail(error: JudgeClientError) -> ErrorDetail:
    return ErrorDetail(message=str(error), code=error.code, param=error.param, request_id=error.request_id)


def _summary(lines: list[JudgedPair], drops: Drops) -> FileSummary:
    results = [line.result for line in lines if line.result is not None]
    preferred = Counter(result.preferred for result in results)
    p_a = [result.p_a for result in results if result.p_a is not None]
    return FileSummary(
        num_in=len(lines) + drops.causes.total(),
        num_a=preferred["A"],
        num_b=preferred["B"],
        num_tie=preferred["tie"],
        num_unread=preferred[None],
        num_dropped=Counter(line.error.code for line in lines if line.error is not None) + drops.causes,
        num_inconsistent=sum(result.consistent is False for result in results),
        mean_p_a=sum(p_a) / len(p_a) if p_a else None,
    )
