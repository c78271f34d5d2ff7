"""Runs the pipeline on this machine: `python -m reasongenrm.pipelines.local ARGUMENTS.json`, in a process of its own.

`reasongenrm/runs/local.py` starts it, reads its output and stops it. Tasks are subprocesses of the same Python
environment.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any


def run(pipeline_root: Path, arguments: dict[str, Any]) -> None:
    """Run the pipeline through kfp.local; what tasks put out goes below `pipeline_root`.

    Args:
        pipeline_root: an empty folder; `num_stages` in it says how many there are at most.
        arguments: the pipeline's parameters.

    Raises:
        RuntimeError: a task failed; which one and why is in its outcome (reasongenrm/runs/task.py).
    """
    # The runner says that our images do not look like Python and that a laptop has no accelerators: both are meant so.
    warnings.filterwarnings(
        "ignore", message="You may be attemping to run a task that uses custom or non-Python base image"
    )
    warnings.filterwarnings("ignore", message=".* have no effect in the current local runner and will be ignored")
    from kfp import local
    from kfp.local import subprocess_task_handler

    from reasongenrm.config import ResourcesConfig
    from reasongenrm.pipelines.reason_reward_model import NUM_STAGES, reason_reward_model

    subprocess_task_handler.replace_python_executable = _replace_python
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(pipeline_root))
    (pipeline_root / "num_stages").write_text(str(NUM_STAGES), encoding="utf-8")
    reason_reward_model(ResourcesConfig())(**arguments)


def _replace_python(full_command: list[str], new_executable: str) -> list[str]:
    """Have a task's shell command start this environment's Python, and leave the task's arguments as they are.

    KFP replaces "python3" wherever it stands, so that an argument like /usr/lib/python3.11/model.gguf turns into a path
    that does not exist (kubeflow/pipelines, sdk/python/kfp/local/subprocess_task_handler.py at 2.17.0).
    """
    return [part if part.startswith("{") else part.replace("python3", new_executable) for part in full_command]


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        run(Path(given["pipeline_root"]), given["arguments"])
    except RuntimeError as error:
        sys.exit(str(error))
