"""What SFT and DPO share: a training job and its settings, kept log-probabilities of the reference, and the log.

`torchrun.py` runs a job; `trainers.py`, which needs torch, does the training.
"""

import json
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasongenrm.config import DPOConfig, ReferenceConfig, Section, SFTConfig, TrainConfig, TrainJobConfig
from reasongenrm.data.chat import detect_family, install_template
from reasongenrm.data.chat_families import ChatFamily
from reasongenrm.errors import ConfigError
from reasongenrm.records import OpeningRole
from reasongenrm.store.artifacts import ArtifactRef, Store, read_file
from reasongenrm.store.stage import Stage
from reasongenrm.training.world import World, check_batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOG = "training_log.json"
# Those of transformers that need nothing but a number of steps and of warm-up steps.
_SCHEDULERS = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"),
    *("constant_with_warmup", "constant"),
)
_CONFIGS: dict[str, type[TrainConfig]] = {"train_sft": SFTConfig, "train_dpo": DPOConfig}  # by stage


class TrainingJob(Section):
    """Everything that a training process is told, as one file."""

    stage: str  # name of the stage, with `config`, `inputs` and `extra` what its key is made of
    config: dict[str, Any]
    inputs: dict[str, str]
    extra: dict[str, Any]
    store_uri: str
    model_dir: Path  # the checkpoint to start from, with its tokenizer
    dataset_dir: Path  # tokenised rows as `datasets` saves them, with a column `length`
    output_dir: Path  # where `model/` (the checkpoint, the log, the event files) and the Trainer's own files go
    resume_from: Path | None  # a checkpoint of this very job, or None
    opening_role: OpeningRole
    num_processes: int  # of all nodes

    def section(self) -> TrainConfig:
        """The stage's config section."""
        return _CONFIGS[self.stage].model_validate(self.config)


def check_config(config: TrainConfig, stage: str) -> None:
    """Refuse settings that contradict each other, or of which one has no effect; `find_world` knows the processes.

    Raises:
        ConfigError: with the setting, its value, and one that would do.
    """
    if config.mode == "pod" and config.trainjob != TrainJobConfig():
        raise ConfigError(
            f"{stage}: trainjob has settings, but mode is 'pod', where they have no effect. Set mode to 'trainjob', or "
            "leave the section trainjob out."
        )
    missing = [name for name in config.report_to if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{stage}: report_to names {', '.join(missing)}, not installed here. Run `pip install "
            f"{' '.join(missing)}`, or leave the name out."
        )
    check_batch(config, stage, World(num_processes=config.num_processes or 1))
    if config.max_steps == 0 or config.max_steps < -1:
        raise ConfigError(
            f"{stage}: max_steps is {config.max_steps}; expected a number above 0, or -1 to let num_train_epochs "
            "decide."
        )
    if config.save_steps % config.logging_steps:
        raise ConfigError(
            f"{stage}: save_steps is {config.save_steps}; expected a multiple of logging_steps {config.logging_steps}, "
            "so that a resumed run's log has the same rows. Set it to "
            f"{math.ceil(config.save_steps / config.logging_steps) * config.logging_steps}."
        )
    if config.lr_scheduler_type not in _SCHEDULERS:
        raise ConfigError(
            f"{stage}: lr_scheduler_type is '{config.lr_scheduler_type}'; expected one of {', '.join(_SCHEDULERS)}."
        )
    if config.lr_scheduler_type == "constant" and config.warmup_ratio:
        raise ConfigError(
            f"{stage}: warmup_ratio is {config.warmup_ratio}, but lr_scheduler_type 'constant' has no warm-up. "
            "Set warmup_ratio to 0, or lr_scheduler_type to 'constant_with_warmup'."
        )


def load_tokenizer(model_dir: Path, opening_role: OpeningRole) -> "tuple[PreTrainedTokenizerBase, ChatFamily]":
    """The tokenizer of a checkpoint with our chat template, and its family.

    Raises:
        InputError: the family is not supported.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    family = detect_family(tokenizer)
    install_template(tokenizer, family, opening_role)
    return tokenizer, family


def length_limit(model_dir: Path, config: TrainConfig) -> int:
    """Tokens that a row may have: `max_length`, or the model's own context if that is shorter."""
    context: int = json.loads((model_dir / "config.json").read_bytes())["max_position_embeddings"]
    return min(config.max_length, context)


def reference_stage(store: Store, config: DPOConfig, max_length: int, inputs: Mapping[str, ArtifactRef | str]) -> Stage:
    """Where the reference model's log-probabilities are kept, by all that they depend on.

    So they are computed once for a model and its pairs (`inputs`), of which none is longer than `max_length` tokens.
    """
    section = ReferenceConfig(max_length=max_length, dtype=config.dtype)
    return Stage(store, "reference_log_probs", section, inputs)


def keep_reference(stage: Stage, columns: Mapping[str, Sequence[float]]) -> None:
    """Keep log-probabilities, a value a pair in the order of the pairs."""
    with stage:
        stage.add_bytes("log_probs.json", json.dumps(columns).encode())
        stage.finish({"num_out": len(next(iter(columns.values())))})


def kept_reference(stage: Stage) -> dict[str, list[float]]:
    """What `keep_reference` kept; nothing if it was not called yet."""
    with stage:
        return json.loads(read_file(stage.done, "log_probs.json")) if stage.done else {}


def write_log(rows: Sequence[Mapping[str, float]], folder: Path) -> None:
    """Write training_log.json and, from the same figures, a TensorBoard event file.

    The event file bears no time and no host name: equal runs leave equal bytes. Its "wall time" is the step.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    text = ",\n".join(json.dumps(row) for row in rows)
    (folder / LOG).write_text(f"[\n{text}\n]\n", encoding="utf-8")
    (folder / "tensorboard").mkdir(exist_ok=True)
    with (folder / "tensorboard" / "events.out.tfevents.training").open("wb") as file:
        events = RecordWriter(file)
        events.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
        for row in rows:
            step = int(row["step"])
            values = [Summary.Value(tag=f"train/{tag}", simple_value=row[tag]) for tag in row if tag != "step"]
            events.write(Event(wall_time=step, step=step, summary=Summary(value=values)).SerializeToString())
