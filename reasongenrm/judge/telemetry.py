"""What the judge says about itself: Prometheus metrics, and one JSON line a request, without the users' text."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from reasongenrm.judge.pairwise import Observed, PairResult

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


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
        self.verdicts.labels(observed.order, observed.letter or "unparsed").inc()
        self.generation_seconds.observe(observed.seconds)
        self.tokens.labels("prompt").inc(observed.num_prompt_tokens)
        self.tokens.labels("output").inc(observed.num_output_tokens)
        if observed.truncated:
            self.truncated.inc()

    def pair(self, result: PairResult) -> None:
        """See `pairwise.Observer`."""
        self.pairs.labels(_outcome(result)).inc()
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
