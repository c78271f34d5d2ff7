"""The variants: one entry each, and what is told from it."""

import pytest
from pydantic import ValidationError

from reasongenrm.config import GateConfig
from reasongenrm.variants import BASE, VARIANTS, learns_preferences, variant_label


def test_every_training_starts_from_a_variant_that_comes_before() -> None:
    before: list[str] = []
    for name, variant in VARIANTS.items():
        assert variant.name == name
        assert (variant.trained_from is None) == (variant.trained_on is None) == (name == BASE)
        assert variant.trained_from in (None, *before)
        before.append(name)


def test_checkpoint_opens_the_turn_that_its_style_begins_with() -> None:
    assert {name: variant.opening_role for name, variant in VARIANTS.items()} == {
        "base": "assistant",
        "genrm": "assistant",
        "sft": "reason",
        "dpo": "reason",
    }


def test_judges_with_reasons_are_the_candidates_and_another_name_is_refused() -> None:
    assert GateConfig().candidates == ("sft", "dpo")
    assert GateConfig.model_validate({"candidates": ["genrm"]}).candidates == ("genrm",)
    with pytest.raises(ValidationError, match="'rl' is no variant; expected one of base, genrm, sft, dpo"):
        GateConfig.model_validate({"candidates": ["rl"]})


def test_name_of_a_judge_outside_a_run_is_its_label() -> None:
    assert [variant_label(name) for name in ("base", "genrm", "dpo", "my judge")] == [
        "base",
        "GenRM",
        "ReasonGenRM-dpo",
        "my judge",
    ]
    assert [name for name in (*VARIANTS, "my judge") if learns_preferences(name)] == ["dpo"]
