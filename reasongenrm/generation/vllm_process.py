"""Replicas of vLLM, each in a process group of its own: tasks go round, their samples come back in order.

Data parallelism is N independent replicas here. vLLM's own (`data_parallel_size`) is for servers: `vllm.LLM` refuses it, and
behind `AsyncLLM` one Python process would handle every token of all GPUs.

One replica gets its own process, too, for vLLM does not end when it is left alone: after SIGTERM or SIGKILL its engine's
processes keep the GPUs' memory (0.22 and 0.32). Ours ends itself, and its whole group, when the connection to us breaks.
"""

import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

from reasongenrm.config import EngineConfig
from reasongenrm.errors import ConfigError, EngineError
from reasongenrm.generation import vllm_worker
from reasongenrm.generation.vllm_replica import CAPACITY, ReplicaSettings, Sample, Task

logger = logging.getLogger(__name__)

MAX_TAKEN = 8 * CAPACITY  # samples begun and not yielded, a replica: what is written beside one long generation


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; does not initialise CUDA."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def share_gpus(gpus: Sequence[str], config: EngineConfig) -> list[list[str]]:
    """The GPUs of every replica: `data_parallel_size` groups of `tensor_parallel_size`, neighbours together.

    Without GPUs, the groups are empty: vLLM for CPUs.

    Raises:
        ConfigError: fewer GPUs are visible than are asked for.
    """
    size = config.tensor_parallel_size
    count = config.data_parallel_size or max(1, len(gpus) // size)
    if gpus and count * size > len(gpus):
        raise ConfigError(
            f"engine: tensor_parallel_size {size} x data_parallel_size {count} needs {count * size} GPUs, found {len(gpus)} "
            f"(CUDA_VISIBLE_DEVICES {','.join(gpus)}). Set smaller ones, or ask for more GPUs."
        )
    if len(gpus) > count * size:
        logger.warning("engine: %d of %d GPUs stay idle", len(gpus) - count * size, len(gpus))
    return [list(gpus[place * size : (place + 1) * size]) for place in range(count)]


class ReplicaPool:
    """The replicas of an engine."""

    def __init__(self, replicas: Sequence["ReplicaProcess"]) -> None:
        self.replicas = replicas
        self._numbers = itertools.count()

    @classmethod
    def start(cls, settings: ReplicaSettings, gpus: Sequence[Sequence[str]]) -> "ReplicaPool":
        """Start a replica on each group of GPUs (see `share_gpus`), all at the same time.

        Raises:
            EngineError: vLLM cannot start.
        """
        replicas: list[ReplicaProcess] = []
        try:
            for place, names in enumerate(gpus):
                replicas.append(ReplicaProcess(settings, names, f"replica {place}"))
            for replica in replicas:
                replica.wait_until_ready()
        except BaseException:
            cls(replicas).close()
            raise
        return cls(replicas)

    def run(self, tasks: Iterable[Task]) -> Iterator[list[Sample]]:
        """Have tasks done, as many at a time as keep the replicas full; yield their samples in the order of the tasks.

        A task is taken from `tasks` when a replica has room for samples, and goes to the replica with least under way. No more
        are taken while `MAX_TAKEN` samples a replica wait to be yielded: that is what memory holds, and what a kill can lose.

        Raises:
            EngineError: a replica failed, or its process ended.
        """
        todo = iter(tasks)
        taken: dict[int, int] = {}  # the tasks that were not yielded yet, in order: number and samples
        whole: dict[int, list[Sample]] = {}
        task: Task | None = next(todo, None)
        while task is not None or taken:
            replica = min(self.replicas, key=lambda replica: replica.num_under_way)
            has_room = replica.num_under_way < CAPACITY and sum(taken.values()) < MAX_TAKEN * len(self.replicas)
            if task is not None and has_room:
                number = next(self._numbers)
                taken[number] = task.num_samples
                if task.num_samples:
                    replica.submit(number, task)
                else:
                    whole[number] = []
                task = next(todo, None)
            elif taken and (first := next(iter(taken))) in whole:
                del taken[first]
                yield whole.pop(first)
            else:
                whole |= {number: samples for number, samples in self._receive() if number in taken}

    def _receive(self) -> list[tuple[int, list[Sample]]]:
        """The tasks that became whole on any replica; waits for something to come. Some may be of a run that was broken off."""
        ready = wait([replica.connection for replica in self.replicas])
        return [task for replica in self.replicas if replica.connection in ready for task in replica.receive()]

    def close(self) -> None:
        """End all processes and free the GPUs."""
        for replica in self.replicas:
            replica.disconnect()
        for replica in self.replicas:
            replica.close()


class ReplicaProcess:
    """The near end of a replica in a process of its own.

    Args:
        settings: of the replica.
        gpus: as CUDA_VISIBLE_DEVICES names them; none: the environment is left as it is.
        name: for messages.
    """

    def __init__(self, settings: ReplicaSettings, gpus: Sequence[str], name: str) -> None:
        self.name = f"{name} (GPU {','.join(gpus)})" if gpus else name
        self.num_under_way = 0  # samples that were submitted and are not written
        self._is_ready = False
        self.connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", vllm_worker.__name__, str(theirs.fileno())],
                env=os.environ | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # vLLM logs to its standard output; ours is for results
                start_new_session=True,  # a group to be ended as one, which no Ctrl-C reaches but through us
            )
        self._send(settings)

    def wait_until_ready(self) -> None:
        """Return once vLLM has started.

        Raises:
            EngineError: it cannot.
        """
        self._receive()
        self._is_ready = True

    def submit(self, number: int, task: Task) -> None:
        """See `Replica.submit`; what vLLM refuses is raised by `receive`."""
        self.num_under_way += task.num_samples
        self._send((number, task))

    def receive(self) -> list[tuple[int, list[Sample]]]:
        """Take up the next step that wrote samples to their end.

        Returns:
            The tasks that it made whole, if any: number and samples.

        Raises:
            EngineError: vLLM failed, or its process ended.
        """
        num_written, whole = self._receive()
        self.num_under_way -= num_written
        return whole

    def call(self, function: Callable[[Any], Any]) -> Any:
        """Run a function of a module on the replica's `vllm.LLM` and give what it returns; nothing may be under way."""
        assert self.num_under_way == 0
        self._send(function)
        return self._receive()

    def disconnect(self) -> None:
        """Tell the process to end."""
        self.connection.close()

    def close(self) -> None:
        """End the process and all that it started."""
        self.disconnect()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(vllm_worker.GRACE_SECONDS if self._is_ready else 0)
        self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):  # the whole group has ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            while True:  # its last words may say why
                self._receive()

    def _receive(self) -> Any:
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise EngineError(self._end()) from error
        if isinstance(message, EngineError):
            raise EngineError(f"{self.name}: {message}")
        return message

    def _end(self) -> str:
        """How the process ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(vllm_worker.GRACE_SECONDS)
        code = self._process.returncode
        self._kill()
        if code is None:
            how = "broke its connection"
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        return (
            f"{self.name}: vLLM's process {how}, with {self.num_under_way} samples under way. See its log above (SIGKILL is most "
            "often a machine out of memory), then start again: finished work is kept."
        )
