"""--dry-run of run and submit, and config show."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from reasongenrm.cli import app
from reasongenrm.config import load_config
from tests.judges import row, write_rows
from tests.tiny import tiny_checkpoint


def invoke(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, list(arguments))


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected\nQ,good,bad\nQ,same,same\n")
    rows = write_rows(tmp_path / "rows.jsonl", [row("own", 1)])
    model = tiny_checkpoint(tmp_path / "model", "chatml")
    return ["--preferences", str(tmp_path / "pairs.csv"), "--benchmark", rows, "--model", str(model)]


def test_dry_run_prints_counts_plan_and_config_and_starts_nothing(given: list[str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    result = invoke("run", *given, "--store", str(store), "--set", "deploy.apply=false", "--limit", "7", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "pairs.csv: 2 rows, read as TRL's explicit prompt\n  in 2, out 1, dropped_equal_answers 1\n" in result.stdout
    assert "rows.jsonl: 1 benchmark rows in 1 subset\n  in 1, out 1\n" in result.stdout
    assert "chat family chatml\nteacher: the model itself\nplan: " in result.stdout
    assert " hours on " in result.stdout
    config = yaml.safe_load(result.stdout.partition("\nconfig:\n")[2])
    assert (config["pairs"]["limit"], config["inputs"]["benchmark"]) == (7, given[3])
    assert not store.exists()


def test_dry_run_has_the_exit_code_of_the_run(given: list[str], tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("prompt,chosen\nQ,good\n")
    result = invoke("run", *given, "--set", "deploy.apply=false", "--dry-run")
    assert result.exit_code == 2
    assert "no format of preferences has these" in result.stderr


def test_submit_looks_at_the_same_and_uploads_nothing(given: list[str]) -> None:
    # No store is there to upload to, and no Kubeflow: either would be an error.
    result = invoke("submit", *given, "--store", "s3://none/runs", "--upload", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["inputs"]["preferences"]["counts"]["num_dropped_equal_answers"] == 1
    assert found["inputs"]["model"]["chat_family"] == "chatml"
    assert "H100" in found["plan"]
    assert found["config"]["inputs"]["model"] == given[5]
    refused = invoke("submit", *given, "--store", "s3://none/runs", "--dry-run")
    assert refused.exit_code == 2
    assert "a local path, which a pod cannot see" in refused.stderr


def test_config_show_says_where_a_value_comes_from_and_is_a_config(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("sft: {learning_rate: 0.5}\npairs: {limit: 9, columns: {prompt: question}}\n")
    result = invoke("config", "show", "--config", str(path), "--set", "sft.seed=3")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "  learning_rate: 0.5  # mine.yaml" in lines
    assert "  limit: 9  # mine.yaml" in lines
    assert "    prompt: question  # mine.yaml" in lines
    assert "  seed: 3  # --set" in lines
    assert "  order: mirrored" in lines
    (tmp_path / "shown.yaml").write_text(result.stdout)
    expected = load_config(path)
    sft = expected.sft.model_copy(update={"seed": 3})
    assert load_config(tmp_path / "shown.yaml") == expected.model_copy(update={"sft": sft})
    assert json.loads(invoke("config", "show", "--json").stdout)["pairs"]["order"] == "mirrored"
