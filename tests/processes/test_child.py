"""Real child processes: they end with their parent, are waited for, are stopped with what they started, and say how
they ended."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from reasongenrm.errors import EngineError
from reasongenrm.processes.child import Child, ending_with_us, how_it_ended
from tests.waiting import HANG_SECONDS

ROOT = Path(__file__).parents[2]
PARENT = """
import subprocess, sys, time
from signal import Signals
from reasongenrm.processes.child import ending_with_us
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
    child.wait(HANG_SECONDS)
    assert said.exists() is asked


def test_command_of_one_who_has_ended_already_does_not_start(tmp_path: Path) -> None:
    command = ending_with_us([sys.executable, "-c", f"open({str(tmp_path / 'started')!r}, 'w')"])
    subprocess.run(command, check=True)
    assert (tmp_path / "started").exists()
    (tmp_path / "started").unlink()
    # A shell starts it, so its parent is not the one who made the command.
    subprocess.run(["sh", "-c", '"$@" & wait', "sh", *command], check=True)
    assert not (tmp_path / "started").exists()


def test_process_of_another_parent_ends_at_once() -> None:
    code = "from reasongenrm.processes.child import end_with; end_with(1); print('still here')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (found.returncode, found.stdout) == (1, "")


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


# Starts a child of its own that ignores SIGTERM, writes both process ids, and waits.
STUBBORN_FAMILY = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
                          "print('up', flush=True); time.sleep(600)"], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def wait_until_gone(pid: int) -> None:
    """Return when no process has this id, or only a zombie that its new parent has yet to reap."""
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.02)


@pytest.mark.parametrize("own_group", [False, True])
def test_stopped_child_takes_along_what_it_started_also_where_sigterm_is_ignored(
    tmp_path: Path, own_group: bool
) -> None:
    log = tmp_path / "family.log"
    child = Child("the family", python(STUBBORN_FAMILY), own_group=own_group, log_path=log)
    child.wait_until(lambda: log.read_text().endswith("\n"), 60)
    grandchild = int(log.read_text())
    child.stop(grace_seconds=0.2)
    assert child.process.poll() is not None
    wait_until_gone(grandchild)


def test_killed_child_of_its_own_group_takes_along_what_it_left_behind(tmp_path: Path) -> None:
    log = tmp_path / "family.log"
    child = Child("the family", python(STUBBORN_FAMILY), own_group=True, log_path=log)
    child.wait_until(lambda: log.read_text().endswith("\n"), 60)
    child.process.kill()
    child.process.wait()
    child.kill()
    wait_until_gone(int(log.read_text()))


def test_child_that_ends_while_it_is_waited_for_is_an_error_with_how_and_the_end_of_its_log(tmp_path: Path) -> None:
    code = "import sys; print(*range(40), sep='\\n'); sys.exit(3)"
    with Child("the counter", python(code), log_path=tmp_path / "log") as child:
        with pytest.raises(EngineError) as raised:
            child.wait_until(lambda: False, 60)
        with pytest.raises(EngineError, match="the counter ended with exit code 3"):
            child.check()
    assert str(raised.value) == (
        f"the counter ended with exit code 3. Its log, {tmp_path / 'log'}, ends:\n" + "\n".join(map(str, range(28, 40)))
    )


def test_child_that_takes_too_long_is_an_error_and_the_wait_is_shown(tmp_path: Path) -> None:
    shown: list[float] = []
    with Child("the sleeper", python("import time; time.sleep(600)"), log_path=tmp_path / "log") as child:
        with pytest.raises(EngineError, match=r"the sleeper did not answer in 0 s\. Its log"):
            child.wait_until(lambda: False, 0.3, shown.append)
        child.check()  # it still runs
    assert shown == sorted(shown)
    assert 0 <= shown[0] < shown[-1] <= 0.3
    assert child.process.returncode is not None


def test_return_code_is_told_in_words() -> None:
    assert how_it_ended(0) == "ended with exit code 0"
    assert how_it_ended(-9) == "was ended by SIGKILL"
