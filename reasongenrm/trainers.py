"""TRL's SFT and DPO trainers, held to what is asked: our order of rows, exact tokens, no silent fallback.

Imported where training starts, because it needs torch, transformers and TRL. `run` trains one `training.TrainingJob`,
in one process or as one of torchrun's, and leaves a checkpoint that plain `from_pretrained` loads.
"""

import math
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
import trl.trainer.utils
from accelerate.utils import enable_fsdp_ram_efficient_loading, gather_object
from datasets import Dataset, disable_progress_bars, load_from_disk
from torch.utils.data import DataLoader
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
from trl.models import prepare_deepspeed

from reasongenrm.chat import save_reasoning_parser
from reasongenrm.checkpoints import keep_checkpoint
from reasongenrm.config import DPOConfig, SFTConfig, TrainConfig
from reasongenrm.errors import ConfigError, TrainingError
from reasongenrm.processes import accumulation_steps
from reasongenrm.progress import Tracker, track
from reasongenrm.sharding import KINDS, deepspeed_config, fsdp_config, without_tied
from reasongenrm.stage import Stage
from reasongenrm.training import BatchPlan, TrainingJob, load_tokenizer, plan_batches, write_log


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

    def create_accelerator_and_postprocess(self) -> None:
        """accelerate would let FSDP exchange gradients, and hand losses and log-probabilities out, in bfloat16."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None  # type: ignore[attr-defined]
        if plugin is not None and plugin.mixed_precision_policy is not None:
            plugin.mixed_precision_policy = replace(
                plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
            )

    def _get_train_sampler(self, *_: Any) -> list[int]:
        return self._plan.order

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Called for a checkpoint to resume from: DeepSpeed's own files hold all that it needs, so gather nothing."""
        if not self.is_deepspeed_enabled:  # type: ignore[attr-defined]
            super().save_model(*args, **kwargs)  # type: ignore[misc]

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

    def _precompute_ref_logps(self, dataset: Dataset, _: str, batch_size: int) -> Dataset:
        """TRL lets the first process write them to a file that all others read: other nodes have another disk.

        Returns:
            The dataset with columns ref_chosen_logps and ref_rejected_logps, shape (num_pairs,), in every process.
        """
        loader = self.accelerator.prepare(DataLoader(dataset, batch_size, collate_fn=self.data_collator))
        model = self.ref_model or self.model
        if self.is_deepspeed_enabled:
            # Kept, as TRL keeps it: its hooks gather the weights.
            model = self._precompute_engine = prepare_deepspeed(self.model, self.accelerator)
        chosen: list[float] = []
        rejected: list[float] = []
        for batch in loader:
            found = self.accelerator.gather_for_metrics(self.compute_ref_log_probs(model, batch))
            chosen += found[0].tolist()
            rejected += found[1].tolist()
        return dataset.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, torch.Tensor]) -> Any:
        log_probs = super().compute_ref_log_probs(model, inputs)
        if self._tracker is not None:
            done = len(inputs["input_ids"]) // 2 * self.accelerator.num_processes
            self._tracker.advance(min(done, self._tracker.total - self._tracker.done))
        return log_probs

    def _prepare_input(self, data: Any) -> Any:
        """transformers casts to DeepSpeed's bfloat16 what is no integer: of a log-probability of -500, +-1 would be left."""
        if isinstance(data, torch.Tensor) and data.is_floating_point():
            return data.to(self.args.device)
        return super()._prepare_input(data)


class _Watch(TrainerCallback):
    """Progress, checkpoints for resuming, and a logged last step."""

    def __init__(self, tracker: Tracker | None, stage: Stage) -> None:
        self.tracker = tracker
        self.stage = stage

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
        keep_checkpoint(self.stage, state.global_step, Path(args.output_dir) / f"checkpoint-{state.global_step}")


def run(job: TrainingJob) -> None:
    """Train one job and write `job.output_dir`/model, as one process or as one of several.

    Raises:
        TrainingError: a loss or a gradient is not finite, or the processes are not those that were asked for.
        ConfigError: transformers or TRL refuse a setting.
    """
    # TRL 1.16 asks for a name that transformers 5.23 has renamed; it is nothing that a user could mend.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    _quiet()
    _score_trained_positions_only()
    config = job.section()
    tokenizer, _ = load_tokenizer(job.model_dir, job.opening_role)
    dataset = load_from_disk(str(job.dataset_dir))
    packed = isinstance(config, SFTConfig) and config.packing
    plan = plan_batches(dataset["length"], config, sort=not packed)
    arguments = _arguments(job, config, plan)
    if arguments.fsdp and arguments.fsdp_config["cpu_ram_efficient_loading"]:
        enable_fsdp_ram_efficient_loading()  # transformers asks the environment, which nobody else has set by now
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
    _check_processes(trainer, config, job)
    trainer.remove_callback(PrinterCallback)
    resume = str(job.resume_from) if job.resume_from else None
    with _track(job.stage, plan.num_steps, "step", shown=trainer.is_world_process_zero()) as tracker:
        trainer.add_callback(_Watch(tracker, job.open_stage()))
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
        "gradient_accumulation_steps": accumulation_steps(config, job.num_processes),
        "max_steps": plan.num_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        # Rounded down: rounded up, as transformers does, a run of five steps would spend one at a learning rate of 0.
        "warmup_steps": math.floor(plan.num_steps * config.warmup_ratio),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": config.optim,
        "bf16": config.dtype == "bfloat16",
        "activation_checkpointing": config.gradient_checkpointing and config.sharding != "fsdp2",  # has its own
        "save_steps": config.save_steps,
        "save_total_limit": 1,
        "logging_steps": config.logging_steps,
        "logging_nan_inf_filter": False,  # the default shows the last good loss instead of a bad one
        "deepspeed": deepspeed_config(config),
        "fsdp": config.sharding == "fsdp2",
        "fsdp_config": fsdp_config(config, trainer=job.trainer),
        # use_cpu turns DeepSpeed and FSDP off without a word; without a GPU, bf16 is refused unless it is set.
        "use_cpu": on_cpu and config.sharding == "none",
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


def _check_processes(trainer: Any, config: TrainConfig, job: TrainingJob) -> None:
    """Compare what accelerate made of the settings with what was asked: it falls back without a word."""
    accelerator = trainer.accelerator
    plain = "NO" if job.num_processes == 1 else "MULTI_GPU" if torch.cuda.is_available() else "MULTI_CPU"
    expected = (KINDS.get(config.sharding, plain), job.num_processes, config.sharding)
    kind, sharding = str(accelerator.distributed_type.value), "none"
    if kind == "DEEPSPEED":
        sharding = f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    elif kind == "FSDP":
        sharding = f"fsdp{accelerator.state.fsdp_plugin.fsdp_version}"
    found = (kind, accelerator.num_processes, sharding)
    if found != expected:
        advice = (
            "" if torch.cuda.is_available() or config.sharding == "none" else "Sharding needs GPUs: set it to 'none'. "
        )
        raise TrainingError(
            f"{job.stage}: training would run as {_processes(*found)}; expected {_processes(*expected)}. {advice}"
            "Start it through `reasongenrm`, with neither WORLD_SIZE nor ACCELERATE_* set in the environment."
        )
    resumed = gather_object([job.resume_from.name if job.resume_from else "the beginning"])
    if len(set(resumed)) > 1:
        raise TrainingError(
            f"{job.stage}: the processes would go on from different points: {', '.join(resumed)}. Another run of this stage "
            "is writing its checkpoints: stop it, and start again."
        )


def _processes(kind: str, num_processes: int, sharding: str) -> str:
    return f"{num_processes} process(es) of kind {kind} with sharding '{sharding}'"


def _save(trainer: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype) -> None:
    """Write the checkpoint in `dtype`, its one stop token being the end of the sequence."""
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    trainer.optimizer = trainer.lr_scheduler = None  # twice the weights' memory, not needed any more
    trainer.accelerator.free_memory()
    if not trainer.is_world_process_zero():
        return
    model: PreTrainedModel = trainer.accelerator.unwrap_model(trainer.model)
    if state is None:
        model.to(dtype)
    else:
        state = without_tied(state, model.all_tied_weights_keys)
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
    # It has just written the dtype of the model, which under FSDP2 is that of the master weights and not of `state`.
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_reasoning_parser(folder)


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
