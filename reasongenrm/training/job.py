"""What SFT and DPO share: settings, one job in this process or under torchrun, and its results.

`sft.py` and `dpo.py` hand over tokenised rows; `trainers.py`, which needs torch, trains on them; back come a
checkpoint, training_log.json and a TensorBoard event file of the same figures. torchrun starts this module as a program.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reasongenrm.config import DPOConfig, Section, SFTConfig, TrainConfig, TrainJobConfig
from reasongenrm.data.chat import ChatFamily, detect_family, install_template
from reasongenrm.errors import ConfigError, ReasonGenRMError, TrainingError
from reasongenrm.generation.seam import OpeningRole
from reasongenrm.processes.cpu_math import configure_cpu_math
from reasongenrm.processes.parent_death import end_with, ending_with_us
from reasongenrm.store.artifacts import Store
from reasongenrm.store.stage import Stage
from reasongenrm.training.sharding import RIGID
from reasongenrm.training.world import World, check_batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOG = "training_log.json"
# Those of transformers that need nothing but a number of steps and of warm-up steps.
_SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "constant_with_warmup",
    "constant",
)
_CONFIGS: dict[str, type[TrainConfig]] = {"sft": SFTConfig, "dpo": DPOConfig}


class TrainingJob(Section):
    """Everything that a training process is told, as one file.

    Attributes:
        stage: name of the stage, with `config`, `inputs` and `extra` what its key is made of.
        model_dir: the checkpoint to start from, with its tokenizer.
        dataset_dir: tokenised rows as `datasets` saves them, with a column `length`.
        output_dir: where `model/` (the checkpoint, the log, the event files) and the Trainer's own files go.
        resume_from: a checkpoint of this very job, or None.
        num_processes: of all nodes.
    """

    stage: str
    trainer: Literal["sft", "dpo"]
    config: dict[str, Any]
    inputs: dict[str, str]
    extra: dict[str, Any]
    store_uri: str
    model_dir: Path
    dataset_dir: Path
    output_dir: Path
    resume_from: Path | None
    opening_role: OpeningRole
    num_processes: int

    def section(self) -> TrainConfig:
        """The stage's config section."""
        return _CONFIGS[self.trainer].model_validate(self.config)

    def open_stage(self) -> Stage:
        """The stage, for its checkpoints."""
        return Stage(Store(self.store_uri), self.stage, self.section(), self.inputs, self.extra)


def check_config(config: TrainConfig, stage: str) -> None:
    """Refuse settings that contradict each other, or of which one has no effect; `find_world` knows the processes.

    Raises:
        ConfigError: with the setting, its value, and one that would do.
    """
    if config.mode == "pod" and config.trainjob != TrainJobConfig():
        raise ConfigError(
            f"{stage}: trainjob has settings, but mode is 'pod', where they have no effect. Set mode to 'trainjob', or leave "
            "the section trainjob out."
        )
    check_batch(config, stage, World(num_processes=config.num_processes or 1))
    if config.max_steps == 0 or config.max_steps < -1:
        raise ConfigError(
            f"{stage}: max_steps is {config.max_steps}; expected a number above 0, or -1 to let num_train_epochs decide."
        )
    if config.save_steps % config.logging_steps:
        raise ConfigError(
            f"{stage}: save_steps is {config.save_steps}; expected a multiple of logging_steps {config.logging_steps}, so "
            "that a resumed run's log has the same rows. "
            f"Set it to {math.ceil(config.save_steps / config.logging_steps) * config.logging_steps}."
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


def train(
    stage: Stage,
    config: TrainConfig,
    trainer: Literal["sft", "dpo"],
    rows: Mapping[str, Sequence[Any]],
    model_dir: Path,
    opening_role: OpeningRole,
    world: World,
) -> dict[str, Any]:
    """Train on tokenised rows and add the checkpoint, the log and the event files to the stage.

    Of several nodes each calls this with the same rows. It returns on the first; the others have nothing more to do.

    Args:
        stage: whose checkpoints are kept and resumed.
        rows: columns of equal length: the trainer's own, and `length`, the tokens of each row.
        model_dir: the checkpoint to start from.
        opening_role: the turn that a generation of the trained model opens.
        world: of `find_world`.

    Returns:
        The stage's metrics: num_steps, num_tokens, last_loss, seconds.

    Raises:
        TrainingError: a loss or a gradient is not finite, or a training process died.
        ConfigError: the libraries refuse a setting.
        SystemExit: 0, on every node but the first, once all have trained to the end.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    started = time.monotonic()
    dataset_dir, output_dir = stage.work_dir / "dataset", stage.work_dir / "training"
    Dataset.from_dict(dict(rows)).save_to_disk(dataset_dir)
    job = TrainingJob(
        stage=stage.name,
        trainer=trainer,
        config=config.model_dump(mode="json"),
        inputs=stage.inputs,
        extra={name: value for name, value in stage.config.items() if name not in type(config).model_fields},
        store_uri=stage.store.uri,
        model_dir=model_dir,
        dataset_dir=dataset_dir,
        output_dir=output_dir,
        resume_from=stage.latest_checkpoint(output_dir, world.size if config.sharding in RIGID else None),
        opening_role=opening_role,
        num_processes=world.size,
    )
    if world.size == 1:
        from reasongenrm.training import trainers

        trainers.run(job)
    else:
        _torchrun(job, world)
    if world.node_rank > 0:
        raise SystemExit(0)
    stage.add_folder(output_dir / "model")
    log = json.loads((output_dir / "model" / LOG).read_bytes())
    return {
        "num_steps": log[-1]["step"],
        "num_tokens": log[-1]["num_tokens"],
        "last_loss": log[-1]["loss"],
        "seconds": round(time.monotonic() - started, 1),
    }


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


def _torchrun(job: TrainingJob, world: World) -> None:
    """Run this node's part of a job in separate processes, and raise here what the first of them raised."""
    job.output_dir.mkdir(parents=True, exist_ok=True)
    job_path, stderr_path = job.output_dir / "job.json", job.output_dir / "stderr.txt"
    job_path.write_text(job.model_dump_json(indent=2), encoding="utf-8")
    # torchrun reads PET_* too, each as an option; ours say the same, and win.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}
    env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // world.num_processes)))
    if world.num_nodes == 1:
        # Processes of one machine talk over loopback; without this gloo asks a resolver for the host's own name.
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *world.torchrun(),
        "-m",
        "reasongenrm.training.job",
        str(job_path),
    ]
    with stderr_path.open("wb") as stderr:
        code = subprocess.run(ending_with_us(command), env=env, stderr=stderr, check=False).returncode
    if code:
        raise _failure(job, world, code, stderr_path)


def _failure(job: TrainingJob, world: World, code: int, stderr_path: Path) -> ReasonGenRMError:
    """The error that a process left behind, or what torchrun wrote at its end."""
    kinds = {kind.__name__: kind for kind in ReasonGenRMError.__subclasses__()}
    for path in sorted(job.output_dir.glob("error-*.json")):
        error = json.loads(path.read_bytes())
        return kinds[error["kind"]](error["message"])
    tail = "\n".join(
        stderr_path.read_text(encoding="utf-8", errors="replace").splitlines()[-60:]
    )  # torchrun's own report is 35
    where = f"node {world.node_rank} of {world}: " if world.num_nodes > 1 else f"{world}: "
    elsewhere = (
        "If no process failed here, another node's log says what happened first. " if world.num_nodes > 1 else ""
    )
    return TrainingError(
        f"{job.stage}: {where}torchrun ended with exit code {code}. The end of what it wrote:\n{tail}\n{elsewhere}"
        "If a process was killed for memory, set a smaller max_batch_tokens, or gradient_checkpointing to true."
    )


def _work(job: TrainingJob, rank: int) -> int:
    """Be one of torchrun's processes."""
    from reasongenrm.training import trainers

    try:
        trainers.run(job)
    except ReasonGenRMError as error:
        found = {"kind": type(error).__name__, "message": str(error)}
        (job.output_dir / f"error-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
        return error.exit_code
    return 0


if __name__ == "__main__":
    end_with(os.getppid())  # torchrun, whose processes are beyond a kill of our group
    configure_cpu_math()
    sys.exit(_work(TrainingJob.model_validate_json(Path(sys.argv[1]).read_bytes()), int(os.environ["RANK"])))
