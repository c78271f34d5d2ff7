"""Golden judgments: rows that the winner judged right in both orders, asked again of its new pods.

In goes the winner's own evaluation and the address of the new pods, out comes how far they agree. That proves what no probe
does: the right checkpoint, the right chat template, a key that works, and verdicts that can be read.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasongenrm.config import DeployConfig, EngineConfig, EvaluateConfig
from reasongenrm.data.benchmarks import BenchmarkRow, spread
from reasongenrm.errors import ClusterError, EngineError, InputError
from reasongenrm.evaluation.evaluate import VARIANT_STYLES, judge_benchmark
from reasongenrm.evaluation.metrics import JudgeStyle, row_results
from reasongenrm.records import Judgment, dump_records, parse_records
from reasongenrm.store.artifacts import ArtifactRef, open_artifact, read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_RETRIES = 5  # 15 s in all: a Service's endpoints follow its pods with a delay
_CONCURRENCY = 8


@dataclass(frozen=True)
class GoldenRows:
    """What is asked and how: rows, the evaluation's settings, the variant's style."""

    rows: tuple[BenchmarkRow, ...]
    settings: EvaluateConfig
    style: JudgeStyle


@dataclass(frozen=True)
class Golden:
    """What the new pods said.

    Attributes:
        judgments: both orders of every row.
        agreement: share of the rows with both orders right, in [0, 1].
    """

    address: str
    model_name: str
    judgments: tuple[Judgment, ...]
    agreement: float

    def files(self, min_agreement: float) -> dict[str, bytes]:
        """golden.jsonl, a judgment a line, and golden.json, the figures."""
        import json

        figures: Mapping[str, Any] = {
            "address": self.address,
            "model_name": self.model_name,
            "num_rows": len({judgment.row_id for judgment in self.judgments}),
            "agreement": self.agreement,
            "min_agreement": min_agreement,
        }
        return {
            "golden.jsonl": dump_records(self.judgments),
            "golden.json": json.dumps(figures, indent=2).encode() + b"\n",
        }


def choose_golden(evaluation: ArtifactRef, variant: str, config: DeployConfig) -> GoldenRows:
    """Rows that this judge judged rightly in both orders, spread over the subsets; the same ones every time.

    With `min_golden_agreement: 0` a judge that got none right is asked other rows: its pods must answer, no more (a smoke run).

    Raises:
        InputError: there is no such row, and some have to be right.
        StoreError: the evaluation is not there any more.
    """
    manifest = open_artifact(evaluation)
    where = f"{evaluation.uri}/judgments.jsonl"
    results = row_results(parse_records(read_file(evaluation, "judgments.jsonl"), Judgment, where))
    right = {result.row_id for result in results if result.accuracy == 1.0}
    rows = parse_records(read_file(evaluation, "rows.jsonl"), BenchmarkRow, f"{evaluation.uri}/rows.jsonl")
    if not right and config.min_golden_agreement == 0:
        right = {row.row_id for row in rows}
    golden = spread([row for row in rows if row.row_id in right], config.num_golden, seed=0)
    if not golden:
        raise InputError(
            f"{evaluation.uri}: {variant} judged none of {len(results)} rows rightly in both orders; golden judgments need "
            "one at least. Evaluate on more rows, or look at why the judge fails."
        )
    settings = {key: value for key, value in manifest.config.items() if key in EvaluateConfig.model_fields}
    return GoldenRows(tuple(golden), EvaluateConfig.model_validate(settings), VARIANT_STYLES[variant])


def ask_golden(
    address: str, golden: GoldenRows, config: DeployConfig, *, key_variable: str, keep_markup: bool
) -> Golden:
    """Send the rows to the model behind `address` and count the rows with both orders right.

    Through the judge's server the same requests go: it hands chat completions on as they are.

    Args:
        address: http(s)://host[:port], without /v1.
        key_variable: whose value is sent as the key, if it is set.
        keep_markup: the server is a vLLM that leaves reason and answer in one text (see `EndpointEngine`).

    Raises:
        ClusterError: the judge does not answer, or agrees on too few rows.
    """
    from reasongenrm.generation.endpoint import EndpointEngine

    base_url = f"{address.rstrip('/')}/v1"
    engine_config = EngineConfig(
        concurrency=_CONCURRENCY, timeout_seconds=config.golden_timeout_seconds, max_retries=_MAX_RETRIES
    )
    try:
        engine = EndpointEngine(base_url, engine_config, keep_markup=keep_markup, key_variable=key_variable)
        with contextlib.closing(engine):
            settings = golden.settings.model_copy(update={"votes": 1})  # greedy, whatever was voted on
            judgments = judge_benchmark(engine, golden.rows, settings, golden.style)
    except EngineError as error:
        raise ClusterError(
            f"golden judgments: {error} The key that the judge asks for is read from {key_variable}; from outside the "
            "cluster, forward a port (kubectl port-forward) and name it as deploy.golden_endpoint."
        ) from error
    right = [result.row_id for result in row_results(judgments) if result.accuracy == 1.0]
    found = Golden(base_url, engine.model_name, tuple(judgments), len(right) / len(golden.rows))
    if found.agreement < config.min_golden_agreement:
        raise ClusterError(
            f"golden judgments: the new pods judged {len(right)} of {len(golden.rows)} rows as the evaluation did; expected "
            f"{config.min_golden_agreement:.0%} at least (deploy.min_golden_agreement). {_examples(judgments, right)}"
        )
    return found


def _examples(judgments: Sequence[Judgment], right: Sequence[str]) -> str:
    wrong = next(found for found in judgments if found.row_id not in right and found.verdict != found.label)
    said = wrong.verdict or f"no verdict in {wrong.answer[:80]!r}"
    return f"Row {wrong.row_id}, {wrong.order}: {said}, expected {wrong.label}."
