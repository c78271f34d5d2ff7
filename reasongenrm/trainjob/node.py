"""What every pod of a TrainJob runs: `python -m reasongenrm.trainjob.node '<json>'`, one training in this pod.

The launcher (`launch`) writes the argument. Key, inputs and store are those of the stage that launched it, so that its
checkpoints are found and its artifact is the one that the launcher waits for.
"""

import logging
import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType

from pydantic import BaseModel, ConfigDict

from reasongenrm import __version__
from reasongenrm.config import DPOConfig, SFTConfig
from reasongenrm.errors import ConfigError, ReasonGenRMError, validated
from reasongenrm.processes.cpu_math import configure_cpu_math
from reasongenrm.store.artifacts import ArtifactRef, Store
from reasongenrm.store.stage import Stage
from reasongenrm.training.dpo import train_dpo
from reasongenrm.training.sft import train_sft


class NodeTask(BaseModel):
    """The one argument.

    Attributes:
        key: of the stage, as the launcher has it.
        inputs: by the names that they have in the stage's key.
        sft, dpo: its section, with `mode: pod`; one of the two.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    store_uri: str
    variant: str | None
    inputs: dict[str, ArtifactRef]
    sft: SFTConfig | None = None
    dpo: DPOConfig | None = None


def training_stage(
    store: Store, config: SFTConfig | DPOConfig, variant: str | None, inputs: Mapping[str, ArtifactRef]
) -> Stage:
    """The stage whose artifact a training makes.

    Args:
        variant: of train_sft; None for train_dpo.
        inputs: `model`, and `examples` or `preferences`.
    """
    if isinstance(config, DPOConfig):
        return Stage(store, "train_dpo", config, inputs)
    return Stage(store, "train_sft", config, inputs, {"variant": variant})


def train_here(
    store: Store, config: SFTConfig | DPOConfig, variant: str | None, inputs: Mapping[str, ArtifactRef]
) -> ArtifactRef:
    """Train in this pod; arguments as of `training_stage`."""
    if isinstance(config, DPOConfig):
        return train_dpo(store, config, **inputs)
    assert variant is not None, "train_sft has a variant"
    return train_sft(store, config, variant, **inputs)


def run_task(task: NodeTask) -> ArtifactRef:
    """Run the training here.

    Raises:
        ConfigError: this package would give the stage another key than the launcher's: the image is of another version.
        ReasonGenRMError: as the stage.
    """
    store, config = Store(task.store_uri), task.sft or task.dpo
    assert config is not None, "a task has the section of its training"
    stage = training_stage(store, config, task.variant, task.inputs)
    if stage.key != task.key:
        raise ConfigError(
            f"{stage.name}: reasongenrm {__version__} of this image gives the stage the key {stage.key}; the launcher "
            f"expects {task.key}, so it is of another version. Let the TrainingRuntime's image (or trainjob.image) "
            "have the version of the pipeline's images."
        )
    return train_here(store, config, task.variant, task.inputs)


def main(arguments: list[str]) -> int:
    """Run the task of the one argument; the last line of the log is the error, if there is one. SIGTERM unwinds the
    stage."""
    signal.signal(signal.SIGTERM, _stop)
    configure_cpu_math()
    logging.basicConfig(level=logging.WARNING)
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        advice = "Let the TrainingRuntime's image have the version of the pipeline's images."
        expected = f"what reasongenrm {__version__} writes. {advice}"
        with validated("train_node: the argument", expected, ConfigError):
            task = NodeTask.model_validate_json(arguments[0], strict=True)
        run_task(task)
    except ReasonGenRMError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the last line of the pod's log
        return error.exit_code
    return 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
