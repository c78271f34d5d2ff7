"""Golden judgments: rows that the winner judged right in both orders, asked again of its new pods.

In go the winner's own evaluation and the address of the new pods, out comes how far they agree. That proves what no
probe does: the right checkpoint, the right chat template, a key that works, and verdicts that can be read. Where a
judge's server is deployed it is asked as its clients do, by /v1/pairwise; else the model is asked as the evaluation
did.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from reasongenrm.config import DeployConfig, EngineConfig, EvaluateConfig
from reasongenrm.data.benchmarks import LABELS, BenchmarkRow, spread
from reasongenrm.deploy.transformer import PREDICTOR_KEY
from reasongenrm.errors import ClusterError, EngineError, InputError
from reasongenrm.evaluation.evaluate import judge_benchmark
from reasongenrm.evaluation.metrics import row_results
from reasongenrm.generation.endpoint import EndpointEngine
from reasongenrm.judge.api import PairwiseResponse
from reasongenrm.judge.client.client import Judge
from reasongenrm.records import OPPOSITE, Judgment, Order, Record, Verdict, dump_records, parse_records
from reasongenrm.store.artifacts import ArtifactRef, open_artifact, read_file
from reasongenrm.variants import VARIANTS, JudgeStyle

_MAX_RETRIES = 5  # 15 s in all: a Service's endpoints follow its pods with a delay
_CONCURRENCY = 8


@dataclass(frozen=True)
class GoldenRows:
    """What is asked, and how a model without a judge's server is asked: the evaluation's settings, the variant's
    style."""

    rows: tuple[BenchmarkRow, ...]
    settings: EvaluateConfig
    style: JudgeStyle


class GoldenJudgment(Record):
    """What the new pods said about one row in one order; verdicts and `p_a`, P([[A]]) in [0, 1], in this order's
    terms."""

    row_id: str
    order: Order
    label: Verdict
    verdict: Verdict | None
    reason: str | None
    p_a: float | None


@dataclass(frozen=True)
class Golden:
    """What the new pods said: both orders of every row."""

    address: str
    model_name: str
    judgments: tuple[GoldenJudgment, ...]

    @property
    def wrong(self) -> dict[str, GoldenJudgment]:
        """Row -> a judgment of it that is not its label."""
        return {judgment.row_id: judgment for judgment in self.judgments if judgment.verdict != judgment.label}

    @property
    def num_rows(self) -> int:
        """Rows that were asked."""
        return len({judgment.row_id for judgment in self.judgments})

    @property
    def agreement(self) -> float:
        """Share of the rows with both orders right, in [0, 1]."""
        return 1 - len(self.wrong) / self.num_rows

    def files(self, min_agreement: float) -> dict[str, bytes]:
        """golden.jsonl, a judgment per line, and golden.json, the figures."""
        figures = {
            "address": self.address,
            "model_name": self.model_name,
            "num_rows": self.num_rows,
            "agreement": self.agreement,
            "min_agreement": min_agreement,
        }
        return {
            "golden.jsonl": dump_records(self.judgments),
            "golden.json": json.dumps(figures, indent=2).encode() + b"\n",
        }


def choose_golden(evaluation: ArtifactRef, variant: str, config: DeployConfig) -> GoldenRows:
    """Rows that this judge judged rightly in both orders, spread over the subsets; the same ones every time.

    With `min_golden_agreement: 0` a judge that got none right is asked other rows: its pods must answer, no more (a
    smoke run).

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
            f"{evaluation.uri}: {variant} judged none of {len(results)} rows rightly in both orders; golden judgments "
            "need one at least. Evaluate on more rows, or look at why the judge fails."
        )
    settings = {key: value for key, value in manifest.config.items() if key in EvaluateConfig.model_fields}
    return GoldenRows(tuple(golden), EvaluateConfig.model_validate(settings), VARIANTS[variant].style)


def ask_golden(address: str, golden: GoldenRows, config: DeployConfig, *, has_judge: bool, keep_markup: bool) -> Golden:
    """Have the rows judged behind `address`, and count those with both orders right.

    Args:
        address: http(s)://host[:port], without /v1.
        has_judge: a judge's server answers there; its key is in JUDGE_API_KEY. Else the model does (VLLM_API_KEY).
        keep_markup: the model's server leaves reason and answer in one text (see `EndpointEngine`).

    Raises:
        ClusterError: the judge does not answer, or agrees on too few rows.
    """
    try:
        found = _ask_judge(address, golden, config) if has_judge else _ask_model(address, golden, config, keep_markup)
    except EngineError as error:
        raise ClusterError(
            f"golden judgments: {error} From outside the cluster, forward a port (kubectl port-forward) and name it as "
            "deploy.golden_endpoint."
        ) from error
    if found.agreement < config.min_golden_agreement:
        wrong = next(iter(found.wrong.values()))
        raise ClusterError(
            f"golden judgments: the new pods judged {found.num_rows - len(found.wrong)} of {found.num_rows} rows as "
            f"the evaluation did; expected {config.min_golden_agreement:.0%} at least (deploy.min_golden_agreement). "
            f"Row {wrong.row_id}, {wrong.order}: {wrong.verdict or 'no verdict'}, expected {wrong.label}."
        )
    return found


def _ask_judge(address: str, golden: GoldenRows, config: DeployConfig) -> Golden:
    """Ask as clients do: the server knows the style, the limits and the calibration of its model."""
    pairs = [([turn.model_dump() for turn in row.question], row.chosen, row.rejected) for row in golden.rows]
    with Judge(address, timeout=config.golden_timeout_seconds, max_retries=_MAX_RETRIES) as judge:
        answers: list[PairwiseResponse] = judge.compare_many(pairs, concurrency=_CONCURRENCY)
    judgments = [judgment for row, answer in zip(golden.rows, answers, strict=True) for judgment in _read(row, answer)]
    return Golden(judge.url, answers[0].model, tuple(judgments))


def _read(row: BenchmarkRow, answer: PairwiseResponse) -> Iterator[GoldenJudgment]:
    """An answer of the judge, which speaks of the caller's A (the chosen one), in the terms of each order's prompt."""
    for said in answer.judgments:
        order: Order = "chosen_first" if said.order == "given" else "rejected_first"
        label = LABELS[order]
        p_a = said.p_a if said.p_a is None or order == "chosen_first" else 1.0 - said.p_a
        verdict: Verdict | None = {"A": label, "B": OPPOSITE[label], None: None}[said.preferred]
        yield GoldenJudgment(row_id=row.row_id, order=order, label=label, verdict=verdict, reason=said.reason, p_a=p_a)


def _ask_model(address: str, golden: GoldenRows, config: DeployConfig, keep_markup: bool) -> Golden:
    """Ask as the evaluation did, once and greedily."""
    base_url = f"{address.rstrip('/')}/v1"
    engine_config = EngineConfig(
        concurrency=_CONCURRENCY, timeout_seconds=config.golden_timeout_seconds, max_retries=_MAX_RETRIES
    )
    engine = EndpointEngine(base_url, engine_config, keep_markup=keep_markup, key_variable=PREDICTOR_KEY)
    with contextlib.closing(engine):
        settings = golden.settings.model_copy(update={"votes": 1})
        found = judge_benchmark(engine, golden.rows, settings, golden.style)
        judgments = [
            GoldenJudgment.model_validate(each.model_dump(include={*GoldenJudgment.model_fields})) for each in found
        ]
        return Golden(base_url, engine.model_name, tuple(judgments))
