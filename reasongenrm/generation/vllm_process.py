"""Replicas of vLLM, each in its own process group; samples come back in order.

Data parallelism is N independent replicas here. vLLM's own (`data_parallel_size`) is for servers: `vllm.LLM` refuses
it, and behind `AsyncLLM` one Python process would handle every token of all GPUs.

One replica gets its own process, too, for vLLM does not end when it is left alone: after SIGTERM or SIGKILL its
engine's processes keep the GPUs' memory (0.22 and 0.32). Ours ends itself, and its whole group, when the connection to
us breaks (`workers.py`): this module, run as a program, is that process.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

from reasongenrm.generation.vllm_replica import CAPACITY, PromptBatch, Replica, ReplicaSettings, Sample
from reasongenrm.processes.workers import Caller, WorkerProcess, close_all, run_worker

GRACE_SECONDS = 15.0  # for vLLM to stop by itself; afterwards its processes are killed
MAX_TAKEN = 8 * CAPACITY  # samples begun and not yielded, per replica: what is written during one long generation


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
            close_all(replicas)
            raise
        return cls(replicas)

    def run(self, tasks: Iterable[PromptBatch]) -> Iterator[list[Sample]]:
        """Have tasks done, as many at a time as keep the replicas full; yield their samples in the order of the tasks.

        A task is taken from `tasks` when a replica has room for samples, and goes to the replica with least under way.
        No more are taken while `MAX_TAKEN` samples per replica wait to be yielded: that is what memory holds, and what
        a kill can lose.

        Raises:
            EngineError: a replica failed, or its process ended.
        """
        todo = iter(tasks)
        taken: dict[int, int] = {}  # the tasks that were not yielded yet, in order: number and samples
        whole: dict[int, list[Sample]] = {}
        task: PromptBatch | None = next(todo, None)
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
                ready = wait([replica.connection for replica in self.replicas])
                written = [task for each in self.replicas if each.connection in ready for task in each.receive()]
                # Some may be of a run that was broken off.
                whole |= {number: samples for number, samples in written if number in taken}

    def close(self) -> None:
        """End all processes and free the GPUs."""
        close_all(self.replicas)


class ReplicaProcess(WorkerProcess):
    """The near end of a replica in a process of its own; `num_under_way` counts samples.

    Args:
        settings: of the replica.
        gpus: as CUDA_VISIBLE_DEVICES names them; none: the environment is left as it is.
        name: for messages.
    """

    def __init__(self, settings: ReplicaSettings, gpus: Sequence[str], name: str) -> None:
        super().__init__(__name__, gpus, name, process="vLLM's process", unit="samples")
        self.send(settings)

    def wait_until_ready(self) -> None:
        """Return once vLLM has started.

        Raises:
            EngineError: it cannot.
        """
        self.recv()
        self.grace_seconds = GRACE_SECONDS

    def submit(self, number: int, task: PromptBatch) -> None:
        """See `Replica.submit`; what vLLM refuses is raised by `receive`."""
        self.num_under_way += task.num_samples
        self.send((number, task))

    def receive(self) -> list[tuple[int, list[Sample]]]:
        """Take up the next step that wrote samples to their end.

        Returns:
            The tasks that it made whole, if any: number and samples.

        Raises:
            EngineError: vLLM failed, or its process ended.
        """
        num_written, whole = self.recv()
        self.num_under_way -= num_written
        return whole

    def call(self, function: Callable[[Any], Any]) -> Any:
        """Run a function of a module on the replica's `vllm.LLM` and give what it returns; nothing may be under way."""
        assert self.num_under_way == 0
        self.send(function)
        return self.recv()


def serve(caller: Caller) -> None:
    """Be a replica, in its own process.

    First comes a `ReplicaSettings`, answered once vLLM has started; then (number, `PromptBatch`), or a function,
    answered by what it returns. Every step of vLLM's that finishes samples is answered with what `Replica.step`
    returns.

    Raises:
        EngineError: see `Replica`.
    """
    replica = Replica(caller.recv())
    caller.send("ready")
    while True:
        while replica.is_idle or caller.has_message:
            message = caller.recv()
            if callable(message):
                caller.send(message(replica.llm))
            else:
                replica.submit(*message)
        num_written, whole = replica.step()
        if num_written:
            caller.send((num_written, whole))


if __name__ == "__main__":
    run_worker(serve, GRACE_SECONDS)
