"""compare: evaluations by run, variant, artifact and folder; each form of its answer."""

import csv
import io
import json
from pathlib import Path

import pytest

from reasongenrm.config import RunConfig
from reasongenrm.evaluation.evaluate import evaluation_files
from reasongenrm.store.artifacts import ArtifactRef, Store
from reasongenrm.store.run_records import RunInputs, TaskRecord, new_run, save_run
from tests.cli.test_cli import invoke
from tests.evaluation.test_gate import evaluation_of
from tests.evaluation.test_metrics import A, B, scripted
from tests.judges import benchmark_of, evaluated, judged, oracle

HALF = scripted((A, B), (B, A), (A, A), (A, B))  # right, wrong, the same letter twice, right: 2.5 of 4


def run_of(store: Store, folder: Path) -> tuple[str, dict[str, ArtifactRef]]:
    """A run that evaluated base and sft on four rows."""
    benchmark = benchmark_of(folder, {"sums": 4})
    refs = {
        "sft": evaluation_of(store, "sft", benchmark, oracle),
        "base": evaluation_of(store, "base", benchmark, HALF),
    }
    inputs = RunInputs(preferences_uri="p", benchmark_uri="b", model_uri="m", teacher_uri="t")
    tasks = tuple(TaskRecord(name=ref.stage, seconds=1.0, reused=False, ref=ref) for ref in refs.values())
    run = new_run(inputs, RunConfig()).model_copy(update={"tasks": tasks})
    save_run(store, run)
    return run.run_id, refs


def test_variants_of_a_run_are_compared_with_base(store: Store, tmp_path: Path) -> None:
    run_id, refs = run_of(store, tmp_path)
    result = invoke("compare", run_id, "--store", store.uri)
    assert result.exit_code == 0, result.output
    heads, base, sft = (line.split() for line in result.stdout.splitlines())
    assert heads[:2] == ["judge", "accuracy"]
    assert base[:2] == ["base", "62.5"]
    assert sft[:2] == ["ReasonGenRM-sft", "100.0"]
    assert sft[3] == "+37.5"
    assert sft[-5:] == ["2", "0", "0.5", "100.0", "0.0"]  # better, worse, p = 2 / 2^2, consistent, unparsed
    assert "the judges differ on 2 of 4 rows of bench.jsonl; --rows lists them" in result.stderr
    by_uri = invoke("compare", refs["base"].uri, f"{run_id}/sft", "--store", store.uri)
    assert by_uri.stdout == result.stdout


def test_rows_are_listed_with_every_judges_verdicts(store: Store, tmp_path: Path) -> None:
    run_id, _ = run_of(store, tmp_path)
    arguments = ("compare", f"{run_id}/base", f"{run_id}/sft", "--store", store.uri, "--rows")
    lines = [line.split() for line in invoke(*arguments).stdout.splitlines()]
    assert lines == [
        ["row", "subset", "base", "ReasonGenRM-sft"],
        ["sums/1", "sums", "0", "BA", "1", "AB"],
        ["sums/2", "sums", "0.5", "AA", "1", "AB"],
    ]
    [_, second] = csv.DictReader(io.StringIO(invoke(*arguments, "--format", "csv").stdout))
    assert (second["row_id"], second["base accuracy"], second["base verdict_rejected_first"]) == ("sums/2", "0.5", A)
    assert second["ReasonGenRM-sft verdict_rejected_first"] == B


def test_folders_of_evaluate_need_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    benchmark = benchmark_of(tmp_path, {"sums": 4})
    for name, judge in (("weak", HALF), ("strong", oracle)):
        (tmp_path / name).mkdir()
        for file_name, data in evaluation_files(
            evaluated(benchmark, judge, "judge"), judged(benchmark, judge), benchmark
        ).items():
            (tmp_path / name / file_name).write_bytes(data)
    found = json.loads(invoke("compare", "weak", "strong", "--format", "json").stdout)
    assert [judge["name"] for judge in found["judges"]] == ["weak", "strong"]  # both call themselves "judge"
    assert found["judges"][1]["test"] == {"num_better": 2, "num_worse": 0, "p_value": 0.5}
    assert [row["row_id"] for row in found["rows"]] == ["sums/1", "sums/2"]
    [weak, strong] = csv.DictReader(io.StringIO(invoke("compare", "weak", "strong", "--format", "csv").stdout))
    assert (weak["accuracy"], weak["difference"], strong["difference"], strong["p_value"]) == (
        "0.625",
        "",
        "0.375",
        "0.5",
    )
    for kind, start in (("md", "| judge | accuracy |"), ("latex", r"\begin{tabular}{lrrrrrrrrr}")):
        assert invoke("compare", "weak", "strong", "--format", kind).stdout.startswith(start)
    (tmp_path / "weak" / "judgments.jsonl").unlink()
    assert "judgments.jsonl: no such file" in invoke("compare", "weak", "strong").stderr
    assert not (tmp_path / ".reasongenrm").exists()


def test_what_cannot_be_found_says_what_to_give(store: Store, tmp_path: Path) -> None:
    run_id, _ = run_of(store, tmp_path)
    for names, message in (
        (["nope", run_id], f"nope: no folder with evaluation.json, and no run of {store.uri}, which holds {run_id}"),
        ([f"{run_id}/dpo", run_id], f"{run_id}/dpo: run {run_id} evaluated base, sft. Give one of them."),
        ([f"{run_id}/sft"], "one judge (ReasonGenRM-sft) cannot be compared; expected two or more"),
    ):
        result = invoke("compare", *names, "--store", store.uri)
        assert (result.exit_code, message in " ".join(result.stderr.split())) == (2, True), result.stderr
