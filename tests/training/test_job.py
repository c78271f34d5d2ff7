"""What SFT and DPO share: settings, logs, resuming, bad numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from reasongenrm.config import SFTConfig
from reasongenrm.errors import ConfigError, TrainingError
from reasongenrm.store.artifacts import Store, read_file
from reasongenrm.training.job import (
    LOG,
    check_config,
    length_limit,
    write_log,
)
from reasongenrm.training.sft import train_sft
from tests.tiny import tiny_checkpoint
from tests.training_cases import put_folder, put_model, put_records, training_examples

SMALL = SFTConfig(
    train_batch_size=4,
    max_length=2048,
    learning_rate=1e-2,
    lr_scheduler_type="linear",
    dtype="float32",
    save_steps=2,
)


def with_settings(**settings: object) -> SFTConfig:
    return SFTConfig.model_validate({**SMALL.model_dump(), **settings})


def log_of(ref: object) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = json.loads(read_file(ref, LOG))  # type: ignore[arg-type]
    return rows


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train_batch_size": 1, "num_processes": 2},
            r"train_sft: train_batch_size is 1, over all .* at least one example for each of 2 processes. Set it to 2",
        ),
        ({"max_steps": 0}, r"max_steps is 0; expected a number above 0, or -1"),
        (
            {"save_steps": 5, "logging_steps": 2},
            r"save_steps is 5; expected a multiple of logging_steps 2.*Set it to 6",
        ),
        ({"lr_scheduler_type": "wavy"}, r"lr_scheduler_type is 'wavy'; expected one of linear, cosine,"),
        ({"lr_scheduler_type": "constant"}, r"warmup_ratio is 0.03, but .* 'constant' has no warm-up"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config(with_settings(**settings), "train_sft")


def test_reference_defaults_pass_the_check() -> None:
    check_config(SFTConfig(), "train_sft")


def test_rows_may_not_be_longer_than_the_models_context(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "chatml")  # context 4,096
    assert length_limit(tmp_path, with_settings(max_length=131072)) == 4096
    assert length_limit(tmp_path, with_settings(max_length=100)) == 100


def test_optimizer_that_transformers_does_not_know_is_named(store: Store, tmp_path: Path) -> None:
    model, examples = put_model(store, tmp_path), put_records(store, "s", "examples.jsonl", training_examples(4))
    with pytest.raises(
        ConfigError, match="train_sft: transformers refuses the settings: sgdd is not a valid OptimizerNames"
    ):
        train_sft(store, with_settings(optim="sgdd"), "sft", model, examples)


# --- logs ---


def test_tensorboard_shows_the_figures_of_the_log(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = [{"step": 1, "loss": 0.75, "learning_rate": 0.5}, {"step": 2, "loss": 0.5, "learning_rate": 0.25}]
    write_log(rows, tmp_path)
    assert json.loads((tmp_path / LOG).read_text()) == rows
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.75), (2, 0.5)]
    assert sorted(events.Tags()["scalars"]) == ["train/learning_rate", "train/loss"]


# --- runs ---

_KILLED = """
import os, signal, sys
from reasongenrm.config import SFTConfig
from reasongenrm.training.sft import train_sft
from reasongenrm.store.stage import Stage
from reasongenrm.store.artifacts import ArtifactRef, Store

keep = Stage.finish_checkpoint

def keep_and_die(self, step, entries, num_processes):
    keep(self, step, entries, num_processes)
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)

Stage.finish_checkpoint = keep_and_die
config = SFTConfig.model_validate_json(sys.argv[2])
train_sft(Store(sys.argv[1]), config, "sft", ArtifactRef.read(sys.argv[3]), ArtifactRef.read(sys.argv[4]))
"""


def test_run_killed_and_started_again_ends_with_the_same_bytes(store: Store, tmp_path: Path) -> None:
    config = with_settings(max_steps=7, train_batch_size=2)
    disturbed, undisturbed = Store(f"{store.uri}/disturbed"), Store(f"{store.uri}/undisturbed")
    model = put_model(store, tmp_path / "model")
    examples = put_records(store, "select_reasons", "examples.jsonl", training_examples(5))
    model.write(tmp_path / "model.json")
    examples.write(tmp_path / "examples.json")
    command = [sys.executable, "-c", _KILLED, disturbed.uri, config.model_dump_json()]
    killed = subprocess.run([*command, str(tmp_path / "model.json"), str(tmp_path / "examples.json")], check=False)
    assert killed.returncode == -9
    left = disturbed.list()
    assert any("/checkpoints/00000004/manifest.json" in name for name in left)
    assert not any("/checkpoints/00000002/" in name or "sha256-" in name for name in left)
    resumed = train_sft(disturbed, config, "sft", model, examples)
    straight = train_sft(undisturbed, config, "sft", model, examples)
    assert resumed.digest == straight.digest  # weights, tokenizer, log and event files
    assert [row["step"] for row in log_of(resumed)] == [1, 2, 3, 4, 5, 6, 7]
    assert not any("/checkpoints/" in name for name in disturbed.list())


def test_gradient_that_is_not_finite_stops_the_run_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    model, examples = put_model(store, tmp_path), put_records(store, "s", "examples.jsonl", training_examples(4))
    config = with_settings(learning_rate=1e30, lr_scheduler_type="constant", warmup_ratio=0.0, max_steps=4)
    with pytest.raises(TrainingError, match=r"step 2 of 4: .* at a learning rate of 1e\+30; .* Lower learning_rate"):
        train_sft(store, config, "sft", model, examples)
    assert not any(name.startswith("train_sft/") for name in store.list())


def test_loss_that_is_not_finite_stops_the_run_at_its_step(store: Store, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tiny_checkpoint(tmp_path, "chatml")
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"][0] = torch.inf
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, examples = put_folder(store, tmp_path), put_records(store, "s", "examples.jsonl", training_examples(4))
    with pytest.raises(TrainingError, match=r"train_sft: step 1 of 3: the loss is nan and the gradient's norm nan"):
        train_sft(store, with_settings(max_steps=3), "sft", model, examples)
