"""Worker processes, each with its own process group and GPUs, fed through a connection.

`WorkerProcess` is the near end: it starts `python -m MODULE DESCRIPTOR`, sends messages and receives answers. MODULE
calls `run_worker`, the far end. A worker ends with its whole group when the connection breaks, so that no process stays
on a GPU when its parent dies, even by SIGKILL.
"""

import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from reasongenrm.errors import ConfigError, EngineError, ReasonGenRMError
from reasongenrm.processes.child import Child, how_it_ended

logger = logging.getLogger(__name__)

EXIT_SECONDS = 15.0  # for a process whose connection broke to say how it ended


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; does not initialise CUDA."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def share_gpus(gpus: Sequence[str], count: int | None, size: int = 1, *, section: str) -> list[list[str]]:
    """Split GPUs into `count` groups of `size` neighbours, one per replica; without GPUs the groups are empty (CPUs).

    Args:
        count: replicas (`data_parallel_size`); None: as many as there is room for, at least one.
        size: GPUs of each (`tensor_parallel_size`).
        section: of the configuration, for messages.

    Raises:
        ConfigError: fewer GPUs are visible than are asked for.
    """
    count = count or max(1, len(gpus) // size)
    if gpus and count * size > len(gpus):
        asked = f"tensor_parallel_size {size} x data_parallel_size" if size > 1 else "data_parallel_size"
        raise ConfigError(
            f"{section}: {asked} {count} needs {count * size} GPUs, found {len(gpus)} "
            f"(CUDA_VISIBLE_DEVICES {','.join(gpus)}). Set less, or ask for more GPUs."
        )
    if len(gpus) > count * size:
        logger.warning("%s: %d of %d GPUs stay idle", section, len(gpus) - count * size, len(gpus))
    return [list(gpus[place * size : (place + 1) * size]) for place in range(count)]


class WorkerProcess:
    """The near end of a worker.

    Args:
        module: that is run; calls `run_worker`.
        gpus: as CUDA_VISIBLE_DEVICES names them; none: that variable is left as it is.
        name: for messages, as `process` ("vLLM's process", say) and `unit` (what is counted as under way) are.
        environ: what else of the environment is set.

    Attributes:
        connection: to wait for.
        num_under_way: what was sent and is not done, in units; the sender counts.
        grace_seconds: how long `close` lets the process end by itself.
    """

    def __init__(
        self, module: str, gpus: Sequence[str], name: str, *, process: str, unit: str, environ: Mapping[str, str] = {}
    ) -> None:
        self.name = f"{name} (GPU {','.join(gpus)})" if gpus else name
        self.num_under_way = 0
        self.grace_seconds = 0.0
        self._unit = unit
        self.connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._child = Child(
                f"{self.name}: {process}",
                [sys.executable, "-m", module, str(theirs.fileno())],
                death_signal=None,  # the worker sees the connection break, and can end its own children first
                own_group=True,
                env={**os.environ, **environ, **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})},
                pass_fds=[theirs.fileno()],
                stdout=2,  # libraries write to it; ours is for results
            )

    def send(self, message: Any) -> None:
        """Send a message.

        Raises:
            ReasonGenRMError: see `recv`.
        """
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            while True:  # its last words may say why
                self.recv()

    def recv(self) -> Any:
        """The next answer; waits for it.

        Raises:
            ReasonGenRMError: the worker's own error, of the same type, with its name before it.
            EngineError: the process ended without one; says how.
        """
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            code = self._child.wait(EXIT_SECONDS)
            self._child.kill()
            how = "broke its connection" if code is None else how_it_ended(code)
            raise EngineError(
                f"{self._child.name} {how}, with {self.num_under_way} {self._unit} under way. See its log above "
                "(SIGKILL is most often a machine out of memory), then start again: finished work is kept."
            ) from error
        if isinstance(message, ReasonGenRMError):
            raise type(message)(f"{self.name}: {message}")
        return message

    def close(self) -> None:
        """End the process and all that it started."""
        self.connection.close()
        self._child.wait(self.grace_seconds)
        self._child.kill()


def close_all(workers: Iterable[WorkerProcess]) -> None:
    """End several workers at the same time."""
    workers = list(workers)
    for worker in workers:
        worker.connection.close()  # tells it to end
    for worker in workers:
        worker.close()


class Caller:
    """The far end of a worker's connection: messages that came in wait here while the worker is busy.

    Args:
        grace_seconds: how long the worker may take to end by itself once the connection has broken; then its whole
            group is killed.
    """

    def __init__(self, connection: Connection, grace_seconds: float) -> None:
        # A copy of our end in a child that outlives us would hide our death from the other end.
        os.register_at_fork(after_in_child=connection.close)
        self._connection = connection
        self._grace_seconds = grace_seconds
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def has_message(self) -> bool:
        """Whether `recv` would not wait."""
        return not self._inbox.empty()

    def recv(self) -> Any:
        """The next message, in the order they were sent; waits for it. Ends the worker when the caller has gone."""
        message = self._inbox.get()
        if message is _GONE:
            raise _CallerGoneError
        return message

    def send(self, answer: Any) -> None:
        """Send an answer. Ends the worker when the caller has gone."""
        try:
            self._connection.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            raise _CallerGoneError from None

    def _read(self) -> None:
        """Empty the connection while the worker works."""
        with suppress(EOFError, ConnectionResetError):
            while True:
                self._inbox.put(self._connection.recv())
        self._inbox.put(_GONE)
        time.sleep(self._grace_seconds)
        os.killpg(0, signal.SIGKILL)


_GONE = object()


class _CallerGoneError(Exception):
    """Nobody is there to work for."""


def run_worker(serve: Callable[[Caller], None], grace_seconds: float = 0.0) -> None:
    """Be a worker: `serve` the process that started this one until it goes, then end this process and its group.

    A `ReasonGenRMError` of `serve` is an answer, and the last. Any other ends the process with a traceback and exit
    code 1.

    `serve` need not return; for `grace_seconds` see `Caller`.
    """
    caller = Caller(Connection(int(sys.argv[1])), grace_seconds)
    with suppress(_CallerGoneError):
        try:
            serve(caller)
        except ReasonGenRMError as error:
            caller.send(error)
    gc.collect()  # what ends its own processes when it is collected (vLLM's engine) does so now
    os.killpg(0, signal.SIGKILL)  # and whatever it forgot, with us
