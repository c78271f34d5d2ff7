"""The arithmetic of the figures, by hand."""

import pytest
from pydantic import ValidationError

from benchmarks.figures import Apart, Machine, Part, Report, Step, Way, mfu, ratios, read_report, summarise
from reasongenrm.planning.measurements import Workload

MACHINE = Machine(
    device="GPU", num_processes=2, peak_tflops=0.5, peak_how="", versions={"torch": "2"}, commit=None, load_average=0.0
)


def step(seconds: float, tokens: int, examples: int) -> Step:
    return Step(
        seconds=seconds, tokens=tokens, examples=examples, work=Workload(num_prompts=examples, prompt_tokens=tokens)
    )


def test_mfu_is_six_flops_a_parameter_and_token_against_the_peak_of_all_processes() -> None:
    # 6 x 10^9 parameters x 25 tokens/s = 1.5 x 10^11 FLOP/s; two processes of 0.5 TFLOP/s are 10^12.
    assert mfu(1_000_000_000, 6, 25.0, 0.5, 2) == pytest.approx(0.15)


def test_rates_are_over_all_steps_and_the_spread_over_single_ones() -> None:
    found = summarise(
        [step(2.0, 100, 4), step(3.0, 300, 6)],
        num_parameters=1_000_000_000,
        flops_per_parameter=6,
        machine=MACHINE,
        peak_memory_gib=1.5,
    )
    assert (found.num_steps, found.num_tokens, found.num_examples, found.seconds) == (2, 400, 10, 5.0)
    assert (found.tokens_per_second, found.slowest, found.fastest, found.examples_per_second) == (
        80.0,
        50.0,
        100.0,
        2.0,
    )
    assert found.mfu == pytest.approx(6 * 80 / 1000)
    assert found.tokens_per_second_with_before == 80.0


def test_what_is_done_once_before_is_shared_by_the_examples_it_was_done_for() -> None:
    # 8 s for 40 examples are 2 s for these 10: 400 tokens in 3 + 2 s.
    found = summarise(
        [step(3.0, 400, 10)],
        num_parameters=1,
        flops_per_parameter=6,
        machine=MACHINE,
        peak_memory_gib=0.0,
        before_seconds=8.0,
        before_examples=40,
    )
    assert found.tokens_per_second_with_before == pytest.approx(80.0)
    peer = summarise(
        [step(4.0, 400, 10)], num_parameters=1, flops_per_parameter=6, machine=MACHINE, peak_memory_gib=0.0
    )
    ways = (Way(name="ours", status="measured", measured=found), Way(name="trl", status="measured", measured=peer))
    (ratio,) = ratios(ways)
    assert ratio.peer == "trl"
    assert ratio.ratio == pytest.approx(4 / 3)
    assert ratio.ratio_with_before == pytest.approx(0.8)


def test_ratio_is_over_the_steps_that_both_have_measured() -> None:
    # Ours has gone on to a step of easier rows; on the first two it is (300 / 5) / (300 / 10) = 2 times as fast.
    def way(name: str, *steps: Step) -> Way:
        sizes = {"num_parameters": 1, "flops_per_parameter": 6, "machine": MACHINE, "peak_memory_gib": 0.0}
        return Way(name=name, status="measured", measured=summarise(steps, **sizes))  # type: ignore[arg-type]

    ours = way("ours", step(2.0, 100, 4), step(3.0, 200, 6), step(1.0, 900, 6))
    (ratio,) = ratios((ours, way("trl", step(5.0, 100, 4), step(5.0, 200, 6))))
    assert ratio.ratio == pytest.approx(2.0)
    # Scoring: ours takes 16 reasons a step, its peer one; so all of what each has done. (1,200 / 6) / (100 / 2) = 4.
    (ratio,) = ratios((ours, way("one at a time", step(1.0, 40, 1), step(1.0, 60, 1))))
    assert ratio.ratio == pytest.approx(4.0)


def test_no_ratio_without_ours_or_without_a_measured_peer() -> None:
    peer = summarise(
        [step(4.0, 400, 10)], num_parameters=1, flops_per_parameter=6, machine=MACHINE, peak_memory_gib=0.0
    )
    assert ratios((Way(name="ours", status="failed"), Way(name="trl", status="measured", measured=peer))) == ()
    assert ratios((Way(name="ours", status="measured", measured=peer), Way(name="trl", status="failed"))) == ()


def test_failures_are_ways_parts_and_what_is_not_equal(tmp_path) -> None:
    apart = Apart(
        what="SFT gradient", unit="relative", ours=1.0, spread=0.1, error_ours=1.0, error_plain=0.1, holds=False
    )
    parts = (
        Part(
            part="sft",
            shape="micro",
            num_parameters=1,
            dtype="float32",
            ways=(Way(name="trl", status="failed", message="OOM"),),
        ),
        Part(part="equality", shape="micro", num_parameters=1, dtype="float32", apart=(apart,)),
        Part(
            part="dpo",
            shape="micro",
            num_parameters=1,
            dtype="float32",
            ways=(Way(name="x", status="skipped", message="no"),),
        ),
    )
    report = Report(command="", started="2026-11-27", seconds=1.0, machine=MACHINE, parts=parts)
    assert report.failures == ["sft, trl: OOM", "equality, SFT gradient: not equal"]
    report.write(tmp_path / "results.json")
    assert read_report(tmp_path / "results.json") == report


def test_an_unknown_field_of_a_results_file_is_an_error() -> None:
    with pytest.raises(ValidationError, match="speed"):
        Way.model_validate({"name": "ours", "status": "measured", "speed": 3})
