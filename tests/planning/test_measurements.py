"""Measurements are read and written whole, a mistake in a file is named, and the nearest one is taken."""

import json
from pathlib import Path

import pytest

from reasongenrm.errors import InputError
from reasongenrm.planning.measurements import Machine, Measurement, Measurements, WorkKind, Workload, read_measurements
from reasongenrm.training.shapes import SHAPES
from tests.training.test_shapes import SMALL, SMALL_PARAMETERS

WORK = Workload(num_prompts=3, prompt_tokens=30, num_reasons=6, reason_tokens=24)
SFT = Measurement(
    kind="train_sft",
    machine="h100",
    model=SHAPES["1.5B"],
    work=WORK,
    seconds=2.5,
    version="0.1.0",
    command="python -m benchmarks",
    date="2026-11-27",
)
PREPARED = SFT.model_copy(update={"kind": "prepare_pairs", "model": None, "work": Workload(num_rows=10)})
H100 = Machine(name="h100", title="H100 80GB", memory_bytes=8e10, peak_tflops=1000)


@pytest.mark.parametrize(
    ("kind", "passes"),
    [("write_reasons", 1), ("evaluate", 1), ("score_reasons", 1), ("train_sft", 3), ("train_dpo", 4)],
)
def test_work_is_counted_in_flops(kind: WorkKind, passes: int) -> None:
    # 30 prompt tokens see 5 on average; 24 reason tokens see the prompt's 10 and 2 of their own; a token seen costs 80.
    flops = 30 * (2 * SMALL_PARAMETERS + 80 * 5) + 24 * (2 * SMALL_PARAMETERS + 80 * 12)
    assert WORK.amount(kind, SMALL) == passes * flops
    assert WORK.num_tokens == 54


def test_light_work_is_counted_in_rows_or_bytes() -> None:
    assert Workload(num_rows=10).amount("prepare_pairs", None) == 10
    assert Workload(num_bytes=7).amount("import_model", None) == 7
    assert PREPARED.throughput == 10 / 2.5


def test_work_adds_up() -> None:
    assert WORK + Workload(num_prompts=1, num_rows=5) == WORK.model_copy(update={"num_prompts": 4, "num_rows": 5})


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    odd = SFT.model_copy(update={"model": SMALL, "version": None})
    cpu = Machine(name="cpu", title="a laptop")
    written = Measurements(machines=(H100, cpu), measurements=(SFT, odd, PREPARED))
    written.write(tmp_path / "measurements.json")
    assert read_measurements(tmp_path / "measurements.json") == written
    last = json.loads((tmp_path / "measurements.json").read_text())["measurements"][2]
    assert last["work"] == {"num_rows": 10}


def test_a_model_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "measurements.json"
    path.write_text(json.dumps({"measurements": [SFT.model_dump(mode="json") | {"model": "1.5B"}]}))
    assert read_measurements(path).measurements == (SFT,)


def test_your_own_are_added_and_replace_the_same_machine_and_the_same_kind_on_it() -> None:
    shipped = Measurements(machines=(H100,), measurements=(SFT,))
    nvl = H100.model_copy(update={"title": "H100 NVL"})
    both = shipped + Measurements(machines=(nvl,), measurements=(PREPARED,))
    assert both.machine("h100").title == "H100 NVL"
    assert both.measurements == (SFT, PREPARED)
    faster = SFT.model_copy(update={"seconds": 1.0})
    assert (both + Measurements(measurements=(faster,))).measurements == (PREPARED, faster)
    with pytest.raises(InputError, match=r"--gpu b300: no machine with this name; expected one of h100\. Describe it"):
        both.machine("b300")


def test_shipped_measurements_name_machines_that_are_described() -> None:
    shipped = read_measurements()
    described = {machine.name for machine in shipped.machines}
    unmeasured = described - {one.machine for one in shipped.measurements}
    assert described == {"h100", "h200", "cpu"} | unmeasured
    assert unmeasured == {"a100", "l40s", "rtx4090"}


def test_the_nearest_is_on_the_machine_then_of_about_the_size_then_the_largest() -> None:
    a100 = Machine(name="a100", title="A100", memory_bytes=8e10, peak_tflops=250)
    small, large = (SFT.model_copy(update={"model": SHAPES[size]}) for size in ("0.5B", "7B"))
    longer = large.model_copy(update={"work": WORK + WORK})
    here = small.model_copy(update={"machine": "a100"})
    all_of_them = Measurements(machines=(H100, a100), measurements=(small, large, longer, here))
    used, model_scale, peak_scale = all_of_them.nearest("train_sft", SHAPES["8B"], H100)
    assert used == longer
    assert model_scale == SHAPES["8B"].num_parameters / SHAPES["7B"].num_parameters
    assert peak_scale == 1
    assert all_of_them.nearest("train_sft", SHAPES["8B"], a100)[0] == here
    elsewhere = Measurements(machines=(H100, a100), measurements=(large,))
    assert elsewhere.nearest("train_sft", SHAPES["7B"], a100) == (large, 1.0, 0.25)


def test_without_a_peak_only_the_machine_itself_counts_and_light_work_was_measured_on_a_cpu() -> None:
    cpu = Machine(name="cpu", title="a CPU")
    on_cpu = PREPARED.model_copy(update={"machine": "cpu"})
    known = Measurements(machines=(H100, cpu), measurements=(SFT, on_cpu))
    assert known.nearest("prepare_pairs", None, H100) == (on_cpu, 1.0, 1.0)
    with pytest.raises(InputError, match=r"no measurement of train_sft on cpu; .*python -m benchmarks stages"):
        known.nearest("train_sft", SHAPES["7B"], cpu)


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"kind": "train"}, "measurements.0.kind: Input should be 'import_model'"),
        ({"model": "9B"}, "measurements.0.model: no shape is named '9B'; expected one of 135M"),
        ({"seconds": 0}, "measurements.0.seconds: Input should be greater than 0"),
        ({"work": {"num_rows": 5}}, "a measurement of train_sft needs work.prompt_tokens above 0"),
        ({"model": None}, "a measurement of train_sft needs a model"),
        ({"kind": "prepare_pairs", "work": {"num_rows": 5}}, "a measurement of prepare_pairs has no model"),
        ({"tokens": 5}, "measurements.0.tokens: Extra inputs are not permitted"),
        ({"date": "yesterday"}, "measurements.0.date: String should match pattern"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, changes: dict[str, object], mistake: str) -> None:
    path = tmp_path / "measurements.json"
    path.write_text(json.dumps({"measurements": [SFT.model_dump(mode="json") | changes]}))
    with pytest.raises(InputError) as raised:
        read_measurements(path)
    assert mistake in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; .* python -m benchmarks stages --output"):
        read_measurements(tmp_path / "measurements.json")
