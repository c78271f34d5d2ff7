"""select_winner, the gate: evaluations in, the decision and the report out.

`decision.py` decides, `report.py` and `report_page.py` tell; this module reads what they need from the artifacts, and
from `served.py`'s record who is served now.
"""

from collections.abc import Mapping

from reasongenrm.config import DeployConfig, GateConfig
from reasongenrm.data.benchmarks import BenchmarkRow
from reasongenrm.errors import validated
from reasongenrm.evaluation.decision import Champion, check_same_rows, decide, decision_markdown
from reasongenrm.evaluation.metrics import Difference, Evaluation, RowResult, paired_difference, row_results
from reasongenrm.evaluation.report import build_report, parse_training_log, trace_lineage
from reasongenrm.evaluation.report_page import render_html
from reasongenrm.records import Judgment
from reasongenrm.store.artifacts import ArtifactRef, Store, open_artifact, read_file, read_records
from reasongenrm.store.served import ServedJudge, served_judge
from reasongenrm.store.stage import Stage
from reasongenrm.variants import BASE


def select_winner(
    store: Store,
    config: GateConfig,
    evaluations: Mapping[str, ArtifactRef],
    trainings: Mapping[str, ArtifactRef],
    deploy: DeployConfig,
) -> ArtifactRef:
    """Stage: lay the variants side by side, choose the best candidate, say whether it is good enough.

    Args:
        store: where the artifact goes: decision.json, decision.md, report.json, report.html.
        evaluations: by variant, in the order in which the report shows them.
        trainings: by variant, the trained checkpoints, whose training_log.json gives the curves.
        deploy: names the InferenceService that the winner would take over; whom it serves now is the champion.

    Returns:
        The artifact; its metrics have `winner`, `passed`, `summary`, the winner's `accuracy` and, where it was
        measured, its `calibration_temperature` and `calibration_bias`.

    Raises:
        ConfigError: a candidate, or the base model that must be beaten, was not evaluated.
        InputError: the evaluations are of different benchmarks, or a file cannot be read.
    """
    inputs = {f"evaluation_{variant}": ref for variant, ref in evaluations.items()}
    inputs |= {f"training_{variant}": ref for variant, ref in trainings.items()}
    served = served_judge(store, deploy.namespace, deploy.name)
    if served:
        inputs |= {"champion_model": served.model}
        inputs |= {"champion_evaluation": served.evaluation} if served.evaluation else {}
    extra = {"replaces": f"{deploy.namespace}/{deploy.name}"} if served else {}
    with Stage(store, "select_winner", config, inputs, extra) as stage:
        if stage.done:
            return stage.done
        figures = {variant: read_evaluation(ref) for variant, ref in evaluations.items()}
        judgments = {variant: read_records(ref, "judgments.jsonl", Judgment) for variant, ref in evaluations.items()}
        results = {variant: row_results(judged) for variant, judged in judgments.items()}
        check_same_rows(figures)
        differences = differences_to_base(figures, results)
        champion = _read_champion(served, figures, results) if served else None
        digests = {variant: open_artifact(ref).inputs.get("model", "") for variant, ref in evaluations.items()}
        decision = decide(config, figures, differences, champion, digests)
        report = build_report(
            figures,
            judgments,
            read_records(next(iter(evaluations.values())), "rows.jsonl", BenchmarkRow),
            differences=differences,
            decision=decision,
            training_logs={
                variant: parse_training_log(read_file(ref, "training_log.json"), f"{ref.uri}/training_log.json")
                for variant, ref in trainings.items()
            },
            lineage=trace_lineage([*trainings.values(), *evaluations.values()]),
        )
        stage.add_bytes("decision.json", decision.model_dump_json(indent=2).encode() + b"\n")
        stage.add_bytes("decision.md", decision_markdown(decision).encode())
        stage.add_bytes("report.json", report.model_dump_json(indent=2).encode() + b"\n")
        stage.add_bytes("report.html", render_html(report).encode())
        metrics = {
            "winner": decision.winner,
            "passed": decision.passed,
            "summary": decision.summary,
            "accuracy": report.subject.accuracy,
        }
        calibration = figures[decision.winner].calibration
        if calibration is not None:
            metrics |= {"calibration_temperature": calibration.temperature, "calibration_bias": calibration.bias}
        return stage.finish({"num_in": len(evaluations), "num_out": 1}, metrics)


def _read_champion(
    served: ServedJudge, evaluations: Mapping[str, Evaluation], results: Mapping[str, list[RowResult]]
) -> Champion:
    """The served judge with its figures, and how far the variants are from it on the same rows."""
    evaluation = read_evaluation(served.evaluation) if served.evaluation else None
    differences = {}
    if served.evaluation and evaluation:
        theirs = row_results(read_records(served.evaluation, "judgments.jsonl", Judgment))
        differences = {
            variant: _difference(found, theirs, evaluation)
            for variant, found in results.items()
            if evaluations[variant].benchmark.rows_digest == evaluation.benchmark.rows_digest
        }
    return Champion(
        service=f"{served.namespace}/{served.name}",
        variant=served.variant,
        model_digest=served.model.digest,
        served_since=served.served_since,
        evaluation=evaluation,
        differences=differences,
    )


def differences_to_base(
    evaluations: Mapping[str, Evaluation], results: Mapping[str, list[RowResult]]
) -> dict[str, Difference]:
    """Every variant's accuracy minus the base model's, paired by row; empty without a base model.

    Raises:
        InputError: two variants judged different rows.
    """
    if BASE not in evaluations:
        return {}
    return {
        variant: _difference(found, results[BASE], evaluations[BASE])
        for variant, found in results.items()
        if variant != BASE
    }


def _difference(ours: list[RowResult], theirs: list[RowResult], settings: Evaluation) -> Difference:
    """Ours minus theirs, with the intervals of the evaluation that they are held against."""
    return paired_difference(ours, theirs, confidence=settings.confidence)


def read_evaluation(ref: ArtifactRef | str) -> Evaluation:
    """The figures of an evaluation, given by its reference or its folder's URI.

    Raises:
        InputError: they are of another version.
    """
    uri = ref if isinstance(ref, str) else ref.uri
    expected = "an evaluation of this version. Run evaluate_rewardbench again."
    with validated(f"{uri}/evaluation.json", expected):
        return Evaluation.model_validate_json(read_file(ref, "evaluation.json"))
