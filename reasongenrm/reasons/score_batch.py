"""Scores one batch of reasons in one forward pass.

All reasons of a prompt lie behind it in one packed row (`packing/trees.py`), where each sees the prompt and itself
alone, so that the numbers are those of one sequence at a time. The vocabulary's logits are computed at the scored
tokens only. Shape suffixes: T tokens of the row, N scored tokens, C of them at a time, D hidden size, V vocabulary.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reasongenrm.config import ScoreDtype
from reasongenrm.errors import EngineError, InputError
from reasongenrm.generation.transformers import load_model
from reasongenrm.packing.trees import IGNORED, pack
from reasongenrm.reasons.candidates import Row
from reasongenrm.records import ScoredReason

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

MAX_LOGITS = 2**26  # logits held at a time: 256 MiB in float32


def probability(logprobs: Sequence[float]) -> float:
    """P = exp(mean of token logprobs), the geometric mean of the tokens' probabilities.

    Args:
        logprobs: natural log, shape (T,), T >= 1.

    Raises:
        ValueError: there is no token (a reason truncated to nothing has no score).
    """
    if not logprobs:
        raise ValueError("no token log-probabilities; expected at least the closing token's.")
    return math.exp(math.fsum(logprobs) / len(logprobs))


def reason_score(reason_logprobs: Sequence[float], verdict_logprobs: Sequence[float]) -> float:
    """Score one reason: its fluency, signed by whether it leads to the labelled verdict.

    score = p_reason * (2 * p_verdict - 1), where p = exp(mean of token logprobs).

    Args:
        reason_logprobs: log P(r_t | prompt, r_<t), natural log, shape (T_reason,), T_reason >= 1, closing token
            included.
        verdict_logprobs: log P(y_t | prompt, reason, y_<t) of the *label*, natural log, shape (T_verdict,), closing
            token included.

    Returns:
        A number in (-1, 1]; above 0 exactly when p_verdict > 1/2.

    Raises:
        ValueError: either sequence is empty.

    Source: docs/method.md, section 2; ReasonGenRM/src/sft/reward_sft_dataset.py at 0887f2e. We score in batches, it
    scored one at a time.
    """
    return probability(reason_logprobs) * (2 * probability(verdict_logprobs) - 1)


def load_scorer(folder: Path, dtype: ScoreDtype) -> "PreTrainedModel":
    """Load a checkpoint's model to score with, on the GPU if there is one.

    Args:
        dtype: `ScoreConfig.dtype`; float64 is computed from float32 weights.

    Raises:
        InputError: see `load_model`.
    """
    from reasongenrm.packing.kernels import prepare_for_packed_rows

    model = load_model(folder, "float32" if dtype == "float64" else dtype)
    if dtype == "float64":
        model = model.double()
    prepare_for_packed_rows(model)
    return model


def score_batch(model: "PreTrainedModel", rows: Sequence[Row]) -> list[ScoredReason]:
    """Score all reasons of one batch in one forward pass.

    Args:
        model: of `load_scorer`, or another in evaluation mode after `prepare_for_packed_rows`.
        rows: of `plan_batches`.

    Returns:
        Scored reasons in the order of the rows.

    Raises:
        InputError: the model gave a probability that is no number.
        EngineError: the batch does not fit into the GPU's memory.
    """
    import torch

    from reasongenrm.packing.attention import Segments

    row = pack([row.tree() for row in rows])
    places = np.flatnonzero(row.targets != IGNORED)
    ids_1T, positions_1T, places_N, targets_N = (
        torch.from_numpy(values).to(model.device)
        for values in (row.input_ids[None], row.position_ids[None], places, row.targets[places])
    )
    segments = Segments.of(row).to(model.device)
    try:
        with torch.inference_mode():
            hidden_1TD = model.get_decoder()(
                input_ids=ids_1T, position_ids=positions_1T, segments=segments, use_cache=False
            ).last_hidden_state
            logprobs_N = _token_logprobs(model, hidden_1TD[0, places_N], targets_N)
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"score_reasons: out of GPU memory with {row.num_tokens:,} tokens; expected a batch that fits. "
            "Set a smaller score.max_batch_tokens."
        ) from error
    if not bool(logprobs_N.isfinite().all()):
        raise InputError(
            f"score_reasons: {model.config.name_or_path} gave a log-probability that is no number, for prompt "
            f"{rows[0].candidates[0].reason.prompt_id} or its batch; expected finite weights. Check the checkpoint, or "
            "set score.dtype: float32."
        )
    logprobs = logprobs_N.tolist()
    scored: list[ScoredReason] = []
    for candidate in (candidate for row in rows for candidate in row.candidates):
        ends = (0, candidate.num_reason_tokens, candidate.num_reason_tokens + candidate.num_verdict_tokens)
        of_reason, of_verdict = (logprobs[start:stop] for start, stop in pairwise(ends))
        del logprobs[: ends[-1]]
        scored.append(
            ScoredReason(
                prompt_id=candidate.reason.prompt_id,
                sample=candidate.reason.sample,
                reason=candidate.reason.reason,
                p_reason=probability(of_reason),
                p_verdict=probability(of_verdict),
                reason_score=reason_score(of_reason, of_verdict),
                num_reason_tokens=candidate.num_reason_tokens,
            )
        )
    return scored


def _token_logprobs(model: "PreTrainedModel", hidden_ND: "torch.Tensor", targets_N: "torch.Tensor") -> "torch.Tensor":
    """log P of each target, natural log, in float32 or better; logits of a bounded number of tokens at a time."""
    import torch

    head = model.get_output_embeddings()
    num_at_once = max(1, MAX_LOGITS // model.config.vocab_size)
    pieces = []
    for hidden_CD, targets_C in zip(hidden_ND.split(num_at_once), targets_N.split(num_at_once), strict=True):
        logits_CV = head(hidden_CD)
        logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
        picked_C = logits_CV.gather(-1, targets_C[:, None])[:, 0]
        pieces.append(picked_C - logits_CV.logsumexp(-1))
    return torch.cat(pieces).double()
