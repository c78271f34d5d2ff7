"""What each pod of a TrainJob runs: one stage, as `python -m reasongenrm.trainjob.node JSON`.

The launcher (`trainjob`) writes the argument. Key, inputs and store are those of the stage that launched it, so that its
checkpoints are found and its artifact is the one that the launcher waits for.
"""

import logging
import os
import signal
import sys
from types import FrameType
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from reasongenrm import __version__
from reasongenrm.config import DPOConfig, SFTConfig
from reasongenrm.errors import ConfigError, ReasonGenRMError
from reasongenrm.processes.cpu_math import configure_cpu_math
from reasongenrm.store.artifacts import ArtifactRef, Store
from reasongenrm.store.stage import Stage


class NodeTask(BaseModel):
    """The one argument.

    Attributes:
        key: of the stage, as the launcher has it.
        inputs: by the names that they have in the stage's key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: Literal["train_sft", "train_dpo"]
    key: str
    store_uri: str
    variant: Literal["genrm", "sft"] | None
    sft: SFTConfig | None = None
    dpo: DPOConfig | None = None
    inputs: dict[str, ArtifactRef]


def run(task: NodeTask) -> ArtifactRef:
    """Run the stage here, with `mode: pod`.

    Raises:
        ConfigError: this package would give the stage another key than the launcher's: the image is of another version.
        ReasonGenRMError: as the stage.
    """
    store = Store(task.store_uri)
    section = task.sft if task.stage == "train_sft" else task.dpo
    assert section is not None, f"no config of {task.stage}"
    extra = {} if task.variant is None else {"variant": task.variant}
    key = Stage(store, task.stage, section, task.inputs, extra).key
    if key != task.key:
        raise ConfigError(
            f"{task.stage}: reasongenrm {__version__} of this image gives the stage the key {key}; the launcher expects "
            f"{task.key}, so it is of another version. Let the TrainingRuntime's image (or trainjob.image) have the version of "
            "the pipeline's images."
        )
    if task.sft is not None:
        from reasongenrm.training.sft import train_sft

        assert task.variant is not None, "train_sft has a variant"
        return train_sft(store, task.sft, task.variant, task.inputs["model"], task.inputs["examples"])
    from reasongenrm.training.dpo import train_dpo

    assert task.dpo is not None
    return train_dpo(store, task.dpo, task.inputs["model"], task.inputs["preferences"])


def main(arguments: list[str]) -> int:
    """Run the task of the one argument; the last line of the log is the error, if there is one. SIGTERM unwinds the stage."""
    signal.signal(signal.SIGTERM, _stop)
    configure_cpu_math()
    logging.basicConfig(level=logging.WARNING)
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        try:
            task = NodeTask.model_validate_json(arguments[0], strict=True)
        except ValidationError as error:
            raise ConfigError(
                f"train_node: the argument is not what reasongenrm {__version__} expects: {' '.join(str(error).split())}. Let "
                "the TrainingRuntime's image have the version of the pipeline's images."
            ) from error
        run(task)
    except ReasonGenRMError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201 - the last line of the pod's log
        return error.exit_code
    return 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
