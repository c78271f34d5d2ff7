"""The whole loop as a user starts it: kfp.local, every stage, the report, the endpoint; and again, reusing
everything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_run_ends_with_a_judged_pair_and_a_second_run_reuses_every_stage(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", "chatml")
    store, demo = tmp_path / "store", ROOT / "examples" / "demo"
    command = [sys.executable, "-m", "reasongenrm", "run", "--store", str(store), "--model", str(model)]
    command += ["--preferences", str(demo / "preferences.jsonl"), "--benchmark", str(demo / "benchmark.jsonl")]
    command += ["--config", str(ROOT / "pipelines" / "configs" / "smoke.yaml"), "--teacher", "demo"]
    command += ["--set", "distill.teacher_model=demo-format-checker"]  # each run serves it at another port
    env = {**os.environ, "COLUMNS": "120"}

    first = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert first.returncode == 0, first.stderr[-3000:]
    assert first.stderr.count(": done in ") == 17
    assert "prepare_pairs: dropped 236: over limit" in first.stderr
    for judge in ("base", "GenRM", "ReasonGenRM-sft", "ReasonGenRM-dpo"):
        assert f"\n {judge} " in first.stdout
    assert f"report: {store / 'report' / 'report.html'}" in first.stdout
    for part in ("Reason (as given): ", "Reason (answers swapped: its A is your B): ", "Verdict: "):
        assert part in first.stdout
    assert "<html" in (store / "report" / "report.html").read_text(encoding="utf-8")
    service = yaml.safe_load((store / "report" / "inferenceservice.yaml").read_text(encoding="utf-8"))
    assert service["kind"] == "InferenceService"
    assert list((store / "work").iterdir()) == []

    second = subprocess.run([*command, "--no-try", "--json"], capture_output=True, text=True, env=env, check=False)
    assert second.returncode == 0, second.stderr[-3000:]
    assert second.stderr.count(": reused") == 17
    record = json.loads(second.stdout)
    assert (record["state"], record["exit_code"]) == ("finished", 0)
    assert all(task["reused"] for task in record["tasks"])
