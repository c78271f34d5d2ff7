"""Child processes: each ends with us, is stopped with all that it started, and says how it ended.

Linux sends a process a signal of its choice when the thread that started it ends, however that comes about
(PR_SET_PDEATHSIG, the parent-death signal). A small program asks for it and then becomes the command; preexec_fn would
do the same, but is unsafe once there are threads.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from reasongenrm.errors import EngineError

START_SECONDS = 600.0  # vLLM on a cold machine: weights from a slow disk, then its compilation; our own server needs 30
STOP_SECONDS = 10.0  # to clean up after SIGTERM, before SIGKILL
_PR_SET_PDEATHSIG = 1

# Imports nothing of ours: with -I -S it is up in 20 ms, and no environment changes it.
_LAUNCHER = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, int(sys.argv[1]))
if os.getppid() == int(sys.argv[2]):  # otherwise our parent has ended already
    os.execvp(sys.argv[3], sys.argv[3:])
"""


def ending_with_us(command: Sequence[str], signal_number: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command to run instead, so that `command` gets a signal when the thread that starts it ends."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(int(signal_number)), str(os.getpid()), *command]


def end_with(parent: int) -> None:
    """Let this process get SIGKILL when its parent ends; it ends at once if its parent is not `parent` any more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Child:
    """A running command; as a context manager it is stopped at the end.

    Args:
        name: for messages, such as "the predictor".
        death_signal: sent to it when we end; SIGTERM for a process that must end children of its own; None: nothing is
            sent.
        own_group: whether it leads a session and a process group of its own, which Ctrl-C and a kill of our group do
            not reach; `kill` ends that group.
        log_path: file for its stdout and stderr; None: as in `options`.
        options: further arguments of `subprocess.Popen`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        death_signal: signal.Signals | None = signal.SIGKILL,
        own_group: bool = False,
        log_path: Path | None = None,
        **options: Any,
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._own_group = own_group
        with contextlib.ExitStack() as opened:
            if log_path is not None:
                log: IO[bytes] = opened.enter_context(log_path.open("wb"))
                options |= {"stdout": log, "stderr": subprocess.STDOUT}
            self.process: subprocess.Popen[Any] = subprocess.Popen(
                command if death_signal is None else ending_with_us(command, death_signal),
                stdin=subprocess.DEVNULL,
                start_new_session=own_group,
                **options,
            )

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:  # closes its pipes
            self.stop()

    def wait(self, seconds: float | None = None) -> int | None:
        """Its return code once it has ended; None if it still runs after `seconds` (None: wait forever)."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode

    def check(self) -> None:
        """Do nothing while it runs.

        Raises:
            EngineError: it has ended; says how, with the end of its log.
        """
        if self.process.poll() is not None:
            raise EngineError(f"{self.name} {how_it_ended(self.process.returncode)}. {self._end_of_log()}")

    def wait_until(
        self, is_up: Callable[[], bool], seconds: float, waiting: Callable[[float], None] = lambda _seconds: None
    ) -> None:
        """Wait until `is_up()`, for `seconds` at most; `waiting` is told the seconds so far after every look.

        Raises:
            EngineError: it ended first, or took too long; with the end of its log.
        """
        started = time.monotonic()
        while not is_up():
            self.check()
            waited = time.monotonic() - started
            if waited > seconds:
                raise EngineError(f"{self.name} did not answer in {seconds:.0f} s. {self._end_of_log()}")
            waiting(waited)
            time.sleep(0.1)

    def wait_until_up(self, url: str, waiting: Callable[[float], None] = lambda _seconds: None) -> None:
        """Wait until a GET of `url` is answered with a 2xx; see `wait_until`."""
        self.wait_until(lambda: is_up(url), START_SECONDS, waiting)

    def _end_of_log(self) -> str:
        assert self.log_path is not None, f"{self.name} has no log"
        return f"Its log, {self.log_path}, ends:\n{last_lines(self.log_path, 12)}"

    def stop(self, grace_seconds: float = STOP_SECONDS) -> None:
        """End it and everything that it started: SIGTERM, and SIGKILL for what is left after `grace_seconds`."""
        import psutil

        if self.process.poll() is None:
            parent = psutil.Process(self.process.pid)
            family = [parent, *parent.children(recursive=True)]
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.terminate()
            _gone, alive = psutil.wait_procs(family, timeout=grace_seconds)
            for member in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
        self.kill()

    def kill(self) -> None:
        """End it at once, and everything in its own group, if it has one."""
        if self._own_group:
            with contextlib.suppress(ProcessLookupError):  # the whole group has ended
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait()


def is_up(url: str) -> bool:
    """Whether a server on this machine answers a GET of `url` with a 2xx. No TLS, no proxy: reading the CAs takes 30
    ms."""
    import httpx

    try:
        return httpx.get(url, timeout=5, verify=False, trust_env=False).is_success
    except httpx.TransportError:
        return False


def how_it_ended(code: int) -> str:
    """A process's return code in words."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def last_lines(path: Path, num_lines: int) -> str:
    """The end of a log."""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:])
