"""What a training step needs, counted by hand, and what was measured."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from reasongenrm.config import SFTConfig
from reasongenrm.training.memory import (
    activation_bytes,
    countable_shape,
    fits_without_checkpointing,
    max_batch_tokens,
    training_bytes,
)
from reasongenrm.training.shapes import SHAPES, ModelShape
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
    [("none", 16 + 2 + 4), ("zero2", 12 / 4 + 6), ("zero3", 18 / 4), ("fsdp2", 16 / 4)],
)
def test_states_are_spread_as_the_sharding_says(sharding: str, bytes_a_parameter: float) -> None:
    config = SFTConfig.model_validate({"sharding": sharding})
    found = training_bytes(TINY, config, 0, num_processes=4) - HEAD
    assert found == int(TINY.num_parameters * bytes_a_parameter)


def test_estimate_is_what_was_measured() -> None:
    """Qwen2.5-1.5B, 13,754 tokens a micro-batch, bfloat16 with Liger's kernels on one H200: 55.1 GiB at the peak."""
    assert training_bytes(QWEN, SFTConfig(), 13_754, 1) / 2**30 == pytest.approx(55.1, rel=0.05)


def test_with_checkpointing_a_layer_keeps_its_input_and_one_layer_at_a_time_everything() -> None:
    config = SFTConfig(sharding="zero3")
    states = 18 * TINY.num_parameters // 4
    inputs, layer = 3 * 8 * 2, (7 * 8 + 4 * 2 * 2 + 3 * 20) * 2  # bytes per token: all layers' inputs; one layer
    few, many = 50, 10**8  # tokens; the loss's tile of logits is larger than 50 tokens' layer
    assert training_bytes(TINY, config, few, 4, checkpointing=True) == states + few * inputs + HEAD
    assert training_bytes(TINY, config, many, 4, checkpointing=True) == states + many * (inputs + layer)


def test_estimate_with_checkpointing_is_what_was_measured() -> None:
    """Qwen2.5-1.5B, 27,429 tokens per micro-batch, activations computed twice, on one H200: 29.3 GiB at the peak."""
    found = training_bytes(QWEN, SFTConfig(), 27_429, 1, checkpointing=True)
    assert found / 2**30 == pytest.approx(29.3, rel=0.05)


def test_one_process_has_no_buckets_of_gradients() -> None:
    found = training_bytes(TINY, SFTConfig(), 0, num_processes=1) - HEAD
    assert found == TINY.num_parameters * (16 + 2)
    assert training_bytes(TINY, SFTConfig(dtype="float32"), 0, 1) - HEAD == TINY.num_parameters * 16


def gpus(monkeypatch: pytest.MonkeyPatch, *gib: float) -> None:
    """Make GPUs of so much memory visible."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gib))
    sizes = [SimpleNamespace(total_memory=int(size * 2**30)) for size in gib]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: sizes[number])


@pytest.mark.parametrize(("gib", "fits"), [(80, True), (60, False)])
def test_checkpointing_is_spared_where_there_is_room(monkeypatch: pytest.MonkeyPatch, gib: int, fits: bool) -> None:
    gpus(monkeypatch, gib, 200)
    assert fits_without_checkpointing(QWEN, SFTConfig(), 13_754, 1) is fits


def test_forward_pass_takes_what_fits_comfortably_into_the_smallest_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1.5437e9 parameters x 18 bytes and 2 GiB for the head are 27.9 GiB; a token keeps 28 layers x (7 x 1,536 + 4 x 256
    # + 3 x 8,960) x 2 bytes = 2.064 MiB. So (0.85 x 79.2 - 27.9) GiB are 19,560 tokens, and an H200 has room for more
    # than 32,768.
    gpus(monkeypatch, 79.2)
    tokens = max_batch_tokens(QWEN, SFTConfig(), 1)
    assert tokens == pytest.approx(19_560, abs=60)
    assert fits_without_checkpointing(QWEN, SFTConfig(), tokens, 1)
    gpus(monkeypatch, 140)
    assert max_batch_tokens(QWEN, SFTConfig(), 1) == 32_768
    gpus(monkeypatch, 140, 79.2)
    assert max_batch_tokens(QWEN, SFTConfig(), 2) < tokens  # gradients a second time, for the exchange


def test_fewer_tokens_go_before_computing_twice_down_to_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 60)
    assert 8_192 <= max_batch_tokens(QWEN, SFTConfig(), 1) < 16_384
    gpus(monkeypatch, 50)  # 8,192 tokens would be 44.4 GiB of 42.5
    assert max_batch_tokens(QWEN, SFTConfig(), 1) == 16_384
    assert not fits_without_checkpointing(QWEN, SFTConfig(), 16_384, 1)


@pytest.mark.parametrize(
    ("settings", "num_processes", "expected"),
    [
        ({"max_batch_tokens": 100}, 1, 100),
        ({"gradient_checkpointing": True}, 1, 16_384),
        ({"gradient_checkpointing": False}, 1, 32_768),
        ({"sharding": "zero3"}, 2, 16_384),
        ({}, 2, 32_768),
        ({}, 4, 16_384),  # two nodes
    ],
)
def test_tokens_stay_as_asked_or_usual_where_the_estimate_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], num_processes: int, expected: int
) -> None:
    gpus(monkeypatch, 140, 140)
    assert max_batch_tokens(QWEN, SFTConfig.model_validate(settings), num_processes) == expected
    assert max_batch_tokens(None, SFTConfig(), 1) == 16_384


def test_on_a_cpu_a_forward_pass_takes_the_usual_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert max_batch_tokens(TINY, SFTConfig(), 1) == 16_384


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
