"""Points are read and written whole, and a mistake in a file is named."""

import json
from pathlib import Path

import pytest

from reasongenrm.errors import InputError
from reasongenrm.planning.points import Machine, MeasuredPoint, Points, Work, read_points, shipped_points
from reasongenrm.training.shapes import SHAPES
from tests.training.test_shapes import SMALL

WORK = Work(num_prompts=2, prompt_tokens=20, num_reasons=4, reason_tokens=12, num_steps=3)
POINT = MeasuredPoint(
    kind="sft",
    machine="h100",
    model=SHAPES["1.5B"],
    work=WORK,
    seconds=2.5,
    version="0.1.0",
    command="python -m benchmarks",
    date="2026-11-27",
)
DATA = POINT.model_copy(update={"kind": "prepare", "model": None, "work": Work(num_rows=10)})


def test_tokens_are_counted_once_each() -> None:
    assert WORK.num_tokens == 32


def test_a_file_is_read_as_it_was_written_with_shapes_by_name(tmp_path: Path) -> None:
    odd = POINT.model_copy(update={"model": SMALL})
    points = Points(machines=(Machine(name="cpu", title="a laptop", memory_bytes=None),), points=(POINT, odd, DATA))
    points.write(tmp_path / "points.json")
    assert read_points(tmp_path / "points.json") == points
    written = json.loads((tmp_path / "points.json").read_text())["points"]
    assert written[0]["model"] == "1.5B"
    assert written[1]["model"]["hidden_size"] == 10
    assert written[2]["work"] == {"num_rows": 10}


def test_own_points_are_added_and_an_own_machine_replaces_one_of_the_same_name() -> None:
    shipped = Points(machines=(Machine(name="h100", title="H100 80GB", memory_bytes=8e10),), points=(POINT,))
    own = Points(machines=(Machine(name="h100", title="H100 NVL", memory_bytes=9.4e10),), points=(DATA,))
    both = shipped + own
    assert both.machine("h100").title == "H100 NVL"
    assert both.of("h100", "sft") == [POINT]
    assert both.of("h100", "dpo") == []
    with pytest.raises(InputError, match=r"--gpu b300: no machine with this name; expected one of h100\. Measure"):
        both.machine("b300")


def test_shipped_points_name_machines_that_are_described() -> None:
    shipped = shipped_points()
    assert {point.machine for point in shipped.points} <= {machine.name for machine in shipped.machines}


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"kind": "train"}, "points.0.kind: Input should be 'generate'"),
        ({"model": "9B"}, "points.0.model: Value error, no shape is named '9B'; expected one of 135M"),
        ({"seconds": 0}, "points.0.seconds: Input should be greater than 0"),
        ({"work": {"num_rows": 5}}, "a point of kind sft needs work.prompt_tokens above 0"),
        ({"model": None}, "a point of kind sft needs a model"),
        ({"kind": "prepare", "work": {"num_rows": 5}}, "a point of kind prepare has no model"),
        ({"tokens": 5}, "points.0.tokens: Extra inputs are not permitted"),
        ({"date": "yesterday"}, "points.0.date: String should match pattern"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, changes: dict[str, object], mistake: str) -> None:
    path = tmp_path / "points.json"
    path.write_text(json.dumps({"points": [POINT.model_dump(mode="json") | changes]}))
    with pytest.raises(InputError) as raised:
        read_points(path)
    assert mistake in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; .* python -m benchmarks.growth --output"):
        read_points(tmp_path / "points.json")
