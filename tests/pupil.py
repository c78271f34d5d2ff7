"""A worker for tests/processes/test_workers.py, run as `python -m tests.pupil`: does what it is told."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

from reasongenrm.errors import ReasonGenRMError
from reasongenrm.processes.workers import Caller, run_worker


def serve(caller: Caller) -> None:
    """Do one thing after another: (order, detail)."""
    while True:
        obey(caller, *caller.recv())


def obey(caller: Caller, order: str, detail: Any = None) -> None:
    """Do one thing."""
    if order == "say":
        caller.send(detail)
    elif order == "environment":
        caller.send([os.environ.get(name) for name in detail])
    elif order == "raise":
        assert isinstance(detail, ReasonGenRMError)
        raise detail
    elif order == "exit":
        sys.exit(detail)
    elif order == "kill yourself":
        os.kill(os.getpid(), signal.SIGKILL)
    elif order == "have a child":
        caller.send(subprocess.Popen(["sleep", "600"]).pid)
    elif order == "be busy":
        caller.send("busy")
        time.sleep(detail)


if __name__ == "__main__":
    run_worker(serve)
