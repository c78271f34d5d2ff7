"""Laws of points whose law is known; errors and exponents worked by hand."""

import math
from itertools import product

import pytest

from reasongenrm.planning.fit import amounts, fit_growth, fit_law
from reasongenrm.planning.points import Kind, MeasuredPoint, Work
from reasongenrm.training.shapes import ModelShape
from tests.training.test_shapes import SMALL, SMALL_PARAMETERS

WIDE = SMALL.model_copy(update={"name": "wide", "hidden_size": 40, "intermediate_size": 80})
DEEP = WIDE.model_copy(update={"name": "deep", "num_layers": 30})


def point(kind: Kind, model: ModelShape | None, work: Work, seconds: float) -> MeasuredPoint:
    return MeasuredPoint(
        kind=kind, machine="m", model=model, work=work, seconds=seconds, version=None, command="", date="2026-11"
    )


def copied(num_bytes: int, seconds: float) -> MeasuredPoint:
    return point("store", None, Work(num_bytes=num_bytes), seconds)


def reasons(num_prompts: int, num_steps: int = 0) -> Work:
    """Prompts of 10 tokens, two reasons of 4 behind each."""
    return Work(
        num_prompts=num_prompts,
        prompt_tokens=10 * num_prompts,
        num_reasons=2 * num_prompts,
        reason_tokens=8 * num_prompts,
        num_steps=num_steps,
    )


@pytest.mark.parametrize(("kind", "passes"), [("generate", 1), ("evaluate", 1), ("score", 1), ("sft", 3), ("dpo", 4)])
def test_work_is_counted_in_flops_activations_and_weights(kind: Kind, passes: int) -> None:
    # 30 prompt tokens see 5 on average; 24 reason tokens see the prompt's 10 and 2 of their own; a token seen costs 80.
    forward = 30 * (2 * SMALL_PARAMETERS + 80 * 5) + 24 * (2 * SMALL_PARAMETERS + 80 * 12)
    assert amounts(kind, SMALL, reasons(3, num_steps=6)) == {
        "flops": passes * forward,
        "start": 1.0,
        "activations": passes * 54 * 2 * 10,  # two layers of width 10
        "weights": 7 * 2 * SMALL_PARAMETERS,  # loaded once, read in every step
    }


def test_a_law_of_all_terms_is_found_again_and_foretells_what_was_left_out() -> None:
    seconds_per = {"flops": 2e-6, "start": 0.5, "activations": 3e-5, "weights": 1e-7}
    sizes = list(product((SMALL, WIDE, DEEP), (3, 6, 12), (0, 50)))
    points = []
    for model, num_prompts, num_steps in sizes:
        work = reasons(num_prompts, num_steps)
        there = amounts("generate", model, work)
        points.append(point("generate", model, work, sum(each * there[term] for term, each in seconds_per.items())))
    law = fit_law(points)
    assert law.seconds_per == pytest.approx(seconds_per, rel=1e-6)
    assert law.ratios == pytest.approx([1.0] * len(points))
    assert law.left_out_ratios == pytest.approx([1.0] * len(points))
    assert law.spread == pytest.approx((1.0, 1.0))
    assert law.most_parameters == DEEP.num_parameters
    assert law.seconds(amounts("generate", SMALL, reasons(3))) == pytest.approx(points[0].seconds)


def test_nothing_is_below_zero() -> None:
    # A straight line through these would start at -1 s.
    law = fit_law([copied(10, 1.0), copied(20, 3.0), copied(30, 5.0)])
    assert set(law.seconds_per) == {"bytes"}
    # sum((x a / t - 1)^2) is least at a = sum(x/t) / sum((x/t)^2), with x/t = 10, 20/3, 6.
    assert law.seconds_per["bytes"] == pytest.approx((10 + 20 / 3 + 6) / (100 + 400 / 9 + 36))


def test_errors_are_relative() -> None:
    # (a - 1)^2 + (a / 2 - 1)^2 is least at 1.25 a = 1.5.
    law = fit_law([copied(1, 1.0), copied(1, 2.0)])
    assert law.seconds_per == pytest.approx({"bytes": 1.2})
    assert law.ratios == pytest.approx((1 / 1.2, 2 / 1.2))


def test_one_size_gives_one_term_and_nobody_knows_how_far_it_is_off() -> None:
    law = fit_law([copied(10, 2.0), copied(10, 2.0)])
    assert law.seconds_per == pytest.approx({"bytes": 0.2})
    assert (law.spread, law.left_out_seconds, law.growth) == (None, (), None)


def test_spread_is_the_worst_that_leaving_a_size_out_foretold() -> None:
    # Without the first, 0.2 s a byte: 2 s where 1 was measured. Without the second, 0.1: 2 s where 4 were.
    law = fit_law([copied(10, 1.0), copied(20, 4.0)])
    assert law.left_out_seconds == pytest.approx((2.0, 2.0))
    assert law.spread == pytest.approx((0.5, 2.0))


def test_there_is_a_term_less_than_there_are_sizes() -> None:
    two = [copied(10, 2.0), copied(20, 3.0)]
    assert set(fit_law(two).seconds_per) == {"bytes"}
    assert fit_law([*two, copied(40, 5.0)]).seconds_per == pytest.approx({"bytes": 0.1, "start": 1.0})


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.3])
def test_growth_of_work_is_the_known_exponent_whatever_the_start(exponent: float) -> None:
    points = [copied(size, 2 + 3e-3 * size**exponent) for size in (100, 200, 400, 800, 1600)]
    growth = fit_growth(points)
    assert growth
    assert growth.of_work == pytest.approx(exponent, abs=0.02)
    assert growth.of_parameters is None


def test_three_sizes_are_enough_for_an_exponent_and_two_are_not() -> None:
    growth = fit_growth([copied(size, 2 * size**1.5) for size in (10, 20, 40)])
    assert growth
    assert (growth.of_work, growth.start_seconds) == (pytest.approx(1.5), 0.0)
    assert fit_growth([copied(10, 1.0), copied(20, 2.0), copied(20, 2.1)]) is None


def test_growth_with_parameters_is_told_apart_from_that_with_tokens() -> None:
    points = [
        point("sft", model, reasons(num), 1e-6 * (18 * num) ** 1.1 * math.pow(model.num_parameters, 0.9))
        for model in (SMALL, WIDE, DEEP)
        for num in (3, 9, 27)
    ]
    growth = fit_growth(points)
    assert growth
    assert growth.of_work == pytest.approx(1.1, abs=0.01)
    assert growth.of_parameters == pytest.approx(0.9, abs=0.01)
