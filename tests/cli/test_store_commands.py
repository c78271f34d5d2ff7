"""What a store holds, as people and as programs read it; and commands that read a store make none."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.config import EvaluateConfig, ModelConfig, RunConfig, SelectConfig
from reasongenrm.data.import_model import import_model
from reasongenrm.evaluation.report import trace_lineage
from reasongenrm.store.artifacts import ArtifactRef, Store, open_artifact
from reasongenrm.store.run_records import RunInputs, TaskRecord, end_run, new_run, save_run
from reasongenrm.store.served import ServedJudge, record_served
from reasongenrm.store.stage import Stage
from tests.cli.test_cli import invoke
from tests.tiny import tiny_checkpoint


def made(
    store: Store, name: str, extra: Mapping[str, Any] = {}, metrics: Mapping[str, Any] = {}, **inputs: ArtifactRef
) -> ArtifactRef:
    with Stage(store, name, SelectConfig(), inputs, extra) as stage:
        stage.add_bytes("content", f"{name} {extra}".encode())
        return stage.finish({"num_in": 4, "num_out": 3}, metrics)


def evaluated(store: Store, model: ArtifactRef, accuracy: float, consistent: float, seed: int = 0) -> ArtifactRef:
    with Stage(store, "evaluate_rewardbench", EvaluateConfig(seed=seed), {"model": model}, {"variant": "sft"}) as stage:
        stage.add_bytes("evaluation.json", f"{accuracy} {seed}".encode())
        return stage.finish({}, {"variant": "sft", "accuracy": accuracy, "consistent_fraction": consistent})


@pytest.fixture
def models(store: Store) -> tuple[ArtifactRef, ArtifactRef]:
    """An imported model, and one trained from it that was judged twice and is served."""
    base = made(store, "import_model", metrics={"source": "org/small-instruct", "revision": "c0ffee"})
    examples = made(store, "select_reasons", model=base)
    trained = made(store, "train_sft", {"variant": "sft"}, model=base, examples=examples)
    evaluated(store, trained, 0.5, 0.25)
    evaluated(store, trained, 0.9751, 0.95, seed=1)
    judge = ServedJudge(
        namespace="judges",
        name="main",
        variant="sft",
        model=trained,
        decision=trained,
        evaluation=None,
        revision="1",
        manifests=[],
        served_since="2026-11-30T10:00:00.000+00:00",
    )
    record_served(store, judge)
    return base, trained


def cells(line: str) -> list[str]:
    return [cell for cell in line.strip().split("  ") if cell]


def test_models_are_a_table_with_the_newest_figures_and_who_serves_them(
    store: Store, models: tuple[ArtifactRef, ArtifactRef]
) -> None:
    base, trained = models
    result = invoke("models", "--store", store.uri)
    assert result.exit_code == 0, result.stderr
    heads, first, second = result.stdout.splitlines()
    assert heads.split() == ["variant", "base", "accuracy", "consistent", "made", "served", "as", "model"]
    times = [open_artifact(ref).created_at[:16].replace("T", " ") for ref in models]
    assert [cell.strip() for cell in cells(first)] == ["base", "org/small-instruct", times[0], base.uri]
    figures = ["sft", "org/small-instruct", "97.5", "95.0", times[1], "judges/main", trained.uri]
    assert [cell.strip() for cell in cells(second)] == figures
    found = json.loads(invoke("models", "--store", store.uri, "--json").stdout)[1]
    assert [evaluation["metrics"]["accuracy"] for evaluation in found["evaluations"]] == [0.9751, 0.5]
    shown = ("sft", "org/small-instruct", "c0ffee", ["judges/main"], trained.uri)
    assert tuple(found[name] for name in ("variant", "base", "base_revision", "served_as", "uri")) == shown


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_addresses_are_whole_in_a_pipe_of_any_width(
    store: Store, models: tuple[ArtifactRef, ArtifactRef], columns: str
) -> None:
    run = new_run(
        RunInputs(preferences_uri=f"s3://b/{'p' * 900}", benchmark_uri="s3://b/rows", model_uri="m", teacher_uri="t"),
        RunConfig(),
    )
    save_run(store, run)
    code = "from reasongenrm.cli import main; main()"
    for command, *expected in (("models", *(ref.uri for ref in models)), ("runs", run.inputs.preferences_uri)):
        piped = subprocess.run(
            [sys.executable, "-c", code, command, "--store", store.uri],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": columns},
        )
        words = piped.stdout.split()
        assert [uri for uri in expected if uri not in words] == []


def test_lineage_is_shown_on_request(store: Store, models: tuple[ArtifactRef, ArtifactRef]) -> None:
    lines = invoke("models", "--store", store.uri, "--lineage").stdout.splitlines()
    told = [line.strip("│├└─ ").split("  ")[0] for line in lines[4:] if line]
    inside = [
        "import_model",
        "train_sft (sft)",
        "model: import_model",
        "examples: select_reasons",
        "model: import_model",
    ]
    assert told == inside
    assert "train_sft" not in invoke("models", "--store", store.uri).stdout.replace(models[1].uri, "")


def test_model_of_a_local_folder_is_listed_once_though_its_digest_is_its_inputs(store: Store, tmp_path: Path) -> None:
    base = import_model(store, ModelConfig(), str(tiny_checkpoint(tmp_path / "base", "chatml")))
    trained = made(store, "train_sft", {"variant": "sft"}, model=base)
    manifest = open_artifact(base)
    assert manifest.inputs == {"model": manifest.digest}
    listed = json.loads(invoke("models", "--store", store.uri, "--json").stdout)
    assert [(model["variant"], model["base"], model["uri"]) for model in listed] == [
        ("base", str(tmp_path / "base"), base.uri),
        ("sft", str(tmp_path / "base"), trained.uri),
    ]
    lines = invoke("models", "--store", store.uri, "--lineage").stdout.splitlines()
    told = [line.strip("│├└─ ").split("  ")[0] for line in lines[3:] if line]
    folder = f"model: {base.digest[:19]}"
    assert told == ["import_model", folder, "train_sft (sft)", "model: import_model", folder]
    assert [step.title for step in trace_lineage([trained])] == ["import_model", "train_sft (sft)"]


def test_runs_are_listed_and_one_is_shown(store: Store) -> None:
    inputs = RunInputs(
        preferences_uri="/data/p.jsonl", benchmark_uri="/data/b.jsonl", model_uri="org/m", teacher_uri="t"
    )
    ref = ArtifactRef(
        stage="select_winner",
        key="k",
        digest="d",
        uri="s3://b/decided",
        counts={"num_in": 4},
        metrics={"winner": "dpo", "passed": False},
    )
    metrics = {"variant": "dpo", "accuracy": 0.9751, "consistent_fraction": 0.95}
    judged = ref.model_copy(update={"stage": "evaluate_rewardbench", "metrics": metrics})
    tasks = tuple(TaskRecord(name=one.stage, seconds=2.5, reused=False, ref=one) for one in (judged, ref))
    run = new_run(inputs, RunConfig()).model_copy(update={"tasks": tasks})
    save_run(store, end_run(run, "failed", 5, "the loss is NaN"))
    listed = invoke("runs", "--store", store.uri).stdout.splitlines()
    figures = ["dpo", "97.5", "95.0", "not", "passed", "org/m", "/data/p.jsonl", "/data/b.jsonl"]
    assert listed[1].split() == [run.run_id, "failed", *run.started_at[:16].split("T"), *figures]
    shown = invoke("runs", "--store", store.uri, "--run", run.run_id).stdout
    for part in ("the loss is NaN", "preferences: /data/p.jsonl", "select_winner  2.5 s  in 4", "s3://b/decided"):
        assert part in shown
    assert json.loads(invoke("runs", "--store", store.uri, "--json").stdout)[0]["exit_code"] == 5
    unknown = invoke("runs", "--store", store.uri, "--run", "nope")
    assert unknown.exit_code == 2
    assert f"no run 'nope'; it holds {run.run_id}" in unknown.stderr


def test_empty_store_is_told(store: Store) -> None:
    assert "no runs in" in invoke("runs", "--store", store.uri).stderr
    assert "no models in" in invoke("models", "--store", store.uri).stderr


@pytest.mark.parametrize(
    "command",
    [
        ["models"],
        ["runs"],
        ["serve", "--model", "s3://b/m"],
        ["evaluate", "--model", "s3://b/m", "--benchmark", "{rows}"],
    ],
    ids=lambda command: command[0],
)
def test_command_that_reads_a_store_makes_none_where_it_was_mistyped(command: list[str], tmp_path: Path) -> None:
    rows = Path(__file__).parents[2] / "examples" / "demo" / "benchmark.jsonl"
    folder = tmp_path / ".reasongenmr"
    result = invoke(*(part.format(rows=rows) for part in command), "--store", str(folder))
    assert result.exit_code == 3
    assert f"{folder}: there is no store here (no folder {folder}/store). Give --store the folder" in result.stderr
    assert not folder.exists()
