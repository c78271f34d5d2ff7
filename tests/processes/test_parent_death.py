"""Processes that end with whoever started them, who is killed here in a way that nobody can catch."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
PARENT = """
import subprocess, sys, time
from signal import Signals
from reasongenrm.processes.parent_death import ending_with_us
child = subprocess.Popen(ending_with_us(sys.argv[2:], Signals(int(sys.argv[1]))), stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline(), end="", flush=True)
time.sleep(600)
"""
CHILD = """
import signal, sys, time
from pathlib import Path
def say(*_):
    Path(sys.argv[1]).write_text("asked to end")
    sys.exit()
signal.signal(signal.SIGTERM, say)
print(sys.argv[2], flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(("signal_number", "asked"), [(signal.SIGTERM, True), (signal.SIGKILL, False)])
def test_command_gets_its_signal_when_the_one_who_started_it_is_killed(
    tmp_path: Path, signal_number: signal.Signals, asked: bool
) -> None:
    said = tmp_path / "said"
    command = [sys.executable, "-c", CHILD, str(said), "two words"]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(int(signal_number)), *command], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert parent.stdout is not None
    pid, words = parent.stdout.readline().split(maxsplit=1)
    assert words == "two words\n"
    child = psutil.Process(int(pid))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    child.wait(timeout=20)
    assert said.exists() is asked


def test_command_of_one_who_has_ended_already_does_not_start(tmp_path: Path) -> None:
    from reasongenrm.processes.parent_death import ending_with_us

    command = ending_with_us([sys.executable, "-c", f"open({str(tmp_path / 'started')!r}, 'w')"])
    subprocess.run(command, check=True)
    assert (tmp_path / "started").exists()
    (tmp_path / "started").unlink()
    # A shell starts it, so its parent is not the one who made the command.
    subprocess.run(["sh", "-c", '"$@" & wait', "sh", *command], check=True)
    assert not (tmp_path / "started").exists()


def test_process_of_another_parent_ends_at_once() -> None:
    code = "from reasongenrm.processes.parent_death import end_with; end_with(1); print('still here')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (found.returncode, found.stdout) == (1, "")
