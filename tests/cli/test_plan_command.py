"""`reasongenrm plan`: its tables, its JSON, its picture, and what it says when it cannot plan."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from reasongenrm.cli import app
from reasongenrm.planning.points import Points, shipped_points
from tests.tiny import tiny_checkpoint

REFERENCE = "pipelines/configs/reference/qwen2.5-7b.yaml"


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})


def planned(*arguments: str) -> dict[str, Any]:
    ran = invoke("--json", *arguments)
    assert ran.exit_code == 0, ran.output
    plan: dict[str, Any] = json.loads(ran.stdout)
    return plan


def stage(plan: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(stage for stage in plan["stages"] if stage["stage"] == name)
    return found


def test_stages_laws_and_points_are_shown_side_by_side() -> None:
    text = invoke("--pairs", "80000", "--samples", "16", "--model", "8B", "--teacher", "70B", "--gpus", "8").output
    assert "A run on H100 80GB" in text
    for shown in (
        "distill_reasons",
        "one after another",
        "TFLOP/s",
        "measured s",
        "beyond the points",
        "Not computed:",
    ):
        assert shown in text


def test_numbers_come_from_the_configuration_and_options_go_first() -> None:
    plan = planned("--config", REFERENCE)  # pairs.order random, 16 samples, teacher Llama-3.1-70B by its hub name
    assert stage(plan, "distill_reasons")["work"]["num_reasons"] == 80_000 * 16
    assert stage(plan, "distill_reasons")["beyond"]["parameters"] > 9
    changed = planned(
        "--config", REFERENCE, "--pairs", "100", "--samples", "3", "--order", "mirrored", "--model", "14B"
    )
    assert stage(changed, "sample_reasons")["work"]["num_reasons"] == 100 * 2 * 3
    assert stage(changed, "import_model")["work"]["num_bytes"] == 2 * 14_770_033_664
    assert (
        stage(planned("--model", "7B", "--benchmark-rows", "60"), "evaluate_rewardbench (sft)")["work"]["num_prompts"]
        == 120
    )
    tokens = planned("--config", REFERENCE, "--prompt-tokens", "10", "--reason-tokens", "7", "--kept", "0.1")
    assert stage(tokens, "train_dpo")["work"] == {
        "num_prompts": 8_000,
        "prompt_tokens": 80_000,
        "num_reasons": 16_000,
        "reason_tokens": 112_000,
        "num_steps": 63,
        "num_rows": 0,
        "num_bytes": 0,
    }


def test_an_endpoint_takes_no_gpus_and_without_a_teacher_the_judge_teaches_itself() -> None:
    assert (
        stage(planned("--model", "8B", "--teacher", "https://teacher.example/v1"), "distill_reasons")["hours"] is None
    )
    assert stage(planned("--model", "8B", "--teacher", "endpoint"), "distill_reasons")["hours"] is None
    itself = planned("--model", "8B")
    assert stage(itself, "distill_reasons")["hours"] == pytest.approx(stage(itself, "sample_reasons")["hours"])


def test_money_comes_with_a_price_alone() -> None:
    dear = planned("--model", "8B", "--price", "2.5")
    assert dear["totals"]["cost"] == pytest.approx(2.5 * dear["totals"]["device_hours"])
    assert planned("--model", "8B")["totals"]["cost"] is None


def test_a_checkpoint_of_ones_own_is_planned_by_its_config(tmp_path: Path) -> None:
    plan = planned("--model", str(tiny_checkpoint(tmp_path, "chatml")), "--gpu", "cpu")
    assert plan["machine"]["name"] == "cpu"
    assert 0 < stage(plan, "train_sft (sft)")["hours"] < 100


def test_own_points_go_before_the_shipped_ones(tmp_path: Path) -> None:
    shipped = shipped_points().of("h100", "generate")
    slow = [point.model_copy(update={"seconds": 10 * point.seconds}) for point in shipped]
    Points(points=tuple(slow)).write(tmp_path / "points.json")
    name = "sample_reasons"
    own = stage(planned("--model", "7B", "--points", str(tmp_path / "points.json")), name)
    assert own["hours"] == pytest.approx(10 * stage(planned("--model", "7B"), name)["hours"])


def test_points_and_laws_are_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "growth.svg"
    assert invoke("--model", "8B", "--plot", str(picture)).exit_code == 0
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "plan: no model; expected --model, such as 8B"),
        (["--model", "9B"], "9B: no size with this name and no such file"),
        (["--model", "8B", "--gpu", "b300"], "--gpu b300: no machine with this name"),
        (["--model", "8B", "--gpus", "1"], "needs 4 GPUs of 80 GB, found --gpus 1"),
        (["--model", "135M", "--gpu", "cpu", "--gpus", "2"], "--gpus 2 has no effect on one CPU core"),
        (["--model", "8B", "--points", "no.json"], "no.json: no such file"),
    ],
)
def test_mistakes_are_named_and_end_with_code_2(arguments: list[str], message: str) -> None:
    ran = invoke(*arguments)
    assert ran.exit_code == 2
    assert message in ran.output
