"""`reasongenrm plan`: what it prints, its JSON, and what it says when it cannot plan."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reasongenrm.cli import app
from reasongenrm.planning.measurements import Machine, Measurements, read_measurements
from tests.tiny import tiny_checkpoint

REFERENCE = "pipelines/configs/reference/qwen2.5-7b.yaml"


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1"})


def planned(*arguments: str) -> dict[str, Any]:
    ran = invoke("--json", *arguments)
    assert ran.exit_code == 0, ran.output
    plan: dict[str, Any] = json.loads(ran.stdout)
    return plan


def stage(plan: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(stage for stage in plan["stages"] if stage["stage"] == name)
    return found


def test_the_answer_comes_first_then_the_stages_then_what_they_rest_on() -> None:
    text = invoke(
        "--pairs", "80000", "--samples", "16", "--model", "8B", "--teacher", "70B", "--gpus", "8", "--price", "2"
    ).output
    lines = text.splitlines()
    assert "hours on 8 x H100 80GB" in lines[0]
    head, last, first_measurement = (
        next(number for number, line in enumerate(lines) if line.startswith(start))
        for start in ("stage", "deploy_kserve", "[1]")
    )
    assert head < last < first_measurement
    assert "?" not in text
    assert max(map(len, lines[head:last])) <= 120


def test_numbers_come_from_the_configuration_and_options_go_first() -> None:
    plan = planned("--config", REFERENCE)  # pairs.order random, 16 samples, teacher Llama-3.1-70B by its hub name
    assert stage(plan, "distill_reasons")["work"]["num_reasons"] == 80_000 * 16
    assert stage(plan, "distill_reasons")["basis"]["model_scale"] > 9
    changed = planned(
        "--config", REFERENCE, "--pairs", "100", "--samples", "3", "--set", "pairs.order=mirrored", "--model", "14B"
    )
    assert stage(changed, "sample_reasons")["work"]["num_reasons"] == 100 * 2 * 3
    assert stage(changed, "import_model")["work"]["num_bytes"] == 2 * 14_770_033_664
    limited = planned("--model", "7B", "--set", "evaluate.limit=60")
    assert stage(limited, "evaluate_rewardbench (sft)")["work"]["num_prompts"] == 120
    tokens = planned("--config", REFERENCE, "--prompt-tokens", "10", "--reason-tokens", "7", "--kept", "0.1")
    assert stage(tokens, "train_dpo")["work"] == {
        "num_prompts": 8_000,
        "prompt_tokens": 80_000,
        "num_reasons": 16_000,
        "reason_tokens": 112_000,
        "num_rows": 0,
        "num_bytes": 0,
    }


def test_an_endpoint_takes_no_gpus_and_without_a_teacher_the_judge_teaches_itself() -> None:
    for teacher in ("https://teacher.example/v1", "endpoint"):
        assert stage(planned("--model", "8B", "--teacher", teacher), "distill_reasons")["hours"] is None
    itself = planned("--model", "8B")
    assert stage(itself, "distill_reasons")["hours"] == pytest.approx(stage(itself, "sample_reasons")["hours"])


def test_money_comes_only_with_a_price() -> None:
    priced = planned("--model", "8B", "--price", "2.5")
    assert priced["cost"]["expected"] == pytest.approx(2.5 * priced["device_hours"]["expected"])
    assert planned("--model", "8B")["cost"] is None
    assert "at 2.5 per GPU-hour" in invoke("--model", "8B", "--price", "2.5").output


def test_a_checkpoint_of_your_own_is_planned_by_its_config(tmp_path: Path) -> None:
    plan = planned("--model", str(tiny_checkpoint(tmp_path, "chatml")), "--gpu", "cpu")
    assert plan["machine"]["name"] == "cpu"
    assert 0 < stage(plan, "train_sft (sft)")["hours"]["expected"] < 100


def test_measurements_of_your_own_replace_the_shipped_ones(tmp_path: Path) -> None:
    shipped = [one for one in read_measurements().measurements if (one.machine, one.kind) == ("h100", "write_reasons")]
    slow = [one.model_copy(update={"seconds": 10 * one.seconds}) for one in shipped]
    path = tmp_path / "measurements.json"
    Measurements(measurements=tuple(slow)).write(path)
    own, usual = (
        stage(planned("--model", "7B", *options), "sample_reasons")["hours"]["expected"] - 90 / 3600
        for options in (("--measurements", str(path)), ())
    )
    assert own == pytest.approx(10 * usual)


@pytest.mark.parametrize(
    ("gpu", "title", "peak"),
    [("a100", "A100 80GB", 312), ("l40s", "L40S 48GB", 362.05), ("rtx4090", "RTX 4090 24GB", 165.2)],
)
def test_a_gpu_that_nobody_measured_is_planned_by_its_peak_and_says_so(gpu: str, title: str, peak: float) -> None:
    asked = "--model", "1.5b", "--gpu", gpu
    assert stage(planned(*asked), "train_dpo")["basis"]["peak_scale"] == pytest.approx(peak / 989.4)
    first = invoke(*asked).output.splitlines()[0]
    assert first.endswith(f"hours on 8 x {title}, not measured there, scaled by the published peak")


def test_a_gpu_of_your_own_needs_its_memory_and_its_peak(tmp_path: Path) -> None:
    path = tmp_path / "machines.json"
    Measurements(machines=(Machine(name="b200", title="B200", memory_bytes=180e9, peak_tflops=2_250),)).write(path)
    plan = planned("--model", "7B", "--measurements", str(path), "--gpu", "b200")
    assert stage(plan, "train_dpo")["basis"]["peak_scale"] == pytest.approx(2_250 / 989.4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "plan: no model; expected --model, such as 8B"),
        (["--model", "9B"], "9B: no size with this name and no such file"),
        (["--model", "8B", "--gpu", "b300"], "--gpu b300: no machine with this name"),
        (["--model", "8B", "--gpus", "1"], "needs 4 x H100 80GB, found --gpus 1"),
        (["--model", "135M", "--gpu", "cpu", "--gpus", "2"], "--gpus 2 has no effect on one CPU core"),
        (["--model", "8B", "--measurements", "no.json"], "no.json: no such file"),
    ],
)
def test_mistakes_are_named_and_end_with_code_2(arguments: list[str], message: str) -> None:
    ran = invoke(*arguments)
    assert ran.exit_code == 2
    assert message in ran.output
