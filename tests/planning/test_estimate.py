"""Work divided by throughput, worked by hand; GPUs that a stage needs; and ranges that hold what was measured."""

import pytest

from reasongenrm.config import RunConfig
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.planning.estimate import RunEstimate, StageEstimate, estimate_run, model_memory
from reasongenrm.planning.measurements import (
    LIGHT,
    Machine,
    Measurement,
    Measurements,
    WorkKind,
    Workload,
    read_measurements,
)
from reasongenrm.planning.workloads import Assumptions
from reasongenrm.training.shapes import SHAPES

GPU = Machine(name="gpu", title="a GPU", memory_bytes=85e9, peak_tflops=1000)
CPU = Machine(name="cpu", title="a CPU")
JUDGE, TEACHER = SHAPES["7B"], SHAPES["70B"]
CONFIG = RunConfig.model_validate({"pairs": {"order": "random"}})
ASSUMED = Assumptions(num_pairs=80_000)
ONCE = Workload(num_prompts=1, prompt_tokens=1_000, num_reasons=2, reason_tokens=1_000)
HEAVY: tuple[WorkKind, ...] = ("write_reasons", "score_reasons", "train_sft", "train_dpo", "evaluate")


def measured(kind: WorkKind, machine: Machine, seconds: float, size: str = "7B") -> Measurement:
    light = {
        "prepare_pairs": Workload(num_rows=100),
        "select_reasons": Workload(num_rows=100),
        "import_model": Workload(num_bytes=10**9),
    }
    return Measurement(
        kind=kind,
        machine=machine.name,
        model=None if kind in light else SHAPES[size],
        work=light.get(kind, ONCE),
        seconds=seconds,
        command="",
        date="2026-11",
    )


ON_CPU = tuple(measured(kind, CPU, 1.0) for kind in LIGHT)
MEASURED = Measurements(machines=(GPU, CPU), measurements=(*ON_CPU, *(measured(kind, GPU, 2.0) for kind in HEAVY)))


def estimated(
    num_gpus: int = 8,
    measurements: Measurements = MEASURED,
    machine: Machine = GPU,
    price: float | None = None,
    config: RunConfig = CONFIG,
) -> RunEstimate:
    return estimate_run(config, ASSUMED, JUDGE, TEACHER, measurements, machine, num_gpus, price)


def stages_of(estimate: RunEstimate) -> dict[str, StageEstimate]:
    return {stage.stage: stage for stage in estimate.stages}


def expected(stage: StageEstimate) -> float:
    assert stage.hours
    return stage.hours.expected


def test_gpus_are_the_smallest_power_of_two_on_which_a_model_fits() -> None:
    # Training, bytes on each of N: 18 x parameters / N, then per token of 16,384 the layers' inputs (layers x hidden x
    # 2),
    # and one layer computed again (2 x (7 x hidden + 4 x KV + 3 x MLP) x 16,384), above the tile of logits. 78.2 GB
    # fit.
    # 7B: 137.1 / 2 + 3.3 + 2.8 = 74.6. 8B: 144.5 / 2 + 4.3 + 2.5 = 79.0 are too much: 36.1 + 6.8. 14B: 66.5 + 8.1 +
    # 2.7.
    sevens, eights, fourteens = (model_memory(SHAPES[size], CONFIG, 85e9) for size in ("7B", "8B", "14B"))
    assert [model.training_gpus for model in (sevens, eights, fourteens)] == [2, 4, 4]
    assert sevens.training_bytes / 1e9 == pytest.approx(74.6, abs=0.1)
    assert eights.training_bytes / 1e9 == pytest.approx(42.9, abs=0.1)
    assert fourteens.training_bytes / 1e9 == pytest.approx(77.2, abs=0.1)
    # Serving a 70B: 141.1 GB of weights and 32 x 4,096 tokens x 320 KiB = 42.9 of cache; 0.9 x 85 = 76.5 usable on
    # each.
    teacher = model_memory(TEACHER, None, 85e9)
    assert (teacher.serving_gpus, teacher.training_gpus) == (4, 0)
    assert teacher.serving_bytes / 1e9 == pytest.approx(46.0, abs=0.1)
    assert model_memory(TEACHER, None, 150e9).serving_gpus == 2
    assert fourteens.serving_gpus == 1
    with pytest.raises(ConfigError, match="GB on each of 64 GPUs; expected at most 2 GB"):
        model_memory(TEACHER, None, 2e9)


def test_training_takes_the_configurations_sharding_tokens_and_checkpointing() -> None:
    zero2 = CONFIG.model_copy(update={"sft": CONFIG.sft.model_copy(update={"sharding": "zero2"})})
    # 6 bytes per parameter are whole on each: 45.7 GB and 12 / 2 x 7.6: 91.4, with 6.1 of activations; on four 74.6.
    assert model_memory(JUDGE, zero2, 85e9).training_gpus == 4
    fewer = CONFIG.model_copy(
        update={
            name: getattr(CONFIG, name).model_copy(update={"max_batch_tokens": 1_024})
            for name in ("genrm", "sft", "dpo")
        }
    )
    # 68.5 + 1,024 x 28 x 3,584 x 2 bytes = 0.2 + the tile of logits, 2.1.
    assert model_memory(JUDGE, fewer, 85e9).training_bytes / 1e9 == pytest.approx(70.9, abs=0.1)
    kept = CONFIG.model_copy(update={"dpo": CONFIG.dpo.model_copy(update={"gradient_checkpointing": False})})
    # All activations: 16,384 x 28 x 2 x 83,968 = 77 GB on each, whatever their number.
    with pytest.raises(ConfigError, match="on each of 64 GPUs"):
        model_memory(JUDGE, kept, 85e9)


def test_hours_are_work_over_throughput_and_the_gpus_that_a_stage_can_use() -> None:
    stages = stages_of(estimated())
    started = 90 / 3600

    def of_one(kind: WorkKind, stage: str, size: str = "7B") -> float:
        """Hours on one GPU: 2 s for each ONCE of FLOPs."""
        return 2.0 * stages[stage].work.amount(kind, SHAPES[size]) / ONCE.amount(kind, JUDGE) / 3600

    scored = stages["score_reasons (of the teacher)"]
    assert (scored.num_devices, expected(scored)) == (
        8,
        pytest.approx(started + of_one("score_reasons", scored.stage) / 8),
    )
    sampled = stages["sample_reasons"]  # eight engines
    assert (sampled.num_devices, expected(sampled)) == (
        8,
        pytest.approx(started + of_one("write_reasons", "sample_reasons") / 8),
    )
    distilled = stages["distill_reasons"]  # two engines on four GPUs each, which keep 80 %
    one = of_one("write_reasons", "distill_reasons", "70B")
    assert (distilled.num_devices, expected(distilled)) == (8, pytest.approx(started + one / 6.4))
    trained = stages["train_dpo"]  # ZeRO-3 keeps 90 %
    assert (trained.num_devices, expected(trained)) == (
        8,
        pytest.approx(started + of_one("train_dpo", "train_dpo") / 7.2),
    )
    assert trained.device_hours.expected == pytest.approx(8 * expected(trained))
    selected = stages["select_reasons"]  # 80,000 x 16 rows at 100 per second
    assert (selected.num_devices, selected.device_hours.expected) == (0, 0)
    assert expected(selected) == pytest.approx(12_800 / 3600)
    assert stages["select_winner"].hours is None


def test_a_measurement_of_another_gpu_is_scaled_by_the_peaks() -> None:
    half = Machine(name="half", title="half a GPU", memory_bytes=85e9, peak_tflops=500)
    both = MEASURED + Measurements(machines=(half,))
    here, there = (stages_of(estimated(machine=machine, measurements=both))["train_dpo"] for machine in (GPU, half))
    assert expected(there) - 90 / 3600 == pytest.approx(2 * (expected(here) - 90 / 3600))
    assert here.basis
    assert there.basis
    assert (here.basis.peak_scale, there.basis.peak_scale) == (1, 0.5)
    assert there.basis.factor == pytest.approx(1.25 * here.basis.factor)


def test_the_range_grows_with_everything_that_was_not_measured() -> None:
    stages = stages_of(estimated())
    scales = TEACHER.num_parameters / JUDGE.num_parameters
    for name, factor in {
        "sample_reasons": 1.25,
        "score_reasons (of the policy)": 1.25,
        "train_dpo": 1.25 * 1.25,  # an assumed efficiency
        "distill_reasons": 1.25 * 1.25 * scales**0.25,  # and another size
        "select_reasons": 4,
    }.items():
        stage = stages[name]
        assert stage.basis, name
        assert stage.hours, name
        assert stage.basis.factor == pytest.approx(factor), name
        assert stage.hours.low == pytest.approx(expected(stage) / factor), name
        assert stage.hours.high == pytest.approx(expected(stage) * factor), name


def test_every_shipped_measurement_lies_in_the_range_that_the_others_give() -> None:
    """Otherwise the ranges of docs/planning.md would be too narrow."""
    shipped = read_measurements()
    measured_once = set()
    for left_out in shipped.measurements:
        others = shipped.model_copy(
            update={"measurements": tuple(one for one in shipped.measurements if one != left_out)}
        )
        machine = shipped.machine(left_out.machine)
        try:
            used, scale, peak = others.nearest(left_out.kind, left_out.model, machine)
        except InputError:
            measured_once.add(left_out.kind)
            continue
        factor = 1.25 * max(scale, 1 / scale) ** 0.25 * (1.25 if used.machine != machine.name else 1)
        assert 1 / factor < left_out.throughput / (used.throughput * peak) < factor, left_out
    assert measured_once == {*LIGHT, "evaluate", "score_reasons", "train_dpo"}  # of these three, on a GPU


def test_gpus_on_which_no_whole_replica_fits_stay_idle() -> None:
    stages = stages_of(estimated(num_gpus=6))
    assert (stages["distill_reasons"].num_devices, stages["train_dpo"].num_devices) == (4, 6)


def test_a_judge_whose_weights_do_not_fit_on_one_gpu_cannot_score() -> None:
    small = Machine(name="gpu", title="a small GPU", memory_bytes=16e9)  # 15.2 GB of weights, 14.4 usable
    with pytest.raises(
        ConfigError,
        match=r"score_reasons \(of the teacher\) with Qwen2.5-7B needs 15 GB .* on each GPU, found 14 GB usable on a "
        "small GPU; scoring does not split a model",
    ):
        estimate_run(CONFIG, ASSUMED, JUDGE, None, MEASURED, small, 64)


def test_rows_name_the_measurement_they_rest_on_and_how_far_it_is_scaled() -> None:
    estimate = estimated()
    stages = stages_of(estimate)
    distilled, sampled = stages["distill_reasons"].basis, stages["sample_reasons"].basis
    assert distilled
    assert sampled
    assert distilled.measurement == sampled.measurement
    assert estimate.measurements[sampled.measurement - 1].kind == "write_reasons"
    assert distilled.model_scale == pytest.approx(TEACHER.num_parameters / JUDGE.num_parameters)
    assert sampled.model_scale == 1
    there = stages["sample_reasons"].work.amount("write_reasons", JUDGE)
    assert sampled.work_scale == pytest.approx(there / 8 / ONCE.amount("write_reasons", JUDGE))


def test_totals_and_money() -> None:
    estimate = estimated(price=2.5)
    hours = [stage.hours for stage in estimate.stages if stage.hours is not None]
    assert len(hours) == len(estimate.stages) - 2
    for part in ("low", "expected", "high"):
        assert getattr(estimate.hours, part) == pytest.approx(sum(getattr(each, part) for each in hours))
    trained = stages_of(estimate)["train_dpo"]
    assert estimate.cost
    assert trained.cost
    assert estimate.cost.expected == pytest.approx(2.5 * estimate.device_hours.expected)
    assert trained.cost.high == pytest.approx(2.5 * trained.device_hours.high)
    assert estimated().cost is None
    kept = sum(stage.kept_bytes for stage in estimate.stages)
    assert estimate.kept_bytes == pytest.approx(kept)
    assert estimate.peak_bytes > kept + 20 * JUDGE.num_parameters  # DPO's two checkpoints of 12 bytes per parameter


def test_memory_is_that_of_judge_and_teacher_also_when_they_are_one_model() -> None:
    assert [model.name for model in estimated().memory] == [TEACHER.name, JUDGE.name]
    (both,) = estimate_run(CONFIG, ASSUMED, JUDGE, JUDGE, MEASURED, GPU, 8).memory
    assert both.training_gpus == 2


def test_what_was_never_measured_is_an_error_that_says_how_to_measure() -> None:
    light = Measurements(machines=(GPU, CPU), measurements=ON_CPU)
    with pytest.raises(InputError, match=r"no measurement of write_reasons on gpu; .*python -m benchmarks stages"):
        estimated(measurements=light)


def test_too_few_gpus_are_an_error_that_says_how_many() -> None:
    with pytest.raises(ConfigError, match=r"distill_reasons with Llama-3.1-70B needs 4 x a GPU, found --gpus 2"):
        estimated(num_gpus=2)


def test_on_a_cpu_everything_runs_on_one_and_memory_is_not_asked_for() -> None:
    on_cpu = Measurements(machines=(CPU,), measurements=(*ON_CPU, *(measured(kind, CPU, 2.0) for kind in HEAVY)))
    estimate = estimated(measurements=on_cpu, machine=CPU, num_gpus=1)
    assert {stage.num_devices for stage in estimate.stages if stage.hours is not None} == {1}
    assert estimate.memory == ()
    sampled = stages_of(estimate)["sample_reasons"]
    work = sampled.work.amount("write_reasons", JUDGE) / ONCE.amount("write_reasons", JUDGE)
    assert expected(sampled) == pytest.approx((10 + 2 * work) / 3600)
