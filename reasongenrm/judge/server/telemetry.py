"""Prometheus metrics of the judge, and one JSON log line per request, without the users' text."""

import json
import logging
import sys
from collections import Counter as Tally
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from reasongenrm.evaluation.judging import preferred_answer
from reasongenrm.generation.seam import Generation
from reasongenrm.judge.api import CallerOrder
from reasongenrm.judge.pairwise import PairResult

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


def _nothing() -> Tally[str]:
    return Tally(generations=0, prompt_tokens=0, output_tokens=0)


@dataclass
class RequestWork:
    """What one request had the judge do, for its line in the log, whichever route it came by."""

    counts: Tally[str] = field(default_factory=_nothing)
    verdicts: Tally[str] = field(default_factory=Tally)
    pairs: Tally[str] = field(default_factory=Tally)

    def fields(self) -> dict[str, Any]:
        """As the log has it; nothing if nothing was judged."""
        if not self.counts["generations"] and not self.pairs:
            return {}
        return {**self.counts, "verdicts": dict(self.verdicts), "pairs": dict(self.pairs)}


_work: ContextVar[RequestWork | None] = ContextVar("work", default=None)


def count_work() -> RequestWork:
    """Count what this task and those that it starts have the judge do."""
    work = RequestWork()
    _work.set(work)
    return work


class Telemetry:
    """The judge's metrics, in a registry of its own; an `Observer` of the judge."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"namespace": "reasongenrm", "subsystem": "judge", "registry": self.registry}
        self.requests = Counter("requests", "Requests answered.", ["route", "status"], **own)
        self.refused = Counter("refused", "Requests not let in.", ["cause"], **own)
        self.abandoned = Counter("abandoned", "Requests whose client went away before the answer.", **own)
        self.in_flight = Gauge("in_flight", "Requests under way.", **own)
        self.seconds = Histogram("request_seconds", "Time to answer.", ["route"], buckets=_SECONDS, **own)
        self.generation_seconds = Histogram("generation_seconds", "Time of one generation.", buckets=_SECONDS, **own)
        as_written = "Verdicts as the model wrote them, A, B or unparsed, by the order of the answers."
        self.verdicts = Counter("verdicts", as_written, ["order", "verdict"], **own)
        outcomes = "Pairs judged: consistent, flipped (the orders disagree), equal answers, one_sided, unread."
        self.pairs = Counter("pairs", outcomes, ["outcome"], **own)
        self.truncated = Counter("truncated", "Generations cut off.", **own)
        self.cuts = Counter("cut_texts", "Texts whose middle was left out.", **own)
        self.tokens = Counter("tokens", "Tokens of prompts and outputs.", ["kind"], **own)

    def generation(self, order: CallerOrder, generation: Generation) -> None:
        """See `pairwise.Observer`."""
        verdict = preferred_answer(generation, is_swapped=False) or "unparsed"
        self.verdicts.labels(order, verdict).inc()
        self.generation_seconds.observe(generation.seconds)
        self.tokens.labels("prompt").inc(generation.num_prompt_tokens)
        self.tokens.labels("output").inc(generation.num_output_tokens)
        self.truncated.inc(generation.finish_reason == "length")
        if (work := _work.get()) is not None:
            used = {"prompt_tokens": generation.num_prompt_tokens, "output_tokens": generation.num_output_tokens}
            work.counts.update(generations=1, **used)
            work.verdicts[verdict] += 1

    def pair(self, result: PairResult) -> None:
        """See `pairwise.Observer`."""
        outcome = _outcome(result)
        self.pairs.labels(outcome).inc()
        if (work := _work.get()) is not None:
            work.pairs[outcome] += 1
        self.cuts.inc(len(result.cuts))


def _outcome(result: PairResult) -> str:
    if not result.judgments:
        return "equal"
    if result.preferred is None:
        return "unread"
    if result.consistent is None:
        return "one_sided"
    return "consistent" if result.consistent else "flipped"


class JSONLines(logging.Formatter):
    """A log record as one line of JSON: time, level, logger, message, and the fields of `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_as_json(level: int = logging.INFO) -> None:
    """Send every logger of this process to stderr as JSON lines, KServe's and uvicorn's too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("reasongenrm").setLevel(level)
    for name in ("kserve", "kserve.trace", "uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
