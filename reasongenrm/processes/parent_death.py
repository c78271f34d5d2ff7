"""Commands that the kernel ends when their parent ends, however that comes about.

Linux sends a process a signal of its choice when the thread that started it ends, however that comes about. A program that lasts
a moment asks for it and then becomes the command; preexec_fn would do the same, but is unsafe once there are threads.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1

# Imports nothing of ours: it runs with -I -S, so that it is there in 20 ms and no environment changes it.
_LAUNCHER = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, int(sys.argv[1]))
if os.getppid() == int(sys.argv[2]):  # or the one who started us has ended already
    os.execvp(sys.argv[3], sys.argv[3:])
"""


def ending_with_us(command: Sequence[str], signal_number: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command to start instead, from the thread that it is to end with.

    Args:
        signal_number: what it gets then; SIGTERM for one that has to end its own children.
    """
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(int(signal_number)), str(os.getpid()), *command]


def end_with(parent: int) -> None:
    """Let this process get SIGKILL when its parent ends.

    Args:
        parent: its process id, from before; this process ends at once if it has another parent by now.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
