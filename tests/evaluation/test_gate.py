import json
from pathlib import Path

import pytest

from reasongenrm.config import DeployConfig, EvaluateConfig, GateConfig, SFTConfig
from reasongenrm.data.benchmarks import Benchmark
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.evaluation.calibration import Calibration, fit
from reasongenrm.evaluation.decision import Decision
from reasongenrm.evaluation.evaluate import evaluation_counts, evaluation_files, evaluation_metrics
from reasongenrm.evaluation.gate import select_winner
from reasongenrm.evaluation.metrics import HeldScore
from reasongenrm.evaluation.report import Report
from reasongenrm.store.artifacts import ArtifactRef, Store, open_artifact, read_file
from reasongenrm.store.served import ServedJudge, record_served
from reasongenrm.store.stage import Stage
from tests.judges import Judge, always_a, benchmark_of, contrarian, evaluated, judged, oracle

LOG = [{"step": 1, "loss": 0.9}, {"step": 2, "loss": 0.4}]


def evaluation_of(
    store: Store,
    variant: str,
    benchmark: Benchmark,
    judge: Judge,
    model: ArtifactRef | None = None,
    calibration: Calibration | None = None,
    held: HeldScore | None = None,
) -> ArtifactRef:
    """An evaluation's artifact as the stage leaves it, by a judge whose figures are known."""
    inputs: dict[str, ArtifactRef | str] = {"benchmark": benchmark.digest} | ({"model": model} if model else {})
    with Stage(store, "evaluate_rewardbench", EvaluateConfig(), inputs, {"variant": variant}) as stage:
        evaluation = evaluated(benchmark, judge, variant).model_copy(update={"calibration": calibration, "held": held})
        for name, data in evaluation_files(evaluation, judged(benchmark, judge), benchmark).items():
            stage.add_bytes(name, data)
        return stage.finish(evaluation_counts(evaluation), evaluation_metrics(evaluation))


def training_of(store: Store, variant: str, log: object = LOG) -> ArtifactRef:
    with Stage(store, "train_sft", SFTConfig(), {"examples": "sha256:1"}, {"variant": variant}) as stage:
        stage.add_bytes("training_log.json", json.dumps(log).encode())
        return stage.finish({"num_in": 2, "num_out": 2})


def test_decision_carries_the_winners_calibration_and_nobody_elses(store: Store, tmp_path: Path) -> None:
    benchmark = benchmark_of(tmp_path, {"sums": 12})
    sure, unsure = fit([0.9, 0.2], [True, False]), fit([0.9, 0.9], [True, False])
    assert sure.temperature != unsure.temperature
    evaluations = {
        "base": evaluation_of(store, "base", benchmark, always_a, calibration=unsure),
        "sft": evaluation_of(store, "sft", benchmark, oracle, calibration=sure),
        "dpo": evaluation_of(store, "dpo", benchmark, contrarian),
    }
    metrics = select_winner(store, GateConfig(), evaluations, {}, DeployConfig()).metrics
    assert (metrics["calibration_temperature"], metrics["calibration_bias"]) == (sure.temperature, sure.bias)


def test_winner_is_chosen_and_the_report_written(store: Store, tmp_path: Path) -> None:
    benchmark = benchmark_of(tmp_path, {"sums": 12})
    trained = training_of(store, "sft")
    evaluations = {
        "base": evaluation_of(store, "base", benchmark, always_a),
        "sft": evaluation_of(store, "sft", benchmark, oracle, trained),
        "dpo": evaluation_of(store, "dpo", benchmark, contrarian),
    }
    ref = select_winner(store, GateConfig(), evaluations, {"sft": trained}, DeployConfig())
    assert ref.metrics == {
        "winner": "sft",
        "passed": True,
        "summary": "ReasonGenRM-sft wins with 100.0 % and passes the gate as the best of 2 candidates.",
        "accuracy": 1.0,
    }
    decision = Decision.model_validate_json(read_file(ref, "decision.json"))
    report = Report.model_validate_json(read_file(ref, "report.json"))
    page = read_file(ref, "report.html").decode()
    assert b"ReasonGenRM-sft wins" in read_file(ref, "decision.md")
    assert report.decision == decision
    assert report.differences["sft"].accuracy == 0.5
    assert report.differences["dpo"].accuracy == -0.5
    assert [curve.values for curve in report.curves] == [(0.9, 0.4)]
    assert [step.title for step in report.lineage] == [
        "train_sft (sft)",
        *("evaluate_rewardbench (base)", "evaluate_rewardbench (sft)", "evaluate_rewardbench (dpo)"),
    ]
    assert "ReasonGenRM-sft passes the gate" in page
    assert open_artifact(ref).input_uris["evaluation_sft"] == evaluations["sft"].uri
    assert select_winner(store, GateConfig(), evaluations, {"sft": trained}, DeployConfig()) == ref


def test_gate_says_no_without_failing(store: Store, tmp_path: Path) -> None:
    benchmark = benchmark_of(tmp_path, {"sums": 5})
    evaluations = {v: evaluation_of(store, v, benchmark, j) for v, j in {"base": oracle, "sft": always_a}.items()}
    ref = select_winner(store, GateConfig(candidates=("sft",)), evaluations, {}, DeployConfig())
    assert (ref.metrics["winner"], ref.metrics["passed"]) == ("sft", False)
    assert "No candidate passes the gate" in str(ref.metrics["summary"])
    assert "does not pass the gate" in read_file(ref, "report.html").decode()


def test_base_that_must_be_beaten_must_be_there(store: Store, tmp_path: Path) -> None:
    evaluations = {"sft": evaluation_of(store, "sft", benchmark_of(tmp_path, {"sums": 3}), oracle)}
    with pytest.raises(ConfigError, match=r"no evaluation of base \(found: sft\)"):
        select_winner(store, GateConfig(candidates=("sft",)), evaluations, {}, DeployConfig())
    assert (
        select_winner(store, GateConfig(candidates=("sft",), beat_base=False), evaluations, {}, DeployConfig()).metrics[
            "winner"
        ]
        == "sft"
    )


def test_evaluations_of_other_rows_are_refused(store: Store, tmp_path: Path) -> None:
    evaluations = {
        "base": evaluation_of(store, "base", benchmark_of(tmp_path, {"sums": 3}, "a.jsonl"), oracle),
        "sft": evaluation_of(store, "sft", benchmark_of(tmp_path, {"sums": 4}, "b.jsonl"), oracle),
    }
    with pytest.raises(InputError, match=r"base was judged on 3 rows of .*expected the same rows"):
        select_winner(store, GateConfig(candidates=("sft",)), evaluations, {}, DeployConfig())


def serve(store: Store, model: ArtifactRef, evaluation: ArtifactRef | None, name: str = "reasongenrm") -> None:
    """Write down that a model is served, as deploy_kserve does."""
    record_served(
        store,
        ServedJudge(
            namespace="reasongenrm",
            name=name,
            variant="sft",
            model=model,
            decision=model,
            evaluation=evaluation,
            revision="0" * 16,
            manifests=[],
            served_since="2026-11-24T10:00:00.000+00:00",
        ),
    )


def test_judge_that_is_served_now_must_be_beaten_row_by_row(store: Store, tmp_path: Path) -> None:
    benchmark = benchmark_of(tmp_path, {"sums": 12})
    old, new = training_of(store, "old"), training_of(store, "new", LOG[:1])
    evaluations = {
        "base": evaluation_of(store, "base", benchmark, contrarian),
        "sft": evaluation_of(store, "sft", benchmark, always_a, new),
    }
    config = GateConfig(candidates=("sft",), min_accuracy_low=0.0, min_consistent_fraction=0.0)
    first = select_winner(store, config, evaluations, {}, DeployConfig())
    serve(store, old, evaluation_of(store, "champion", benchmark, oracle, old))
    second = select_winner(store, config, evaluations, {}, DeployConfig())
    elsewhere = select_winner(store, config, evaluations, {}, DeployConfig(name="another"))
    assert (first.metrics["passed"], second.metrics["passed"], elsewhere) == (True, False, first)
    decision = Decision.model_validate_json(read_file(second, "decision.json"))
    assert decision.champion is not None
    assert decision.champion.differences["sft"].accuracy == -0.5  # right in one order of two against right in both
    assert open_artifact(second).inputs["champion_model"] == old.digest
    assert "50.0 % is not above the 100.0 % of the judge served now" in read_file(second, "decision.md").decode()
    assert "of the judge served now" in read_file(second, "report.html").decode()


def test_judge_that_is_served_already_passes_again(store: Store, tmp_path: Path) -> None:
    benchmark = benchmark_of(tmp_path, {"sums": 10})
    trained = training_of(store, "sft")
    evaluations = {
        "base": evaluation_of(store, "base", benchmark, contrarian),
        "sft": evaluation_of(store, "sft", benchmark, oracle, trained),
    }
    serve(store, trained, evaluations["sft"])
    ref = select_winner(store, GateConfig(candidates=("sft",)), evaluations, {}, DeployConfig())
    assert ref.metrics["passed"]
    assert (
        "it is the judge served now (reasongenrm/reasongenrm, ReasonGenRM-sft) itself"
        in read_file(ref, "decision.md").decode()
    )


def test_evaluation_of_another_version_is_named(store: Store) -> None:
    with Stage(store, "evaluate_rewardbench", EvaluateConfig(), {"benchmark": "sha256:1"}) as stage:
        stage.add_bytes("evaluation.json", b'{"schema_version": 2}')
        old = stage.finish({"num_in": 1, "num_out": 1})
    with pytest.raises(InputError, match=r"evaluation\.json: schema_version: .*Run evaluate_rewardbench again"):
        select_winner(store, GateConfig(candidates=("base",)), {"base": old}, {}, DeployConfig())
