"""One training job, from tokenised rows to a checkpoint, in one process or as one of torchrun's.

Imported where training starts, because it needs torch, transformers and TRL. `packed_trainers.py` has the two trainers;
here they get their settings and their model, are compared with what was asked, and leave what plain `from_pretrained`
loads.
"""

import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import trl.trainer.dpo_trainer
import trl.trainer.utils
from accelerate.utils import enable_fsdp_ram_efficient_loading, gather_object
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
from trl import SFTConfig as TrlSFTConfig

from reasongenrm.config import DPOConfig, SFTConfig, TrainConfig
from reasongenrm.data.chat import save_reasoning_parser
from reasongenrm.errors import ConfigError, TrainingError
from reasongenrm.packing.batches import BatchPlan, plan_batches
from reasongenrm.packing.kernels import prepare_for_packed_rows
from reasongenrm.processes.cpu_math import warm_up_cpu_math
from reasongenrm.progress import Tracker
from reasongenrm.store.artifacts import Store
from reasongenrm.store.stage import Stage
from reasongenrm.training.checkpoints import keep_checkpoint
from reasongenrm.training.job import (
    TrainingJob,
    keep_reference,
    length_limit,
    load_tokenizer,
    reference_stage,
    write_log,
)
from reasongenrm.training.memory import countable_shape, fits_without_checkpointing, max_batch_tokens
from reasongenrm.training.packed import PackedDPOTrainer, PackedSFTTrainer, track_on
from reasongenrm.training.shapes import ModelShape
from reasongenrm.training.sharding import KINDS, deepspeed_config, fsdp_config, without_tied


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
    # TRL 1.16 asks for a name that transformers 5.23 has renamed; a user cannot fix that.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    _quiet()
    config = job.section()
    tokenizer, _ = load_tokenizer(job.model_dir, job.opening_role)
    rows = load_from_disk(str(job.dataset_dir))
    trainer = build_trainer(
        config,
        # Master weights are float32 whatever `dtype` says: an update of 5e-6 is lost in bfloat16's 8 bits.
        lambda: AutoModelForCausalLM.from_pretrained(job.model_dir, dtype=torch.float32),
        countable_shape(job.model_dir),
        tokenizer,
        rows,
        stage=job.stage,
        output_dir=job.output_dir,
        num_processes=job.num_processes,
    )
    trainer.args.run_name = " ".join((job.stage, *(f"({value})" for value in job.extra.values())))
    _check_processes(trainer, config, job)
    store = Store(job.store_uri)
    main = trainer.is_world_process_zero()
    if main and isinstance(config, DPOConfig) and isinstance(trainer, PackedDPOTrainer) and trainer.reference:
        limit = length_limit(job.model_dir, config)
        keep_reference(reference_stage(store, config, limit, job.inputs), trainer.reference)
    plan = trainer.plan
    with track_on(job.stage, plan.num_steps, "step", shown=main) as tracker:
        trainer.add_callback(_Watch(tracker, Stage(store, job.stage, config, job.inputs, job.extra)))
        trainer.train(resume_from_checkpoint=str(job.resume_from) if job.resume_from else None)
    _save(trainer, tokenizer, job.output_dir / "model", getattr(torch, config.dtype))
    if main:
        write_log(_log_rows(trainer.state.log_history, plan), job.output_dir / "model")


def build_trainer(
    config: TrainConfig,
    load_model: Callable[[], PreTrainedModel],
    shape: ModelShape | None,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    *,
    stage: str,
    output_dir: Path,
    num_processes: int,
) -> PackedSFTTrainer | PackedDPOTrainer:
    """A trainer for packed rows, ready to train; for DPO the reference model has been asked by then.

    Args:
        config: SFTConfig or DPOConfig decides which trainer.
        load_model: gives the model with float32 weights, which is changed in place. It is called once the settings
            stand: DeepSpeed and FSDP make transformers load every process its own part, or one process the whole.
        shape: of that model; None: unknown, so activations are computed twice unless the config says otherwise.
        rows: columns `length` (tokens of each row) and, for SFT, input_ids and labels, for DPO, prompt_ids, chosen_ids
            and rejected_ids and maybe the reference's log-probabilities.

    Raises:
        ConfigError: transformers or TRL refuse a setting.
    """
    warm_up_cpu_math()
    _adjust_trl()
    plan = plan_batches(rows["length"], config, num_processes, max_batch_tokens(shape, config, num_processes))
    checkpointing = config.gradient_checkpointing
    if checkpointing == "auto":
        checkpointing = not fits_without_checkpointing(shape, config, plan.max_tokens, num_processes)
    arguments = _arguments(
        config, plan, checkpointing=checkpointing, stage=stage, output_dir=output_dir, num_processes=num_processes
    )
    if arguments.fsdp and arguments.fsdp_config["cpu_ram_efficient_loading"]:
        enable_fsdp_ram_efficient_loading()  # transformers reads the environment, which nothing else has set by now
    model = load_model()
    prepare_for_packed_rows(model, keep_dtype=config.dtype)
    kind = PackedSFTTrainer if isinstance(config, SFTConfig) else PackedDPOTrainer
    trainer = kind(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, plan=plan, stage=stage)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _quiet() -> None:
    """Leave the progress and the messages to us."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"  # TRL's bar over the reference model's log-probabilities; we show our own
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed, where installed, says that it saw no GPU


def _adjust_trl() -> None:
    """Spare two of TRL's ways, which are not settings.

    Without Triton it scores the prompt's positions too, for chips that compile once per shape, and drops what it found.
    For SmolLM2 and 1,600 tokens of which 400 are trained that is a quarter of the step and a GB of memory.

    And it hashes a model to name the file in which it keeps the reference's log-probabilities, which we keep ourselves:
    14 s for 1.5B parameters on an H200's machine.
    """
    assert callable(trl.trainer.utils._use_triton), "TRL has moved what decides this"
    assert callable(trl.trainer.dpo_trainer.hash_module), "TRL has moved what hashes models"
    trl.trainer.utils._use_triton = lambda _device: True
    trl.trainer.dpo_trainer.hash_module = lambda _model: None


def _arguments(
    config: TrainConfig, plan: BatchPlan, *, checkpointing: bool, stage: str, output_dir: Path, num_processes: int
) -> TrainingArguments:
    on_cpu = not torch.cuda.is_available()
    shared = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 1,  # micro-batch, packed beforehand
        "gradient_accumulation_steps": plan.num_micro_batches // num_processes,
        "max_steps": plan.num_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        # Rounded down: rounded up, as transformers does, a run of five steps would spend one at a learning rate of 0.
        "warmup_steps": math.floor(plan.num_steps * config.warmup_ratio),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": config.optim,
        "bf16": config.dtype == "bfloat16",
        "activation_checkpointing": checkpointing and config.sharding != "fsdp2",  # has its own
        "save_steps": config.save_steps,
        "save_total_limit": 1,
        "logging_steps": config.logging_steps,
        "logging_nan_inf_filter": False,  # the default shows the last good loss instead of a bad one
        "deepspeed": deepspeed_config(config),
        "fsdp": config.sharding == "fsdp2",
        "fsdp_config": fsdp_config(config, checkpointing=checkpointing),
        # use_cpu turns DeepSpeed and FSDP off without a word; without a GPU, bf16 is refused unless it is set.
        "use_cpu": on_cpu and config.sharding == "none",
        # Micro-batches are packed and copied while the GPU works.
        "dataloader_num_workers": 0 if on_cpu else 2,
        "dataloader_pin_memory": not on_cpu,
        "accelerator_config": {"non_blocking": not on_cpu},
        "remove_unused_columns": False,
        "max_length": None,  # rows that are too long were dropped and counted; none is ever cut
        "ddp_find_unused_parameters": False,  # there are none; looking for them would cost a pass over the graph
        "disable_tqdm": True,
        "report_to": list(config.report_to) or "none",
        "seed": config.seed,
    }
    try:
        if isinstance(config, DPOConfig):
            return TrlDPOConfig(**shared, beta=config.beta, loss_type=[config.loss_type], precompute_ref_log_probs=True)
        assert isinstance(config, SFTConfig)
        return TrlSFTConfig(**shared, dataset_kwargs={"skip_prepare_dataset": True})
    except ValueError as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"{stage}: transformers refuses the settings: {why}. Change the setting it names.") from error


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
        said = "{1} process(es) of kind {0} with sharding '{2}'"
        without = config.sharding != "none" and not torch.cuda.is_available()
        advice = "Sharding needs GPUs: set it to 'none'. " if without else ""
        raise TrainingError(
            f"{job.stage}: training would run as {said.format(*found)}; expected {said.format(*expected)}. {advice}"
            "Start it through `reasongenrm`, with neither WORLD_SIZE nor ACCELERATE_* set in the environment."
        )
    resumed = gather_object([job.resume_from.name if job.resume_from else "the beginning"])
    if len(set(resumed)) > 1:
        raise TrainingError(
            f"{job.stage}: the processes would resume from different checkpoints: {', '.join(resumed)}. Another run of "
            "this stage is writing its checkpoints: stop it, and start again."
        )


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
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
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
        if "loss" in logged:  # not in the summary at the end
            step = int(logged["step"])
            row = {"step": step, "epoch": plan.epoch(step)}
            row |= {name: logged[name] for name in ("loss", "learning_rate", "grad_norm")}
            row["num_tokens"] = plan.num_tokens(step)
            rows.append(row | {name: logged[name] for name in sorted(logged) if name not in row})
    return rows
