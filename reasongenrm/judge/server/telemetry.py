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

from reasongenrm.judge.pairwise import Observed, PairResult

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


@dataclass
class RequestWork:
    """What one request had the judge do, for its line in the log, whichever route it came by."""

    num_generations: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    verdicts: Tally[str] = field(default_factory=Tally)
    pairs: Tally[str] = field(default_factory=Tally)

    def fields(self) -> dict[str, Any]:
        """As the log has it; nothing if nothing was judged."""
        if not self.num_generations and not self.pairs:
            return {}
        return {
            "generations": self.num_generations,
            "prompt_tokens": self.num_prompt_tokens,
            "output_tokens": self.num_output_tokens,
            "verdicts": dict(self.verdicts),
            "pairs": dict(self.pairs),
        }


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
        name = "reasongenrm_judge"
        self.requests = Counter(f"{name}_requests", "Requests answered.", ["route", "status"], registry=self.registry)
        self.refused = Counter(f"{name}_refused", "Requests not let in.", ["cause"], registry=self.registry)
        self.abandoned = Counter(
            f"{name}_abandoned", "Requests whose client went away before the answer.", registry=self.registry
        )
        self.in_flight = Gauge(f"{name}_in_flight", "Requests under way.", registry=self.registry)
        self.seconds = Histogram(
            f"{name}_request_seconds", "Time to answer.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.generation_seconds = Histogram(
            f"{name}_generation_seconds", "Time of one generation.", buckets=_SECONDS, registry=self.registry
        )
        self.verdicts = Counter(
            f"{name}_verdicts",
            "Verdicts as the model wrote them, A, B or unparsed, by the order of the answers.",
            ["order", "verdict"],
            registry=self.registry,
        )
        self.pairs = Counter(
            f"{name}_pairs",
            "Pairs judged: consistent, flipped (the orders disagree), equal answers, one_sided, unread.",
            ["outcome"],
            registry=self.registry,
        )
        self.truncated = Counter(f"{name}_truncated", "Generations cut off.", registry=self.registry)
        self.cuts = Counter(f"{name}_cut_texts", "Texts whose middle was left out.", registry=self.registry)
        self.tokens = Counter(f"{name}_tokens", "Tokens of prompts and outputs.", ["kind"], registry=self.registry)

    def generation(self, observed: Observed) -> None:
        """See `pairwise.Observer`."""
        verdict = observed.letter or "unparsed"
        self.verdicts.labels(observed.order, verdict).inc()
        self.generation_seconds.observe(observed.seconds)
        self.tokens.labels("prompt").inc(observed.num_prompt_tokens)
        self.tokens.labels("output").inc(observed.num_output_tokens)
        if observed.truncated:
            self.truncated.inc()
        if (work := _work.get()) is not None:
            work.num_generations += 1
            work.num_prompt_tokens += observed.num_prompt_tokens
            work.num_output_tokens += observed.num_output_tokens
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
