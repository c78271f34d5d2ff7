"""benchmarks.stages: the work that a measurement states is the work that was done."""

import time
from pathlib import Path

import pytest

from benchmarks.stages import NEW_TOKENS, NUM_SAMPLES, TWENTY_MILLION, Bench, measure_all, random_checkpoint
from reasongenrm.planning.measurements import PASSES
from reasongenrm.store.artifacts import Store
from reasongenrm.training.shapes import find_shape
from tests.training.test_shapes import SMALL

# The smallest whose vocabulary takes in the small tokenizer's, with heads that torch knows.
TINY = SMALL.model_copy(update={"name": "tiny", "hidden_size": 16, "head_dim": 8, "num_kv_heads": 2, "vocab_size": 400})


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store.uri, tmp_path, time.process_time)


def test_a_random_checkpoint_has_its_shape(tmp_path: Path) -> None:
    found = find_shape(str(random_checkpoint(tmp_path, TINY)))
    assert found.model_copy(update={"name": TINY.name}) == TINY


@pytest.mark.parametrize("kind", PASSES)
def test_tokens_grow_with_the_prompts(bench: Bench, kind: str) -> None:
    (two, seconds), (four, _) = (bench.measure(kind, TINY, number) for number in (2, 4))  # type: ignore[arg-type]
    assert seconds > 0
    assert (two.num_prompts, four.num_prompts) == (2, 4)
    each = {"write_reasons": NUM_SAMPLES, "score_reasons": 4, "train_sft": 1, "train_dpo": 2, "evaluate": 1}
    assert two.num_reasons == 2 * each[kind]
    assert 1.6 < four.prompt_tokens / two.prompt_tokens < 2.4  # texts differ in length
    assert two.prompt_tokens / 2 > 200
    if kind in ("write_reasons", "evaluate"):
        assert 0 < two.reason_tokens <= two.num_reasons * NEW_TOKENS


def test_a_measurement_is_not_answered_by_the_artifact_of_the_one_before(bench: Bench) -> None:
    kinds = ["prepare_pairs", "select_reasons", "import_model", "import_model"]
    measured = measure_all(bench, kinds, ["20M"], "here", num_rows=40)  # type: ignore[arg-type]
    assert [one.kind for one in measured] == kinds
    assert {one.machine for one in measured} == {"here"}
    assert measured[0].work.num_rows == measured[1].work.num_rows == 40
    assert measured[3].work.num_bytes > 2 * TWENTY_MILLION.num_parameters
    assert min(one.seconds for one in measured[2:]) > 0.01  # a found artifact would be there in no time
