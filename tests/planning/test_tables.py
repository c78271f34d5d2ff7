"""Tables as people and docs/install.md see them."""

import pytest

from reasongenrm.planning.fit import fit_law
from reasongenrm.planning.points import shipped_points
from reasongenrm.planning.tables import (
    Grid,
    hours_grid,
    install_tables,
    laws_grid,
    memory_grid,
    notes,
    number,
    plan_grid,
    points_grid,
)
from tests.planning.test_fit import copied
from tests.planning.test_plan import POINTS, Points, plan


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (1.234, "1.23"),
        (45.67, "45.7"),
        (999.6, "1,000"),
        (1234, "1,230"),
        (98765, "98,800"),
    ],
)
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_markdown_has_text_to_the_left_and_figures_to_the_right() -> None:
    assert Grid("t", ("a", "b"), (("x", "1"),)).markdown() == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_a_plan_shows_every_stage_its_hours_and_how_far_it_lies_beyond_the_points() -> None:
    grid = plan_grid(plan())
    assert grid.head == ("stage", "work", "GPUs", "hours", "low to high", "GPU-hours", "store", "beyond the points")
    rows = {row[0]: dict(zip(grid.head, row, strict=True)) for row in grid.rows}
    assert rows["distill_reasons"]["work"] == "1.28M x 500 tokens"
    assert rows["distill_reasons"]["beyond the points"].startswith("N x 9.26, work x ")
    assert rows["train_dpo"]["low to high"] == "?"
    assert rows["select_winner"]["hours"] == "-"
    assert rows["import_model"]["GPUs"] == "-"
    assert grid.rows[-1][0] == "one after another"


def test_money_is_a_column_only_with_a_price() -> None:
    assert "cost" in plan_grid(plan(price=2.0)).head
    assert "cost" not in plan_grid(plan()).head


def test_notes_name_what_is_not_known_borrowed_or_left_out() -> None:
    lines = "\n".join(notes(plan(points=Points(points=tuple(p for p in POINTS.points if p.kind != "dpo")))))
    assert "One size measured, so nobody knows how far it is off: import_model, " in lines
    assert "by the law of another: train_dpo (sft)." in lines
    assert "Not computed: select_winner, deploy_kserve." in lines


def test_laws_and_points_stand_side_by_side() -> None:
    law = fit_law([copied(10**7, 2.0), copied(2 * 10**7, 3.0), copied(4 * 10**7, 5.0)])
    assert laws_grid([law]).rows == (("store on m", "3", "bytes / 10 MB/s + 1 s", "0%", "0%", "work^0.66"),)
    assert points_grid([law]).rows[0] == ("store on m", "-", "10M bytes", "2", "2", "1.00", "prototype, 2026-11")


def test_memory_of_a_70b_teacher_is_that_of_serving_alone() -> None:
    rows = {row[0]: row for row in memory_grid(shipped_points().machine("h100")).rows}
    assert rows["7B (Qwen2.5-7B)"][1:] == ("15 GB", "56 KiB", "1", "23 GB", "2", "72 GB", "91 GB")
    assert rows["70B (Llama-3.1-70B)"][5:] == ("-", "-", "-")


def test_hours_of_two_judges_stand_beside_each_other() -> None:
    grid = hours_grid([("7B", plan()), ("14B", plan(num_gpus=4))])
    assert grid.head == ("stage", "GPUs, 7B", "hours, 7B", "GPUs, 14B", "hours, 14B")
    rows = {row[0]: row for row in grid.rows}
    assert (rows["distill_reasons"][1], rows["distill_reasons"][3]) == ("8", "4")
    assert "import_model" not in rows
    assert rows["**GPU-hours**"][1::2] == ("", "")


def test_reference_configurations_are_planned_on_eight_gpus() -> None:
    assert "| train_dpo | 8 |" in install_tables()
