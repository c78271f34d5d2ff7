"""How GPUs are shared out; and real worker processes that answer, fail, die and are left (pupil.py)."""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.errors import ConfigError, EngineError, InputError, ReasonGenRMError
from reasongenrm.processes.workers import WorkerProcess, share_gpus, visible_gpus
from tests import pupil

ROOT = Path(__file__).parents[2]
Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts workers and closes them."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    started: list[WorkerProcess] = []

    def start_pupil(name: str = "pupil 0", *, gpus: tuple[str, ...] = (), **environ: str) -> WorkerProcess:
        worker = WorkerProcess(pupil.__name__, gpus, name, process="its process", unit="tasks", environ=environ)
        started.append(worker)
        return worker

    yield start_pupil
    for worker in started:
        worker.close()


def ask(worker: WorkerProcess, order: str, detail: Any = None) -> Any:
    worker.send((order, detail))
    return worker.recv()


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has waited for does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def await_end(*pids: int) -> None:
    """Return when none of the processes runs; the test's time-out ends a longer wait."""
    while any(is_alive(pid) for pid in pids):
        time.sleep(0.05)


def test_gpus_are_shared_out_in_neighbouring_groups(caplog: pytest.LogCaptureFixture) -> None:
    gpus = ["0", "1", "2", "3", "4"]
    assert share_gpus(gpus, None, section="engine") == [["0"], ["1"], ["2"], ["3"], ["4"]]
    assert share_gpus([], None, section="engine") == [[]]
    assert share_gpus([], 2, section="engine") == [[], []]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert share_gpus(gpus, None, 2, section="engine") == [["0", "1"], ["2", "3"]]
    assert caplog.messages == ["engine: 1 of 5 GPUs stay idle"]


def test_more_gpus_than_there_are_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"engine: tensor_parallel_size 2 x data_parallel_size 2 needs 4 GPUs, found 3"
    ):
        share_gpus(["0", "1", "2"], 2, 2, section="engine")
    with pytest.raises(ConfigError, match=r"tensor_parallel_size 4 x data_parallel_size 1 needs 4 GPUs, found 1"):
        share_gpus(["7"], None, 4, section="engine")
    with pytest.raises(
        ConfigError, match=r"score: data_parallel_size 3 needs 3 GPUs, found 1 \(CUDA_VISIBLE_DEVICES 7\)"
    ):
        share_gpus(["7"], 3, section="score")


def test_visible_gpus_are_those_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8932f937")
    assert visible_gpus() == ["2", "GPU-8932f937"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []


def test_worker_answers_in_order(start: Start) -> None:
    worker = start()
    for number in range(3):
        worker.send(("say", number))
    assert [worker.recv(), worker.recv(), worker.recv()] == [0, 1, 2]


def test_nobody_waits_for_a_busy_worker_to_take_a_message(start: Start) -> None:
    worker = start()
    ask(worker, "be busy", 600)
    worker.send(("say", "x" * 10_000_000))  # more than a pipe holds


def test_worker_sees_its_gpus_and_the_environment_it_was_given(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    names = ["CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"]
    assert ask(start(gpus=("5",), OMP_NUM_THREADS="7"), "environment", names) == ["5", "7"]
    assert ask(start(), "environment", names[:1]) == ["3,5"]


@pytest.mark.parametrize("kind", [InputError, EngineError])
def test_error_of_a_worker_keeps_its_type_and_gets_the_workers_name(start: Start, kind: type[ReasonGenRMError]) -> None:
    worker = start("pupil 1", gpus=("5", "6"))
    with pytest.raises(kind, match=r"^pupil 1 \(GPU 5,6\): the third file is damaged\.$") as raised:
        ask(worker, "raise", kind("the third file is damaged."))
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("order", "detail", "how"),
    [
        ("kill yourself", None, "its process was ended by SIGKILL, with 2 tasks under way"),
        ("exit", 3, "its process ended with exit code 3, with 2 tasks under way"),
    ],
)
def test_end_of_a_worker_is_an_error_that_says_how_and_what_to_do(
    start: Start, order: str, detail: Any, how: str
) -> None:
    worker = start()
    child = ask(worker, "have a child")
    worker.num_under_way = 2
    with pytest.raises(EngineError, match=rf"^pupil 0: {how}\. See its log above .* then start again"):
        ask(worker, order, detail)
    await_end(child)
    with pytest.raises(EngineError, match="pupil 0"):  # also when the message cannot be sent
        ask(worker, "say")


def test_closed_worker_is_ended_at_once_with_what_it_started(start: Start) -> None:
    worker = start()
    child = ask(worker, "have a child")
    ask(worker, "be busy", 600)
    worker.close()
    await_end(child)


def test_worker_whose_caller_is_killed_ends_with_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    program = """
import time
from reasongenrm.processes.workers import WorkerProcess
names = ("pupil 0", "pupil 1")
workers = [WorkerProcess("tests.pupil", [], name, process="its process", unit="tasks") for name in names]
for worker in workers:
    worker.send(("have a child", None))
children = [worker.recv() for worker in workers]
for worker in workers:
    worker.send(("be busy", 600))
    worker.recv()
print(*children, *(worker._child.process.pid for worker in workers), flush=True)
time.sleep(600)
"""
    caller = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    pids = [int(pid) for pid in caller.stdout.readline().split()]
    assert len(pids) == 4
    assert all(is_alive(pid) for pid in pids)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    caller.stdout.close()
    await_end(*pids)
