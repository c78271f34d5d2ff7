"""Runs a training job: in this process, or in several under torchrun, which starts this module as a program.

`sft.py` and `dpo.py` hand over tokenised rows; `trainers.py` trains on them; back come a checkpoint, training_log.json
and a TensorBoard event file of the same figures.
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reasongenrm.config import TrainConfig
from reasongenrm.errors import ReasonGenRMError, TrainingError
from reasongenrm.processes.child import Child, end_with, how_it_ended, last_lines
from reasongenrm.processes.cpu_math import configure_cpu_math
from reasongenrm.records import OpeningRole
from reasongenrm.store.stage import Stage
from reasongenrm.training.job import LOG, TrainingJob
from reasongenrm.training.sharding import RIGID
from reasongenrm.training.world import World


def train(
    stage: Stage,
    config: TrainConfig,
    rows: Mapping[str, Sequence[Any]],
    model_dir: Path,
    opening_role: OpeningRole,
    world: World,
) -> dict[str, Any]:
    """Train on tokenised rows and add the checkpoint, the log and the event files to the stage.

    Of several nodes each calls this with the same rows. It returns on the first; the others have nothing more to do.

    Args:
        stage: whose checkpoints are kept and resumed.
        rows: columns of equal length: the kind of training's own, and `length`, the tokens of each row.
        model_dir: the checkpoint to start from.
        opening_role: the turn that a generation of the trained model opens.

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
        _run(job)
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
    program = ["-m", "reasongenrm.training.torchrun", str(job_path)]
    command = [sys.executable, "-m", "torch.distributed.run", *world.torchrun(), *program]
    with stderr_path.open("wb") as stderr, Child("torchrun", command, env=env, stderr=stderr) as torchrun:
        code = torchrun.wait()
    if code:
        raise _failure(job, world, how_it_ended(code), stderr_path)


def _failure(job: TrainingJob, world: World, how: str, stderr_path: Path) -> ReasonGenRMError:
    """The error that a process left behind, or what torchrun wrote at its end."""
    kinds = {kind.__name__: kind for kind in ReasonGenRMError.__subclasses__()}
    for path in sorted(job.output_dir.glob("error-*.json")):
        error = json.loads(path.read_bytes())
        return kinds[error["kind"]](error["message"])
    tail = last_lines(stderr_path, 60)  # torchrun's own report is 35
    where, elsewhere = f"{world}: ", ""
    if world.num_nodes > 1:
        where = f"node {world.node_rank} of {where}"
        elsewhere = "If no process failed here, another node's log says what happened first. "
    return TrainingError(
        f"{job.stage}: {where}torchrun {how}. The end of what it wrote:\n{tail}\n{elsewhere}"
        "If a process was killed for memory, set a smaller max_batch_tokens, or gradient_checkpointing to true."
    )


def _run(job: TrainingJob) -> None:
    """Train in this process; torch, transformers and TRL are imported no earlier."""
    from reasongenrm.training import trainers

    trainers.run(job)


def _work(job: TrainingJob, rank: int) -> int:
    """Be one of torchrun's processes."""
    try:
        _run(job)
    except ReasonGenRMError as error:
        found = {"kind": type(error).__name__, "message": str(error)}
        (job.output_dir / f"error-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
        return error.exit_code
    return 0


if __name__ == "__main__":
    end_with(os.getppid())  # torchrun, whose processes are beyond a kill of our group
    configure_cpu_math()
    sys.exit(_work(TrainingJob.model_validate_json(Path(sys.argv[1]).read_bytes()), int(os.environ["RANK"])))
