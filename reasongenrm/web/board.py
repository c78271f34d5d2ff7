"""The leaderboard: the store's finished evaluations by benchmark, with their reports.

The store is opened for each reading and closed again: a folder's server holds its folder, and a run on it must not fail
because this page is up.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reasongenrm.errors import ReasonGenRMError, validated
from reasongenrm.evaluation.metrics import BenchmarkInfo, Evaluation
from reasongenrm.runs.inventory import stored_models
from reasongenrm.runs.local import local_folder, open_store
from reasongenrm.store.artifacts import Manifest, Store, list_artifacts, read_file
from reasongenrm.store.run_records import RunRecord, list_runs
from reasongenrm.web.words import Notice

logger = logging.getLogger(__name__)
FRESH_SECONDS = 5.0  # so long a reading serves everyone
MAX_KEPT_REPORTS = 16  # in memory; one has up to a few MB


@dataclass(frozen=True)
class Entry:
    """One judge on one benchmark.

    Attributes:
        model_digest: of its checkpoint; None: an endpoint was asked.
        base: what all training started from, as its folder, file or hub name calls it; None: the store does not know.
        run_ids: newest first.
        report: the digest, 64 hex digits, of a report that shows it.
    """

    evaluation: Evaluation
    model_digest: str | None
    base: str | None
    created_at: str
    run_ids: tuple[str, ...]
    report: str | None


@dataclass(frozen=True)
class BoardSection:
    """Judges that were held against the same rows, the most accurate first."""

    benchmark: BenchmarkInfo
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Board:
    """The leaderboard, or why there is none."""

    sections: tuple[BoardSection, ...] = ()
    notice: Notice | None = None


class Shelf:
    """Reads a store, one reading at a time, and keeps what cannot change.

    Args:
        store: a folder or s3://bucket/prefix, as in --store.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._board: tuple[float, Board] | None = None
        self._evaluations: dict[str, Evaluation] = {}
        self._reports: dict[str, Manifest] = {}
        self._pages: OrderedDict[str, bytes] = OrderedDict()

    def board(self) -> Board:
        """The leaderboard as of a few seconds ago at most."""
        with self._lock:
            if self._board is None or time.monotonic() - self._board[0] > FRESH_SECONDS:
                board = self._read()  # may take longer than what it reads stays fresh
                self._board = (time.monotonic(), board)
            return self._board[1]

    def report(self, digest: str) -> bytes | None:
        """A report's HTML; None if the store has none of this digest (64 hex digits).

        Raises:
            StoreError: the store failed, or the report is damaged.
        """
        if not self._reports:
            self.board()  # a link that someone was sent, after a restart
        with self._lock:
            if digest not in self._reports:
                return None
            if digest not in self._pages:
                with open_store(self._store):
                    self._pages[digest] = read_file(self._reports[digest].ref(), "report.html")
                if len(self._pages) > MAX_KEPT_REPORTS:
                    self._pages.popitem(last=False)
            self._pages.move_to_end(digest)
            return self._pages[digest]

    def _read(self) -> Board:
        # Looking makes no store: `existing_store` would be an error, and before a first run this is none.
        if not self._store.startswith("s3://") and not (local_folder(self._store) / "store").is_dir():
            advice = "`reasongenrm run` makes one, or give --store."
            text = f"There is no store in the folder {self._store}. {advice}"
            return Board(notice=Notice("No store yet", text, is_error=False))
        try:
            with open_store(self._store) as store:
                board = self._read_open(store)
        except ReasonGenRMError as error:
            logger.warning("cannot read the leaderboard: %s", error)
            return Board(notice=Notice("The store cannot be read", str(error)))
        if not board.sections:
            text = "No run has evaluated a judge here yet. `reasongenrm run` does, with a report at its end."
            return Board(notice=Notice("Nothing on the leaderboard yet", text, is_error=False))
        return board

    def _read_open(self, store: Store) -> Board:
        artifacts = list_artifacts(store)
        runs = list_runs(store)
        reports = [manifest for manifest in artifacts if manifest.stage == "select_winner"]
        self._reports = {_hex(manifest.digest): manifest for manifest in reports}
        bases = {model.manifest.digest: _name(model.base) for model in stored_models(artifacts, ())}
        entries = [
            Entry(
                self._evaluation(manifest),
                manifest.inputs.get("model"),
                bases.get(manifest.inputs.get("model", "")),
                manifest.created_at,
                _runs_of(manifest, runs),
                _report_of(manifest, reports),
            )
            for manifest in artifacts
            if manifest.stage == "evaluate_rewardbench"
        ]
        return Board(_by_benchmark(entries))

    def _evaluation(self, manifest: Manifest) -> Evaluation:
        if manifest.digest not in self._evaluations:
            data = read_file(manifest.ref(), "evaluation.json")
            expected = "an evaluation of this version. Evaluate again, or use the version of reasongenrm that wrote it."
            with validated(f"{manifest.uri}/evaluation.json", expected, ReasonGenRMError):
                self._evaluations[manifest.digest] = Evaluation.model_validate_json(data)
        return self._evaluations[manifest.digest]


def _name(source: str) -> str | None:
    """The last part of a model's address: a folder's, a file's or a hub model's own name."""
    return source.rstrip("/").rpartition("/")[2].removesuffix(".gguf") or None


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _runs_of(manifest: Manifest, runs: Sequence[RunRecord]) -> tuple[str, ...]:
    made = (run.run_id for run in reversed(runs) if any(task.ref.digest == manifest.digest for task in run.tasks))
    return tuple(made)


def _report_of(manifest: Manifest, reports: Iterable[Manifest]) -> str | None:
    """The newest report that was made from this evaluation."""
    found = [_hex(report.digest) for report in reports if manifest.digest in report.inputs.values()]
    return found[-1] if found else None


def _by_benchmark(entries: Iterable[Entry]) -> tuple[BoardSection, ...]:
    """Figures on different rows say nothing about each other: one section each, that of the newest evaluation first."""
    groups: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.created_at, reverse=True):
        groups.setdefault(entry.evaluation.benchmark.rows_digest, []).append(entry)
    ranked = [tuple(sorted(group, key=lambda entry: -entry.evaluation.accuracy)) for group in groups.values()]
    return tuple(BoardSection(group[0].evaluation.benchmark, group) for group in ranked)
