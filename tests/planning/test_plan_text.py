"""An estimate as people read it."""

import pytest

from reasongenrm.planning.estimate import Range, RunEstimate
from reasongenrm.planning.measurements import Measurements
from reasongenrm.planning.plan_text import answer, basis_lines, number, size, span, stage_table
from tests.planning.test_estimate import CPU, GPU, HEAVY, MEASURED, ON_CPU, estimated, measured


def rows_of(estimate: RunEstimate) -> dict[str, dict[str, str]]:
    head, rows = stage_table(estimate)
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0049, "< 0.01"),
        (0.0123, "0.01"),
        (0.3, "0.30"),
        (1.0, "1"),
        (1.26, "1.3"),
        (45.67, "46"),
        (1234, "1,200"),
    ],
)
def test_numbers_have_two_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_a_range_is_shown_where_its_ends_differ() -> None:
    assert span(Range(low=4.2, expected=12.04, high=33.3)) == "12 (4.2 to 33)"
    assert span(Range(low=0.001, expected=0.002, high=0.004)) == "< 0.01"
    assert (size(0), size(9e7), size(3.33e9), size(271e9)) == ("< 0.1 GB", "< 0.1 GB", "3.3 GB", "270 GB")


def test_the_answer_comes_first_with_hours_gpu_hours_money_storage_and_memory() -> None:
    lines = answer(estimated(price=2.5))
    estimate = estimated(price=2.5)
    assert lines[0] == f"{span(estimate.hours)} hours on 8 x a GPU, one stage after another"
    assert lines[1].endswith(f"GPU-hours, which cost {span(estimate.cost)} at 2.5 per GPU-hour")  # type: ignore[arg-type]
    assert "stay in the store, which holds at most" in lines[2]
    assert lines[3] == "Llama-3.1-70B: weights 140 GB, KV 320 KiB per token; serving 4 GPUs x 46 GB"
    assert lines[4] == (
        "Qwen2.5-7B: weights 15 GB, KV 56 KiB per token; serving 1 GPU x 23 GB; "
        "training 2 GPUs x 75 GB, checkpoints 91 GB"
    )
    assert "cost" not in answer(estimated())[1]


def test_every_stage_shows_its_work_its_range_and_what_it_rests_on() -> None:
    rows = rows_of(estimated())
    distilled = rows["distill_reasons"]
    assert distilled["work"] == "1.28M x 500 tokens"
    assert distilled["rests on"] == "[3] N x 9.3"
    assert rows["sample_reasons"]["rests on"] == "[3]"
    assert " to " in rows["train_dpo"]["hours"]
    assert rows["select_winner"]["hours"] == rows["select_winner"]["work"] == "-"
    assert (rows["import_model"]["work"], rows["import_model"]["GPUs"]) == ("15 GB", "-")
    assert not any("?" in cell for row in rows.values() for cell in row.values())


def test_another_gpu_is_named_with_the_ratio_of_the_peaks() -> None:
    half = GPU.model_copy(update={"name": "half", "peak_tflops": 500})
    rows = rows_of(estimated(machine=half, measurements=MEASURED + Measurements(machines=(half,))))
    assert rows["distill_reasons"]["rests on"] == "[3] N x 9.3, peak x 0.5"


def test_money_is_a_column_only_with_a_price() -> None:
    assert "cost" in stage_table(estimated(price=2.0))[0]
    assert "cost" not in stage_table(estimated())[0]


def test_measurements_are_listed_with_throughput_and_date_and_what_is_left_out_is_named() -> None:
    lines = basis_lines(estimated(), MEASURED)
    assert lines[0] == "[1] import_model: a CPU, 1,000 MB/s (prototype, 2026-11)"
    assert lines[1] == "[2] prepare_pairs: a CPU, 100 rows/s (prototype, 2026-11)"
    # 2,000 tokens in 2 s; 2 x 7.6 x 10^9 and 4 x 28 x 28 x 128 x (500, and 1,250) FLOPs each: 15.6 TFLOP/s of 1,000.
    assert (
        lines[2]
        == "[3] write_reasons: Qwen2.5-7B on a GPU, 16 TFLOP/s, 1,000 tokens/s, 2 % of peak (prototype, 2026-11)"
    )
    assert lines[-1].startswith("Not estimated: select_winner, deploy_kserve (")


def test_on_a_cpu_its_hours_are_counted() -> None:
    on_cpu = Measurements(machines=(CPU,), measurements=(*ON_CPU, *(measured(kind, CPU, 2.0) for kind in HEAVY)))
    estimate = estimated(measurements=on_cpu, machine=CPU, num_gpus=1)
    assert answer(estimate)[0].endswith("hours on a CPU, one stage after another")
    assert "CPU-hours" in answer(estimate)[1]
    assert rows_of(estimate)["train_dpo"]["CPUs"] == "1"
