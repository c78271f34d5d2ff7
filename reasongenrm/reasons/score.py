"""score_reasons: how fluent a reason is, and how surely it leads to the label.

In: judge prompts and reasons. Out: scored reasons, in the order of the reasons. Used twice: the base model scores the
teacher's reasons (for R*), the SFT model its own (for DPO pairs). On several GPUs, each has a copy of the model and scores
batches of the same plan (`scoring_replicas.py`).

All reasons of a prompt lie behind it in one packed row (`packing.py`), where each sees the prompt and itself alone, so that
the numbers are those of one sequence at a time. The vocabulary's logits are computed at the scored tokens only. Shape
suffixes: T tokens of the row, N scored tokens, C of them at a time, D hidden size, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reasongenrm.config import ScoreConfig, ScoreDtype
from reasongenrm.data.chat import detect_family, install_template
from reasongenrm.errors import EngineError, InputError
from reasongenrm.generation.transformers import load_config_and_tokenizer, load_model
from reasongenrm.packing.trees import IGNORED, pack
from reasongenrm.processes.workers import share_gpus, visible_gpus
from reasongenrm.progress import track
from reasongenrm.reasons.candidates import Row, encode_candidates, plan_batches
from reasongenrm.reasons.score_replicas import ScorerReplicas
from reasongenrm.records import JudgePrompt, Reason, ScoredReason, dump_records, parse_records
from reasongenrm.store.artifacts import ArtifactRef, Store, download, read_file
from reasongenrm.store.stage import Stage

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

PART_SECONDS = 10.0  # work that a kill may cost; a part for each batch would be many small objects on a GPU
MAX_LOGITS = 2**26  # logits held at a time: 256 MiB in float32
HISTOGRAM_EDGES = tuple(tenth / 10 for tenth in range(-10, 11))
_EXACT_ATTENTION = {"full_attention", "sliding_attention"}  # kinds in which reasons of a row do not see each other


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
        reason_logprobs: log P(r_t | prompt, r_<t), natural log, shape (T_reason,), T_reason >= 1, closing token included.
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
            f"{rows[0].candidates[0].reason.prompt_id} or its batch; expected finite weights. Check the checkpoint, or set "
            "score.dtype: float32."
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


def context_length(model_config: "PreTrainedConfig") -> int:
    """Tokens that a prompt and a reason may have together.

    Raises:
        InputError: the model has layers other than attention, through which reasons in a row would see each other.
    """
    config = model_config.to_dict()
    others = set(config.get("layer_types") or ()) - _EXACT_ATTENTION
    if others:
        raise InputError(
            f"{model_config.name_or_path}: has layers of kind {', '.join(sorted(others))}; expected attention in every layer. "
            "Use a model of the Qwen 2.5, Llama 3 or SmolLM2 family."
        )
    return int(config["max_position_embeddings"])


def score_metrics(scored: Sequence[ScoredReason]) -> dict[str, Any]:
    """What a person wants to know of the scores at a glance; fractions in [0, 1], a histogram in bins of 0.1."""
    scores = np.array([reason.reason_score for reason in scored])
    p_verdict = np.array([reason.p_verdict for reason in scored])
    quantiles = {f"score_p{percent:02}": float(np.quantile(scores, percent / 100)) for percent in (5, 25, 50, 75, 95)}
    return {
        "score_mean": float(scores.mean()),
        "score_above_0_1_fraction": float((scores > 0.1).mean()),  # R*: docs/method.md, section 2
        "score_below_minus_0_1_fraction": float((scores < -0.1).mean()),
        **quantiles,
        "p_reason_mean": float(np.mean([reason.p_reason for reason in scored])),
        "p_verdict_mean": float(p_verdict.mean()),
        "p_verdict_above_half_fraction": float((p_verdict > 0.5).mean()),
        "score_histogram": {
            "edges": list(HISTOGRAM_EDGES),
            "counts": np.histogram(scores, HISTOGRAM_EDGES)[0].tolist(),
        },
    }


def score_reasons(
    store: Store, config: ScoreConfig, model: ArtifactRef, prompts: ArtifactRef, reasons: ArtifactRef
) -> ArtifactRef:
    """Stage: score every reason under a model (scored.jsonl, in the order of the reasons).

    With one replica (`config.data_parallel_size`), the model is in this process; with several, each has its own.

    Args:
        model: the base model for R*, the SFT model for DPO pairs; its own chat template is replaced in memory.
        prompts: of prepare_pairs.
        reasons: of distill_reasons or sample_reasons.

    Raises:
        ConfigError: more replicas are asked for than there are GPUs.
        InputError: reasons and prompts do not belong together, or the model cannot be used.
        EngineError: a batch does not fit into the GPU's memory, or a replica's process ended.
        EmptyStageError: every reason is longer than the limit.
    """
    with Stage(store, "score_reasons", config, {"model": model, "prompts": prompts, "reasons": reasons}) as stage:
        if stage.done:
            return stage.done
        judge_prompts = parse_records(read_file(prompts, "prompts.jsonl"), JudgePrompt, "prompts.jsonl")
        written = parse_records(read_file(reasons, "reasons.jsonl"), Reason, "reasons.jsonl")
        folder = download(model, stage.work_dir / "model")
        with _open_scorer(folder, config) as score:
            model_config, tokenizer = load_config_and_tokenizer(folder)
            family = detect_family(tokenizer)
            install_template(tokenizer, family, "reason")
            max_length = min(config.max_length, context_length(model_config))
            by_id = {prompt.prompt_id: prompt for prompt in judge_prompts}
            rows, drops = encode_candidates(tokenizer, family, by_id, written, max_length)
            drops.require_some(
                "score_reasons", f"The limit is {max_length:,} tokens: score.max_length or the model's context."
            )
            by_key = _score_all(stage, score, plan_batches(rows, config.max_batch_tokens))
        scored = [by_key[key] for key in map(_key, written) if key in by_key]
        stage.add_bytes("scored.jsonl", dump_records(scored))
        return stage.finish(drops.counts(), score_metrics(scored))


def _key(reason: Reason | ScoredReason) -> tuple[str, int]:
    return reason.prompt_id, reason.sample


# Scores batches, each as `score_batch` does; they may come in another order.
_Score = Callable[[Iterable[Sequence[Row]]], Iterator[list[ScoredReason]]]


@contextmanager
def _open_scorer(folder: Path, config: ScoreConfig) -> Iterator[_Score]:
    """The model, in this process or in replicas, which load it while the caller prepares the batches."""
    gpus = share_gpus(visible_gpus(), config.data_parallel_size, section="score")
    if len(gpus) > 1:
        with closing(ScorerReplicas(folder, config.dtype, gpus)) as replicas:
            yield replicas.score
    else:
        model = load_scorer(folder, config.dtype)
        yield lambda batches: (score_batch(model, rows) for rows in batches)


def _score_all(stage: Stage, score: _Score, batches: Sequence[Sequence[Row]]) -> dict[tuple[str, int], ScoredReason]:
    """Score the batches that no part of an earlier run holds, keeping parts of whole batches on the way."""
    parts = stage.parts()
    scored = {
        _key(reason): reason for name, data in parts.items() for reason in parse_records(data, ScoredReason, name)
    }
    todo = [rows for rows in batches if any(_key(one.reason) not in scored for row in rows for one in row.candidates)]
    num_parts = len(parts)
    fresh: list[ScoredReason] = []
    kept_at = time.monotonic()
    with track(
        "score_reasons", total=sum(len(row.candidates) for rows in batches for row in rows), unit="reason"
    ) as progress:
        progress.start_at(len(scored))
        for batch in score(todo):
            scored.update((_key(reason), reason) for reason in batch)
            fresh += batch
            progress.advance(len(batch))
            if time.monotonic() - kept_at >= PART_SECONDS:
                stage.put_part(f"{num_parts:06}.jsonl", dump_records(fresh))
                num_parts, fresh, kept_at = num_parts + 1, [], time.monotonic()
    return scored
