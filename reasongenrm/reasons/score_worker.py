"""The process of one scoring replica (score_replicas.py is the other end of its connection).

Run as `python -m reasongenrm.reasons.score_worker DESCRIPTOR`, an inherited file descriptor (`workers.py`). First comes a
`ScorerSettings`, then batches of rows; each batch is answered by its scored reasons, in order. An error of ours is an
answer, too, and the last.
"""

import os

from reasongenrm.errors import EngineError
from reasongenrm.processes.workers import Caller, run_worker
from reasongenrm.reasons.score import load_scorer, score_batch
from reasongenrm.reasons.score_replicas import ScorerSettings


def serve(caller: Caller) -> None:
    """Score for the caller.

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
            f"{os.environ['CUDA_VISIBLE_DEVICES']}; expected one. Name GPUs that are there, or set score.data_parallel_size: 1."
        )
    transformers.utils.logging.disable_progress_bar()  # one for each replica, over each other
    model = load_scorer(settings.folder, settings.dtype)
    while True:
        caller.send(score_batch(model, caller.recv()))


if __name__ == "__main__":
    run_worker(serve)
