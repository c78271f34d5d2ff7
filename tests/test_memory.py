"""What a training step needs, counted by hand, and what was measured."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from reasongenrm.config import SFTConfig
from reasongenrm.memory import activation_bytes, countable_shape, fits_without_checkpointing, training_bytes
from reasongenrm.planning.shapes import SHAPES, ModelShape
from tests.tiny import tiny_checkpoint

TINY = ModelShape(
    name="tiny",
    num_layers=3,
    hidden_size=8,
    intermediate_size=20,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    vocab_size=100,
    tied=False,
)
QWEN = SHAPES["1.5B"]
HEAD = 4 * 4096 * 32768 * 4


def test_a_token_keeps_the_inputs_of_its_products_and_norms() -> None:
    assert activation_bytes(TINY, "bfloat16") == 3 * (7 * 8 + 4 * 2 * 2 + 3 * 20) * 2
    assert activation_bytes(TINY, "float32") == 2 * activation_bytes(TINY, "bfloat16")


@pytest.mark.parametrize(
    ("sharding", "bytes_a_parameter"),
    [("none", 16 + 2), ("zero2", 12 / 4 + 6), ("zero3", 18 / 4), ("fsdp2", 16 / 4)],
)
def test_states_are_spread_as_the_sharding_says(sharding: str, bytes_a_parameter: float) -> None:
    config = SFTConfig.model_validate({"sharding": sharding})
    found = training_bytes(TINY, config, 0, num_processes=4) - HEAD
    assert found == int(TINY.num_parameters * bytes_a_parameter)


def test_estimate_is_what_was_measured() -> None:
    """Qwen2.5-1.5B, 13,754 tokens a micro-batch, bfloat16 with Liger's kernels on one H200: 55.1 GiB at the peak."""
    assert training_bytes(QWEN, SFTConfig(), 13_754, 1) / 2**30 == pytest.approx(55.1, rel=0.05)


@pytest.mark.parametrize(("gib", "fits"), [(80, True), (60, False)])
def test_checkpointing_is_spared_where_there_is_room(monkeypatch: pytest.MonkeyPatch, gib: int, fits: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    sizes = [SimpleNamespace(total_memory=gib << 30), SimpleNamespace(total_memory=200 << 30)]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: sizes[number])
    assert fits_without_checkpointing(QWEN, SFTConfig(), 13_754, 1) is fits


def test_on_a_cpu_the_memory_that_is_free_counts() -> None:
    assert fits_without_checkpointing(TINY, SFTConfig(), 100, 1)
    assert not fits_without_checkpointing(TINY, SFTConfig(), 10**12, 1)


def test_what_cannot_be_counted_is_computed_twice(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert countable_shape(tmp_path) is None
    assert not fits_without_checkpointing(None, SFTConfig(), 1, 1)


def test_checkpoint_of_a_trained_family_can_be_counted(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "qwen2.5")
    shape = countable_shape(tmp_path)
    assert shape is not None
    assert shape.hidden_size == 32
