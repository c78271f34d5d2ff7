"""Stands where pipelines/local.py stands in a run: real tasks in a real process, told what to do, without KFP.

`python scripted_pipeline.py ARGUMENTS.json`; the parameter `model_uri` is the script, one action for each task.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# ruff: noqa: T201 - a program whose output is what it is for
from reasongenrm.config import SelectConfig
from reasongenrm.errors import StoreError
from reasongenrm.runs.task import Task
from reasongenrm.store.stage import Stage


def do(action: str, task: Task) -> None:
    """What one task does."""
    print(f"    {task.name} says {action}", flush=True)
    match action:
        case "skip":
            task.skip("nothing to do here")
            return
        case "fail":
            raise StoreError("the disk is full; free some")
        case "break":
            raise KeyError("lost")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            print(f"    hanging {os.getpid()} {child.pid}", flush=True)
            time.sleep(600)
    with Stage(task.store, task.name, SelectConfig(), {}) as stage:
        if not stage.done:
            stage.add_bytes("made.txt", task.name.encode())
        task.publish(stage.done or stage.finish({"num_in": 2, "num_out": 1}))


def main() -> None:
    """Run the tasks one after another, each in a process of its own; go on after one that failed, as KFP does."""
    given = json.loads(Path(sys.argv[1]).read_text())
    root, arguments = Path(given["pipeline_root"]), given["arguments"]
    actions = arguments["model_uri"].split()
    (root / "num_stages").write_text(str(len(actions)))
    print("noise of the runner", flush=True)
    failed = False
    for number, action in enumerate(actions):
        if action == "crash":
            sys.exit("the runner itself crashed")
        process = os.fork()
        if not process:
            output = root / "toy" / f"task-{number}" / "output"
            output.parent.mkdir(parents=True)
            with Task(f"task_{number}", str(output)) as task:
                task.begin(**arguments)
                do(action, task)
            os._exit(0)
        failed |= os.waitpid(process, 0)[1] != 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
