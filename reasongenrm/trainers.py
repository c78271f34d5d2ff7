"""TRL's SFT and DPO trainers, held to what is asked: our order of rows, exact tokens, no silent fallback.

Imported where training starts, because it needs torch, transformers and TRL. `run` trains one `training.TrainingJob`,
in one process or as one of torchrun's, and leaves a checkpoint that plain `from_pretrained` loads.
"""

import math
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
import trl.trainer.utils
from datasets import Dataset, disable_progress_bars, load_from_disk
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import DPOConfig as TrlDPOConfig
from trl import DPOTrainer as TrlDPOTrainer
from trl import SFTConfig as TrlSFTConfig
from trl import SFTTrainer as TrlSFTTrainer

from reasongenrm.config import DPOConfig, SFTConfig, TrainConfig
from reasongenrm.errors import ConfigError, TrainingError
from reasongenrm.progress import Tracker, track
from reasongenrm.training import BatchPlan, TrainingJob, accumulation_steps, load_tokenizer, plan_batches, write_log

KeepCheckpoint = Callable[[int, Path], None]


def _track(name: str, total: int, unit: str, *, shown: bool) -> AbstractContextManager[Tracker | None]:
    """Progress that one process of several shows."""
    return track(name, total=total, unit=unit) if shown else nullcontext()


class _Planned:
    """What both trainers add to TRL's: rows in the plan's order, and an end at the first number that is not finite."""

    def __init__(self, *, plan: BatchPlan, stage: str, **kwargs: Any) -> None:
        self._plan = plan
        self._stage = stage
        self._losses: list[torch.Tensor] = []
        super().__init__(**kwargs)

    def _send_telemetry(self) -> None:
        """TRL reports every run to the hub; we do not."""

    def _get_train_sampler(self, *_: Any) -> list[int]:
        return self._plan.order

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self._losses.append(loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called after the backward pass and before the optimizer step, so that bad numbers never reach the weights."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        loss = float(sum(self._losses, torch.zeros(())))
        self._losses.clear()
        if not math.isfinite(loss) or (norm is not None and not math.isfinite(float(norm))):
            step = self.state.global_step + 1  # type: ignore[attr-defined]
            rate = self._get_learning_rate()  # type: ignore[attr-defined]
            raise TrainingError(
                f"{self._stage}: step {step} of {self._plan.num_steps}: the loss is {loss:.4g} and the gradient's norm "
                f"{float(norm):.4g}, at a learning rate of {rate:.4g}; expected finite numbers. Lower learning_rate or "
                "max_grad_norm, raise warmup_ratio, or set dtype to float32. No model was written."
            )
        return norm


class PlannedSFTTrainer(_Planned, TrlSFTTrainer):
    """TRL's SFT on rows of input_ids and labels that are used as they are."""


class PlannedDPOTrainer(_Planned, TrlDPOTrainer):
    """TRL's DPO on rows of prompt_ids, chosen_ids and rejected_ids that are used as they are."""

    def __init__(self, *, num_pairs: int, **kwargs: Any) -> None:
        name = f"{kwargs['stage']} (reference model)"
        with _track(name, num_pairs, "pair", shown=kwargs["args"].process_index == 0) as self._tracker:
            super().__init__(**kwargs)  # asks the reference model about every pair

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """TRL would render and tokenise texts; ours are tokens already, and tokenised once, as generation sees them."""
        return dataset

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, torch.Tensor]) -> Any:
        log_probs = super().compute_ref_log_probs(model, inputs)
        if self._tracker is not None:
            done = len(inputs["input_ids"]) // 2 * self.accelerator.num_processes
            self._tracker.advance(min(done, self._tracker.total - self._tracker.done))
        return log_probs


class _Watch(TrainerCallback):
    """Progress, checkpoints for resuming, and a logged last step."""

    def __init__(self, tracker: Tracker | None, keep: KeepCheckpoint | None) -> None:
        self.tracker = tracker
        self.keep = keep

    def on_train_begin(self, _: TrainingArguments, state: TrainerState, *__: Any, **___: Any) -> None:
        if self.tracker is not None:
            self.tracker.start_at(state.global_step)

    def on_step_end(self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_save = False  # the model itself is about to be written
        if self.tracker is not None and not control.should_log:
            self.tracker.advance()

    def on_log(self, _: TrainingArguments, state: TrainerState, *__: Any, logs: dict[str, float], **___: Any) -> None:
        if self.tracker is not None and "loss" in logs:
            self.tracker.advance(state.global_step - self.tracker.done, loss=logs["loss"])

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process writes its own random state into the folder
        if self.keep is None:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / "training_args.bin").unlink()  # a pickle that nothing reads
        self.keep(state.global_step, folder)
        shutil.rmtree(folder)


def run(job: TrainingJob, keep: KeepCheckpoint | None) -> None:
    """Train one job and write `job.output_dir`/model.

    Args:
        keep: takes a checkpoint's step and folder; None in every process but the first.

    Raises:
        TrainingError: a loss or a gradient is not finite, or the processes are not those that were asked for.
        ConfigError: transformers or TRL refuse a setting.
    """
    # TRL 1.16 asks for a name that transformers 5.23 has renamed; it is nothing that a user could mend.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    _quiet()
    _score_trained_positions_only()
    config = job.section()
    _check_gpus(config, job.stage)
    tokenizer, _ = load_tokenizer(job.model_dir, job.opening_role)
    dataset = load_from_disk(str(job.dataset_dir))
    packed = isinstance(config, SFTConfig) and config.packing
    plan = plan_batches(dataset["length"], config, sort=not packed)
    arguments = _arguments(job, config, plan)
    # Master weights are float32 whatever `dtype` says: an update of 5e-6 is lost in bfloat16's 8 bits.
    model = AutoModelForCausalLM.from_pretrained(job.model_dir, dtype=torch.float32)
    shared = {
        "model": model,
        "args": arguments,
        "train_dataset": dataset,
        "processing_class": tokenizer,
        "plan": plan,
        "stage": job.stage,
    }
    trainer: Any
    if isinstance(config, SFTConfig):
        trainer = PlannedSFTTrainer(**shared)
    else:
        trainer = PlannedDPOTrainer(num_pairs=len(dataset), **shared)
    _check_processes(trainer, config, job.stage)
    trainer.remove_callback(PrinterCallback)
    resume = str(job.resume_from) if job.resume_from else None
    with _track(job.stage, plan.num_steps, "step", shown=trainer.is_world_process_zero()) as tracker:
        trainer.add_callback(_Watch(tracker, keep))
        trainer.train(resume_from_checkpoint=resume)
    _save(trainer, tokenizer, job.output_dir / "model", getattr(torch, config.dtype))
    if trainer.is_world_process_zero():
        write_log(_log_rows(trainer.state.log_history, plan), job.output_dir / "model")


def _quiet() -> None:
    """Leave the progress and the messages to us."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"  # TRL's bar over the reference model's log-probabilities; we show our own
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed, where installed, says that it saw no GPU


def _score_trained_positions_only() -> None:
    """Let TRL compute logits where a label is, on a CPU as it does on a GPU.

    Without Triton it scores the prompt's positions too, for chips that compile once per shape, and drops what it found.
    For SmolLM2 and 1,600 tokens of which 400 are trained that is a quarter of the step and a GB of memory.
    """
    assert callable(trl.trainer.utils._use_triton), "TRL has moved what decides this"
    trl.trainer.utils._use_triton = _yes


def _yes(_: torch.device) -> bool:
    return True


def _arguments(job: TrainingJob, config: TrainConfig, plan: BatchPlan) -> TrainingArguments:
    on_cpu = not torch.cuda.is_available()
    shared = {
        "output_dir": str(job.output_dir),
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": accumulation_steps(config),
        "max_steps": plan.num_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        # Rounded down: rounded up, as transformers does, a run of five steps would spend one at a learning rate of 0.
        "warmup_steps": math.floor(plan.num_steps * config.warmup_ratio),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": config.optim,
        "bf16": config.dtype == "bfloat16",
        "activation_checkpointing": config.gradient_checkpointing,
        "save_steps": config.save_steps,
        "save_total_limit": 1,
        "logging_steps": config.logging_steps,
        "logging_nan_inf_filter": False,  # the default shows the last good loss instead of a bad one
        "deepspeed": config.deepspeed,
        # use_cpu turns DeepSpeed off without a word; without a GPU, bf16 is refused unless it is set.
        "use_cpu": on_cpu and config.deepspeed is None,
        "dataloader_pin_memory": not on_cpu,
        "max_length": None,  # rows that are too long were dropped and counted; none is ever cut
        "disable_tqdm": True,
        "report_to": "none",
        "seed": config.seed,
    }
    try:
        if isinstance(config, DPOConfig):
            return TrlDPOConfig(**shared, beta=config.beta, loss_type=[config.loss_type], precompute_ref_log_probs=True)
        assert isinstance(config, SFTConfig)
        return TrlSFTConfig(**shared, packing=config.packing, dataset_kwargs={"skip_prepare_dataset": True})
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{job.stage}: transformers refuses the settings: {reason}. Change the setting it names."
        ) from error


def _check_gpus(config: TrainConfig, stage: str) -> None:
    """Ask for one process a GPU: with fewer, transformers splits batches in threads; with more, NCCL hangs."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus and config.num_processes != num_gpus:
        raise ConfigError(
            f"{stage}: num_processes is {config.num_processes}, but {num_gpus} GPU(s) are visible; expected one process a GPU. "
            f"Set num_processes to {num_gpus}, or hide GPUs with CUDA_VISIBLE_DEVICES."
        )


def _check_processes(trainer: Any, config: TrainConfig, stage: str) -> None:
    """Compare what accelerate made of the settings with what was asked: it falls back without a word."""
    accelerator = trainer.accelerator
    if config.deepspeed is not None:
        expected = "DEEPSPEED"
    elif config.num_processes > 1:
        expected = "MULTI_GPU" if torch.cuda.is_available() else "MULTI_CPU"
    else:
        expected = "NO"
    found = str(accelerator.distributed_type.value)
    if (found, accelerator.num_processes) != (expected, config.num_processes):
        raise TrainingError(
            f"{stage}: training would run as {accelerator.num_processes} process(es) of kind {found}; expected "
            f"{config.num_processes} of kind {expected}. Start it through `reasongenrm`, with neither WORLD_SIZE nor "
            "ACCELERATE_* set in the environment."
        )


def _save(trainer: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype) -> None:
    """Write the checkpoint in `dtype`, its one stop token being the end of the sequence."""
    trainer.optimizer = trainer.lr_scheduler = None  # twice the weights' memory, not needed any more
    trainer.accelerator.free_memory()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_deepspeed_enabled else None
    if not trainer.is_world_process_zero():
        return
    model: PreTrainedModel = trainer.accelerator.unwrap_model(trainer.model)
    if state is None:
        model.to(dtype)
    else:
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name, token in tokens.items():
        setattr(model.config, name, token)
    model.config.use_cache = True
    model.config._name_or_path = ""  # a scratch folder of this run; equal runs leave equal bytes
    model.generation_config = GenerationConfig(**tokens)
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


def _log_rows(history: list[dict[str, Any]], plan: BatchPlan) -> list[dict[str, float]]:
    """One row a logged step. Epoch and tokens come from the plan: TRL counts tokens from 0 again after a resume."""
    rows = []
    for logged in history:
        if "loss" not in logged:
            continue  # the summary at the end
        step = int(logged["step"])
        row = {
            "step": step,
            "epoch": plan.epoch(step),
            "loss": logged["loss"],
            "learning_rate": logged["learning_rate"],
        }
        row["grad_norm"] = logged["grad_norm"]
        row["num_tokens"] = plan.num_tokens(step)
        row.update({name: logged[name] for name in sorted(logged) if name not in row})
        rows.append(row)
    return rows
