"""Replicas of a scoring model, one process per GPU: batches go out, scores come back.

Nothing is exchanged between replicas. This module, run as a program, is the process of one.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from reasongenrm.config import ScoreDtype
from reasongenrm.errors import EngineError
from reasongenrm.processes.workers import Caller, WorkerProcess, close_all, run_worker
from reasongenrm.reasons.candidates import Row
from reasongenrm.reasons.score_batch import load_scorer, score_batch
from reasongenrm.records import ScoredReason

MAX_UNDER_WAY = 2  # batches per replica: the second is there when the first is done, so that no GPU waits for us


@dataclass(frozen=True)
class ScorerSettings:
    """What a replica is told first."""

    folder: Path
    dtype: ScoreDtype
    on_gpu: bool  # a GPU was set aside for it


class ScorerReplicas:
    """Several copies of a model that score side by side.

    They load the model while the caller does something else; what they cannot load is raised by `score`.

    Args:
        gpus: of `share_gpus`, a group for each replica.
    """

    def __init__(self, folder: Path, dtype: ScoreDtype, gpus: Sequence[Sequence[str]]) -> None:
        # Each would start a thread for every core. What the user has set stays, as it does for training.
        num_threads = max(1, (os.cpu_count() or 1) // len(gpus))
        environ = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(num_threads))}
        self.replicas: list[WorkerProcess] = []
        try:
            for place, names in enumerate(gpus):
                called = f"replica {place}"
                replica = WorkerProcess(
                    __name__, names, called, process="score_reasons' process", unit="batches", environ=environ
                )
                self.replicas.append(replica)
                replica.send(ScorerSettings(folder, dtype, on_gpu=bool(names)))
        except BaseException:
            self.close()
            raise

    def score(self, batches: Iterable[Sequence[Row]]) -> Iterator[list[ScoredReason]]:
        """Score batches as `score_batch` does, each on the replica that has least to do.

        Yields:
            The scored reasons of a batch, in its order; batches in the order in which they are done.

        Raises:
            InputError: a replica cannot load the checkpoint, or its model gave a probability that is no number.
            EngineError: a batch does not fit into a GPU's memory, a replica has no GPU, or its process ended.
        """
        todo = iter(batches)
        done: list[list[ScoredReason]] = []
        while True:
            self._submit(todo)  # before the caller, who may write to the store, gets what is done
            yield from done
            busy = [replica for replica in self.replicas if replica.num_under_way]
            if not busy:
                return
            ready = wait([replica.connection for replica in busy])
            done = [replica.recv() for replica in busy if replica.connection in ready]
            for replica in busy:
                replica.num_under_way -= replica.connection in ready

    def _submit(self, todo: Iterator[Sequence[Row]]) -> None:
        """Send batches for as long as a replica has room for one."""
        while True:
            replica = min(self.replicas, key=lambda replica: replica.num_under_way)
            if replica.num_under_way == MAX_UNDER_WAY or (rows := next(todo, None)) is None:
                return
            replica.num_under_way += 1
            replica.send(rows)

    def close(self) -> None:
        """End all processes at once; what is under way is lost."""
        close_all(self.replicas)


def serve(caller: Caller) -> None:
    """Be a replica, in its own process: first comes a `ScorerSettings`, then batches of rows, each answered by its
    scores.

    Raises:
        InputError: the checkpoint cannot be loaded, or see `score_batch`.
        EngineError: see `score_batch`; or there is no GPU here, though one was set aside for us.
    """
    import torch
    import transformers

    settings: ScorerSettings = caller.recv()
    if settings.on_gpu and not torch.cuda.is_available():
        raise EngineError(
            f"score_reasons: torch {torch.__version__} finds no GPU with CUDA_VISIBLE_DEVICES "
            f"{os.environ['CUDA_VISIBLE_DEVICES']}; expected one. Name GPUs that are there, or set "
            "score.data_parallel_size: 1."
        )
    transformers.utils.logging.disable_progress_bar()  # one for each replica, over each other
    model = load_scorer(settings.folder, settings.dtype)
    while True:
        caller.send(score_batch(model, caller.recv()))


if __name__ == "__main__":
    run_worker(serve)
