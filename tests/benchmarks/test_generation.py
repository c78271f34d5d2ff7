"""The generation benchmark from end to end, on the stand-in for vLLM (tests/generation/stand_in)."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.generation import app

ROOT = Path(__file__).parents[2]
STAND_IN = ROOT / "tests" / "generation" / "stand_in"


def test_all_ways_write_the_same_work_and_their_ratio_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "script.json").write_text(json.dumps([100] * 8))  # no stop token: every sample is as long as it may be
    monkeypatch.syspath_prepend(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{STAND_IN}:{ROOT}")
    monkeypatch.setenv("VLLM_STAND_IN", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = "--shape tiny --prompts 3 --samples 2 --max-tokens 5 --repeats 4 --output"
    result = CliRunner().invoke(app, [*command.split(), str(tmp_path / "report.json")])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    rates = report["tokens_per_second"]
    assert {way: len(rounds) for way, rounds in rates.items()} == {"vLLM": 4, "vLLM, seeded": 4, "engine": 4}
    assert result.output.count(" 30 tokens") == 12  # 3 prompts x 2 samples x 5 tokens, three ways, four rounds
    assert report["engine / vLLM"] == [
        ours / theirs for ours, theirs in zip(rates["engine"], rates["vLLM"], strict=True)
    ]
    assert (report["vllm"], report["device"], report["shape"]) == ("stand-in", "none", "tiny")
    (start,) = [json.loads(line) for log in tmp_path.glob("log-*.jsonl") for line in log.read_text().splitlines()[:1]]
    assert start["options"] == ["dummy", True, 16384]
