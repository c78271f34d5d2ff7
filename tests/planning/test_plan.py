"""Law times work, worked by hand; GPUs that a stage needs; and what is said where nothing was measured."""

import pytest

from reasongenrm.config import RunConfig
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.planning.fit import amounts
from reasongenrm.planning.plan import Plan, StageCost, gpus_needed, gpus_to_serve, gpus_to_train, make_plan
from reasongenrm.planning.points import Kind, Machine, MeasuredPoint, Points, Work, shipped_points
from reasongenrm.planning.stages import Assumptions
from reasongenrm.planning.tables import notes
from reasongenrm.training.shapes import SHAPES

GPU = Machine(name="gpu", title="a GPU", memory_bytes=80e9)
CPU = Machine(name="cpu", title="a CPU", memory_bytes=None)
JUDGE, TEACHER = SHAPES["7B"], SHAPES["70B"]
CONFIG = RunConfig.model_validate({"pairs": {"order": "random"}})
ASSUMED = Assumptions(num_pairs=80_000)
ONCE = Work(num_prompts=1, prompt_tokens=1_000, num_reasons=2, reason_tokens=1_000)


def measured(kind: Kind, machine: Machine, seconds: float, size: str = "7B") -> MeasuredPoint:
    light = {"prepare": Work(num_rows=100), "select": Work(num_rows=100), "store": Work(num_bytes=10**9)}
    return MeasuredPoint(
        kind=kind,
        machine=machine.name,
        model=None if kind in light else SHAPES[size],
        work=light.get(kind, ONCE),
        seconds=seconds,
        version=None,
        command="",
        date="2026-11",
    )


LIGHT = tuple(measured(kind, CPU, 1.0) for kind in ("prepare", "select", "store"))
POINTS = Points(
    machines=(GPU, CPU),
    points=(*LIGHT, *(measured(kind, GPU, 2.0) for kind in ("generate", "score", "sft", "dpo", "evaluate"))),
)


def plan(num_gpus: int = 8, points: Points = POINTS, machine: Machine = GPU, price: float | None = None) -> Plan:
    return make_plan(CONFIG, ASSUMED, JUDGE, TEACHER, points, machine, num_gpus, price)


def by_name(planned: Plan) -> dict[str, StageCost]:
    return {stage.stage: stage for stage in planned.stages}


def test_gpus_are_a_power_of_two_and_a_tenth_of_each_is_left_free() -> None:
    assert gpus_needed(lambda num_gpus: 72e9 / num_gpus, 80e9) == 1
    assert gpus_needed(lambda num_gpus: 72.1e9 / num_gpus, 80e9) == 2
    assert gpus_needed(lambda num_gpus: 3 * 72e9 / num_gpus, 80e9) == 4
    with pytest.raises(ConfigError, match="on each of 64 GPUs; expected at most 67 GiB"):
        gpus_needed(lambda _num_gpus: 73e9, 80e9)


def test_a_7b_trains_on_two_a_14b_on_four_and_a_70b_teacher_answers_on_four() -> None:
    # 7.62e9 x 18 = 137 GB and 3 of activations and logits on each: two; 14.77e9 x 18 = 266 GB: 133 on each of two; 141 GB of weights + 43 of cache.
    assert (gpus_to_train(SHAPES["7B"], 80e9), gpus_to_train(SHAPES["14B"], 80e9)) == (2, 4)
    assert (gpus_to_serve(SHAPES["14B"], 80e9), gpus_to_serve(TEACHER, 80e9)) == (1, 4)
    assert gpus_to_serve(TEACHER, 141e9) == 2


def test_hours_are_the_laws_seconds_shared_among_the_gpus_that_a_stage_can_use() -> None:
    stages = by_name(plan())

    def seconds_of_one(kind: Kind, stage: str, size: str = "7B") -> float:
        there = amounts(kind, SHAPES[size], stages[stage].work)["flops"]
        return 2.0 * there / amounts(kind, JUDGE, ONCE)["flops"]

    scored = stages["score_reasons (of the teacher)"]
    assert (scored.num_devices, scored.hours) == (8, pytest.approx(seconds_of_one("score", scored.stage) / 8 / 3600))
    sampled = stages["sample_reasons"]  # eight engines
    assert (sampled.num_devices, sampled.hours) == (
        8,
        pytest.approx(seconds_of_one("generate", "sample_reasons") / 8 / 3600),
    )
    distilled = stages["distill_reasons"]  # two engines on four GPUs each, which keep 80 %
    one = seconds_of_one("generate", "distill_reasons", "70B")
    assert (distilled.num_devices, distilled.hours) == (8, pytest.approx(one / 2 / 3.2 / 3600))
    trained = stages["train_dpo"]  # ZeRO-3 keeps 90 %
    assert (trained.num_devices, trained.hours) == (8, pytest.approx(seconds_of_one("dpo", "train_dpo") / 7.2 / 3600))
    assert trained.device_hours == pytest.approx(8 * (trained.hours or 0))
    selected = stages["select_reasons"]
    assert (selected.num_devices, selected.device_hours, selected.hours) == (0, 0, pytest.approx(12_800 / 3600))
    assert stages["select_winner"].hours is None


def test_gpus_that_no_whole_replica_fits_on_stay_idle() -> None:
    stages = by_name(plan(num_gpus=6))
    assert (stages["distill_reasons"].num_devices, stages["train_dpo"].num_devices) == (4, 6)


def test_start_up_is_not_shared_out() -> None:
    one, two, three = (
        measured("score", GPU, seconds).model_copy(
            update={"work": Work(num_prompts=n, prompt_tokens=n, num_reasons=n, reason_tokens=n)}
        )
        for n, seconds in ((1_000, 7.0), (2_000, 9.0), (3_000, 11.0))
    )
    sft = [p.model_copy(update={"kind": "sft"}) for p in (one, two, three)]
    points = Points(points=(*(p for p in POINTS.points if p.kind != "sft"), *sft))
    trained = by_name(plan(points=points))["train_sft (sft)"]
    assert trained.law == "sft"
    flops = amounts("sft", JUDGE, trained.work)["flops"] / amounts("sft", JUDGE, one.work)["flops"]
    assert trained.hours == pytest.approx((5 + 2 * flops / 7.2) / 3600)


def test_replicas_that_score_share_the_work_and_each_starts_and_reads_the_weights_itself() -> None:
    # Seconds that are start-up and weights alone: as many with eight replicas, so eight times the GPU-hours.
    points = [
        measured("score", GPU, 60.0).model_copy(
            update={"work": Work(num_prompts=n, prompt_tokens=n, num_reasons=n, reason_tokens=n)}
        )
        for n in (1_000, 2_000, 3_000)
    ]
    others = [point for point in POINTS.points if point.kind != "score"]
    fixed = Points(machines=(GPU, CPU), points=(*others, *points))
    four, eight = (by_name(plan(num_gpus=n, points=fixed))["score_reasons (of the policy)"] for n in (4, 8))
    assert four.hours == eight.hours == pytest.approx(60 / 3600)
    assert (four.device_hours, eight.device_hours) == (pytest.approx(240 / 3600), pytest.approx(480 / 3600))


def test_whoever_scores_reads_the_weights_once_and_not_for_every_token_as_whoever_writes() -> None:
    points = shipped_points()
    planned = plan(num_gpus=1, points=points, machine=points.machine("cpu"))
    law = next(law for law in planned.laws if law.kind == "score")
    assert law.seconds_per["weights"] > 0
    scored = by_name(planned)["score_reasons (of the policy)"]
    assert scored.hours == pytest.approx(law.seconds(amounts("score", JUDGE, scored.work)) / 3600)
    assert scored.work.num_steps == 0


def test_a_judge_whose_weights_do_not_fit_on_one_gpu_cannot_score() -> None:
    small = Machine(name="gpu", title="a small GPU", memory_bytes=16e9)  # 15.2 GB of weights, 14.4 usable
    with pytest.raises(
        ConfigError,
        match=r"score_reasons \(of the teacher\) with Qwen2.5-7B needs 15 GB .* on each GPU, found 14 GB usable of 16; "
        "scoring does not split a model",
    ):
        make_plan(CONFIG, ASSUMED, JUDGE, None, POINTS, small, 64)


def test_what_lies_beyond_the_points_is_said_in_times() -> None:
    stages = by_name(plan())
    distilled = stages["distill_reasons"].beyond
    assert distilled
    assert distilled.parameters == pytest.approx(TEACHER.num_parameters / JUDGE.num_parameters)
    scored = stages["score_reasons (of the policy)"].beyond
    assert scored
    assert scored.parameters == 1
    there = amounts("score", JUDGE, stages["score_reasons (of the policy)"].work)["flops"]
    assert scored.work == pytest.approx(there / 8 / amounts("score", JUDGE, ONCE)["flops"])  # of each of eight replicas


def test_the_spread_of_the_points_is_that_of_the_hours_and_one_size_has_none() -> None:
    half = measured("score", GPU, 4.0).model_copy(update={"work": ONCE.model_copy(update={"num_prompts": 2})})
    planned = plan(points=Points(points=(*POINTS.points, half)))
    scored = by_name(planned)["score_reasons (of the policy)"]
    assert scored.hours
    assert scored.hours_low == pytest.approx(scored.hours * planned_spread(planned)[0])
    assert scored.hours_high == pytest.approx(scored.hours * planned_spread(planned)[1])
    assert by_name(planned)["train_dpo"].hours_low is None
    assert planned.totals.hours_low is None


def planned_spread(planned: Plan) -> tuple[float, float]:
    spread = next(law for law in planned.laws if law.kind == "score").spread
    assert spread
    assert spread[0] < 1 < spread[1]
    return spread


def test_totals_and_money() -> None:
    planned = plan(price=2.5)
    hours = [stage.hours for stage in planned.stages if stage.hours is not None]
    assert len(hours) == len(planned.stages) - 2
    assert planned.totals.hours == pytest.approx(sum(hours))
    assert planned.totals.cost == pytest.approx(2.5 * planned.totals.device_hours)
    assert by_name(planned)["train_dpo"].cost == pytest.approx(2.5 * by_name(planned)["train_dpo"].device_hours)
    assert plan().totals.cost is None
    kept = sum(stage.kept_bytes for stage in planned.stages)
    assert planned.totals.kept_bytes == pytest.approx(kept)
    assert planned.totals.peak_bytes > kept + 20 * JUDGE.num_parameters  # DPO's two checkpoints of 12 bytes a parameter


def test_dpo_without_points_goes_by_the_law_of_sft_with_its_own_flops() -> None:
    points = Points(points=tuple(point for point in POINTS.points if point.kind != "dpo"))
    borrowed, own = by_name(plan(points=points))["train_dpo"], by_name(plan())["train_dpo"]
    assert (borrowed.law, own.law) == ("sft", "dpo")
    assert borrowed.hours == pytest.approx(
        4 / 3 * (own.hours or 0)
    )  # of the point, 8 FLOPs a parameter were thought to be 6


def test_a_machine_of_the_same_chip_stands_in_before_another_kind_does() -> None:
    twin = Machine(name="twin", title="a GPU of the same chip", memory_bytes=80e9, like="gpu")
    points = Points(
        machines=(GPU, twin, CPU),
        points=(*POINTS.points, measured("sft", twin, 1.0), measured("generate", twin, 1.0)),
    )
    stages = by_name(plan(points=points, machine=twin))
    assert (stages["train_sft (sft)"].law, stages["train_sft (sft)"].law_machine) == ("sft", "twin")
    assert (stages["train_dpo"].law, stages["train_dpo"].law_machine) == ("dpo", "gpu")
    assert stages["train_dpo"].hours == by_name(plan())["train_dpo"].hours
    line = next(line for line in notes(plan(points=points, machine=twin)) if "the same chip" in line)
    assert line.startswith("Not measured on a GPU of the same chip, so by the law")
    assert "train_dpo (gpu)" in line
    assert "train_sft" not in line
    assert not [line for line in notes(plan()) if "the same chip" in line]


def test_what_was_never_measured_is_an_error_that_says_how_to_measure() -> None:
    points = Points(points=LIGHT)
    with pytest.raises(InputError, match=r"no points of kind 'generate' on 'gpu'; .* python -m benchmarks.growth"):
        plan(points=points)


def test_too_few_gpus_are_an_error_that_says_how_many() -> None:
    with pytest.raises(ConfigError, match=r"distill_reasons with Llama-3.1-70B needs 4 GPUs of 80 GB, found --gpus 2"):
        plan(num_gpus=2)


def test_on_a_cpu_everything_runs_on_one_and_memory_is_not_asked_for() -> None:
    points = Points(points=(*LIGHT, *(measured(kind, CPU, 2.0) for kind in ("generate", "score", "sft"))))
    stages = by_name(plan(points=points, machine=CPU, num_gpus=1))
    assert {stage.num_devices for stage in stages.values() if stage.hours is not None} == {1}
    assert stages["evaluate_rewardbench (sft)"].law == "generate"
