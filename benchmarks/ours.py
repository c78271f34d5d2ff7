"""ReasonGenRM's own way of the work: what `train_sft`, `train_dpo` and `score_reasons` run, on a model that is in memory."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from benchmarks.clock import timed
from benchmarks.setting import Done, Setting, Settings, dtype_name, time_batches, time_steps
from benchmarks.shapes import make_model
from benchmarks.work import Columns, dpo_amounts, num_tokens, sft_amounts
from reasongenrm.candidates import Row, plan_batches
from reasongenrm.config import DPOConfig, SFTConfig, TrainConfig
from reasongenrm.scoring import score_batch
from reasongenrm.tiny import tiny_tokenizer
from reasongenrm.trainers import PlannedDPOTrainer, PlannedSFTTrainer, _arguments, _quiet, _score_trained_positions_only
from reasongenrm.training import BatchPlan, TrainingJob


def sft_trainer(setting: Setting, columns: Columns, **changes: Any) -> tuple[Any, Settings]:
    """The trainer of train_sft, and what was set beside the defaults."""
    settings = _settings(setting, setting.examples, changes)
    return _trainer(setting, SFTConfig(**settings, packing=False), columns), settings


def dpo_trainer(setting: Setting, columns: Columns, **changes: Any) -> tuple[Any, Settings]:
    """The trainer of train_dpo, which has the reference model's log-probabilities, and what was set beside the defaults."""
    settings = _settings(setting, setting.pairs, changes)
    return _trainer(setting, DPOConfig(**settings), columns), settings


def sft(setting: Setting, columns: Columns) -> Done:
    """SFT as train_sft does it."""
    trainer, settings = sft_trainer(setting, columns)
    return Done(time_steps(trainer, setting, sft_amounts(columns, setting.examples)), settings)


def dpo(setting: Setting, columns: Columns) -> Done:
    """DPO as train_dpo does it: the reference model is asked about every pair once, before the first step."""
    with timed(setting.world.device) as seconds:
        trainer, settings = dpo_trainer(setting, columns)
    steps = time_steps(trainer, setting, dpo_amounts(columns, setting.pairs))
    return Done(steps, settings, seconds[0], len(columns["prompt_ids"]))


def scoring(setting: Setting, rows: Sequence[Row]) -> Done:
    """Scoring as score_reasons does it: batches of rows, each a prompt with its reasons behind it."""
    model = make_model(setting.shape, setting.world.device, setting.dtype, seed=setting.seed).eval()
    batches = plan_batches(rows, setting.shape.max_batch_tokens)
    settings: Settings = {"max_batch_tokens": setting.shape.max_batch_tokens, "dtype": dtype_name(setting.dtype)}
    return Done(time_batches(setting, batches, lambda batch: score_batch(model, batch)), settings)


def _settings(setting: Setting, examples: int, changes: dict[str, Any]) -> Settings:
    settings: Settings = {
        "train_batch_size": examples,
        "max_length": setting.shape.lengths.longest,
        "max_steps": setting.num_steps,
        "dtype": dtype_name(setting.dtype),
    }
    return settings | changes


def _trainer(setting: Setting, config: TrainConfig, columns: Columns) -> Any:
    _quiet()
    _score_trained_positions_only()
    kind = "sft" if isinstance(config, SFTConfig) else "dpo"
    lengths = num_tokens(columns)
    num_rows = config.max_steps * config.train_batch_size
    order = [row % len(lengths) for row in range(num_rows)]
    plan = BatchPlan(order, config.train_batch_size, lengths)
    job = TrainingJob(
        stage=f"train_{kind}", trainer=kind, config={}, inputs={}, extra={}, store_uri="", model_dir=setting.scratch,
        dataset_dir=setting.scratch, output_dir=setting.scratch / "ours", resume_from=None, opening_role="reason",
        num_processes=setting.world.size,
    )  # fmt: skip
    shared = {
        "model": make_model(setting.shape, setting.world.device, torch.float32, seed=setting.seed),
        "args": _arguments(job, config, plan),
        "train_dataset": Dataset.from_dict({**columns, "length": lengths}),
        "processing_class": tiny_tokenizer("qwen2.5"),
        "plan": plan,
        "stage": job.stage,
    }
    if kind == "sft":
        return PlannedSFTTrainer(**shared)
    return PlannedDPOTrainer(num_pairs=len(lengths), **shared)
