"""The winner's folder as `reasongenrm run` leaves it: its checkpoint, and its calibration beside it."""

from pathlib import Path

from reasongenrm.config import EvaluateConfig
from reasongenrm.data.chat import REASONING_PARSER_FILE
from reasongenrm.evaluation.calibration import load_calibration
from reasongenrm.evaluation.evaluate import evaluation_files
from reasongenrm.evaluation.metrics import evaluate
from reasongenrm.runs.finished import REPORT_FILES, FinishedRun
from reasongenrm.store.artifacts import ArtifactRef, Store, open_artifact
from reasongenrm.store.run_records import RunRecord, TaskRecord
from reasongenrm.store.stage import Stage
from tests.judges import benchmark_of, judged, oracle
from tests.tiny import tiny_checkpoint


def finished(store: Store, folder: Path, of_label: float | None) -> tuple[RunRecord, ArtifactRef]:
    """What a run leaves whose winner gave the label so much probability; None: none was known."""
    config = EvaluateConfig()
    with Stage(store, "train_sft", config, {"examples": "sha256:0"}, {"variant": "sft"}) as stage:
        stage.add_folder(tiny_checkpoint(folder / "model", "chatml", opening_role="reason"))
        model = stage.finish({"num_in": 1, "num_out": 1})
    benchmark = benchmark_of(folder, {"sums": 12})
    judgments = judged(benchmark, oracle)
    if of_label is not None:
        judgments = [
            judgment.model_copy(update={"p_a": of_label if judgment.label == "[[A]]" else 1 - of_label})
            for judgment in judgments
        ]
    evaluation = evaluate(judgments, benchmark, config, variant="sft", model=model.uri, style="reason")
    with Stage(store, "evaluate_rewardbench", config, {"model": model}, {"variant": "sft", "p": of_label}) as stage:
        for name, data in evaluation_files(evaluation, judgments, benchmark).items():
            stage.add_bytes(name, data)
        evaluated = stage.finish({"num_in": 1, "num_out": 1}, {"variant": "sft"})
    with Stage(store, "select_winner", config, {"evaluation_sft": evaluated}) as stage:
        for name in REPORT_FILES:
            stage.add_bytes(name, b"-")
        decided = stage.finish({"num_in": 1, "num_out": 1}, {"winner": "sft"})
    tasks = tuple(TaskRecord(name=ref.stage, seconds=1.0, reused=False, ref=ref) for ref in (evaluated, decided))
    return RunRecord.model_construct(tasks=tasks), model


def test_winners_folder_has_its_calibration_and_the_store_is_left_alone(store: Store, tmp_path: Path) -> None:
    record, model = finished(store, tmp_path, 0.6)
    before = open_artifact(model).digest
    FinishedRun(record, tmp_path / "report").fetch_winner(tmp_path / "winner")
    calibration = load_calibration(tmp_path / "winner")
    assert calibration is not None
    assert calibration.num_judgments == 24
    assert calibration.apply(0.6) > 0.8  # it was always right, and only said 0.6
    assert (tmp_path / "winner" / REASONING_PARSER_FILE).is_file()
    assert open_artifact(model).digest == before


def test_winner_without_probabilities_has_no_calibration_even_after_one_that_had(store: Store, tmp_path: Path) -> None:
    record, _ = finished(store, tmp_path, 0.6)
    FinishedRun(record, tmp_path / "report").fetch_winner(tmp_path / "winner")
    record, _ = finished(store, tmp_path, None)
    FinishedRun(record, tmp_path / "report").fetch_winner(tmp_path / "winner")
    assert load_calibration(tmp_path / "winner") is None
