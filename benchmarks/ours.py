"""ReasonGenRM's own way of the work: what `train_sft`, `train_dpo` and `score_reasons` run, on a model that is in
memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset

from benchmarks.clock import timed
from benchmarks.setting import Done, Setting, Settings, dtype_name, time_batches, time_steps
from benchmarks.shapes import make_model
from benchmarks.work import TrainingWork
from reasongenrm.config import DPOConfig, SFTConfig, TrainConfig
from reasongenrm.demo.tiny import tiny_tokenizer
from reasongenrm.packing.kernels import prepare_for_packed_rows
from reasongenrm.reasons.candidates import Row, plan_batches
from reasongenrm.reasons.score_batch import score_batch
from reasongenrm.training.packed import PackedDPOTrainer
from reasongenrm.training.trainers import build_trainer


def sft(setting: Setting, work: TrainingWork) -> Done:
    """SFT as train_sft does it."""
    settings = train_settings(setting, work)
    trainer = trainer_of(setting, SFTConfig(**settings), work)
    return Done(time_steps(trainer, setting, work.amounts), settings | _chosen(trainer))


def dpo(setting: Setting, work: TrainingWork) -> Done:
    """DPO as train_dpo does it: the reference model is asked about every pair once, before the first step."""
    settings = train_settings(setting, work)
    with _asking_timed(setting.world.device) as seconds:
        trainer = trainer_of(setting, DPOConfig(**settings), work)
    steps = time_steps(trainer, setting, work.amounts)
    return Done(steps, settings | _chosen(trainer), sum(seconds), work.num_rows)


def scoring(setting: Setting, rows: Sequence[Row]) -> Done:
    """Scoring as score_reasons does it: batches of rows, each a prompt with its reasons behind it."""
    model = packed_model(setting)
    batches = plan_batches(rows, setting.scored_tokens)
    settings: Settings = {"max_batch_tokens": setting.scored_tokens, "dtype": dtype_name(setting.dtype)}
    return Done(time_batches(setting, batches, lambda batch: score_batch(model, batch)), settings)


def packed_model(setting: Setting) -> Any:
    """A model to score with."""
    model = make_model(setting.shape, setting.world.device, setting.dtype, seed=setting.seed).eval()
    prepare_for_packed_rows(model)
    return model


def train_settings(setting: Setting, work: TrainingWork) -> Settings:
    """What differs from the defaults of train_sft and train_dpo."""
    return {
        "train_batch_size": work.batch_size,
        "max_batch_tokens": setting.shape.max_batch_tokens or "auto",
        "max_length": setting.shape.lengths.longest,
        "max_steps": setting.num_steps,
        "dtype": dtype_name(setting.dtype),
        "seed": setting.seed,
    }


def trainer_of(setting: Setting, config: TrainConfig, work: TrainingWork) -> Any:
    """The trainer of train_sft or train_dpo."""
    trainer = build_trainer(
        config,
        lambda: make_model(setting.shape, setting.world.device, torch.float32, seed=setting.seed),
        setting.shape.model,
        tiny_tokenizer("qwen2.5"),
        Dataset.from_dict({**work.columns, "length": work.lengths}),
        stage="benchmark",
        output_dir=setting.scratch / "ours",
        num_processes=setting.world.size,
    )
    assert trainer.plan.order == work.order, "ours trains on other rows than its peers"
    return trainer


def _chosen(trainer: Any) -> Settings:
    """What it decided by itself."""
    return {
        "activation_checkpointing": trainer.args.activation_checkpointing,
        "micro-batches of a step": trainer.plan.num_micro_batches,
        "tokens of the largest": trainer.plan.max_tokens,
    }


@contextmanager
def _asking_timed(device: torch.device) -> Iterator[list[float]]:
    """The seconds that the reference model's pass takes, a part of building the trainer."""
    ask = PackedDPOTrainer._precompute_ref_logps
    taken: list[float] = []

    def ask_timed(trainer: PackedDPOTrainer, *arguments: Any) -> Dataset:
        with timed(device) as seconds:
            asked = ask(trainer, *arguments)
        taken.extend(seconds)
        return asked

    PackedDPOTrainer._precompute_ref_logps = ask_timed  # type: ignore[method-assign, assignment]
    try:
        yield taken
    finally:
        PackedDPOTrainer._precompute_ref_logps = ask  # type: ignore[method-assign]
