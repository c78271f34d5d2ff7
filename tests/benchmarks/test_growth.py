"""benchmarks.growth: the work that a point states is the work that was done."""

import time
from pathlib import Path

import pytest

from benchmarks.growth import (
    MODELS,
    NEW_TOKENS,
    NUM_PROMPTS,
    NUM_SAMPLES,
    SMALLEST,
    Bench,
    Size,
    measure_all,
    random_checkpoint,
)
from reasongenrm.planning.points import KINDS, LIGHT
from reasongenrm.store.artifacts import Store
from reasongenrm.training.shapes import SHAPES, find_shape
from tests.training.test_shapes import SMALL

# The smallest whose vocabulary takes in the small tokenizer's, with heads that torch knows.
TINY = SMALL.model_copy(update={"name": "tiny", "hidden_size": 16, "head_dim": 8, "num_kv_heads": 2, "vocab_size": 400})


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store.uri, tmp_path, time.process_time)


def test_a_random_checkpoint_has_its_shape(tmp_path: Path) -> None:
    found = find_shape(str(random_checkpoint(tmp_path, TINY)))
    assert found.model_copy(update={"name": TINY.name}) == TINY


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in LIGHT])
def test_tokens_of_a_point_grow_with_its_prompts(bench: Bench, kind: str) -> None:
    (two, seconds), (four, _) = (bench.measure(kind, Size(TINY, number)) for number in (2, 4))  # type: ignore[arg-type]
    assert seconds > 0
    assert (two.num_prompts, four.num_prompts) == (2, 4)
    assert two.num_reasons == 2 * {"generate": NUM_SAMPLES, "score": 4, "sft": 1, "dpo": 2, "evaluate": 1}[kind]
    assert 1.6 < four.prompt_tokens / two.prompt_tokens < 2.4  # texts differ in length
    assert two.prompt_tokens / 2 > 200
    if kind in ("generate", "evaluate"):
        assert 0 < two.reason_tokens <= two.num_reasons * NEW_TOKENS
        assert two.num_steps <= NEW_TOKENS
    if kind in ("sft", "dpo"):
        assert two.num_steps == 1


def test_a_measurement_is_not_answered_by_the_artifact_of_the_one_before(bench: Bench) -> None:
    points = measure_all(bench, ["select", "store"], [SMALLEST.name], repeat=2, machine="here")
    assert [point.kind for point in points] == ["select"] * 6 + ["store"] * 2
    assert {point.machine for point in points} == {"here"}
    assert points[6].work.num_bytes > 2 * SMALLEST.num_parameters
    assert min(point.seconds for point in points[6:]) > 0.01  # a found artifact would be there in no time


def test_every_model_has_three_amounts_of_work_and_the_largest_is_a_named_size() -> None:
    assert [len(set(NUM_PROMPTS[name])) for name in MODELS] == [3] * len(MODELS)
    assert list(MODELS.values())[-1] == SHAPES["135M"]
    counts = [model.num_parameters for model in MODELS.values()]
    assert counts == sorted(counts)
