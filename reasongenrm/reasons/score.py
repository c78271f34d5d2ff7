"""score_reasons: how fluent a reason is, and how surely it leads to the label.

In: judge prompts and reasons. Out: scored reasons, in the order of the reasons. Used twice: the base model scores the
teacher's reasons (for R*), the SFT model its own (for DPO pairs). On several GPUs, each has a copy of the model and
scores batches of the same plan (`score_replicas.py`).
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reasongenrm.config import ScoreConfig
from reasongenrm.data.chat import detect_family, install_template
from reasongenrm.errors import InputError
from reasongenrm.generation.transformers import load_config_and_tokenizer
from reasongenrm.processes.workers import share_gpus, visible_gpus
from reasongenrm.progress import track
from reasongenrm.reasons.candidates import Row, encode_candidates, plan_batches
from reasongenrm.reasons.score_batch import load_scorer, score_batch
from reasongenrm.reasons.score_replicas import ScorerReplicas
from reasongenrm.records import JudgePrompt, Reason, ScoredReason, dump_records, parse_records
from reasongenrm.store.artifacts import ArtifactRef, Store, download, read_records
from reasongenrm.store.stage import Stage

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PART_SECONDS = 10.0  # work that a kill may cost; a part for each batch would be many small objects on a GPU
_EXACT_ATTENTION = {"full_attention", "sliding_attention"}  # kinds in which reasons of a row do not see each other


def context_length(model_config: "PreTrainedConfig") -> int:
    """Tokens that a prompt and a reason may have together.

    Raises:
        InputError: the model has layers other than attention, through which reasons in a row would see each other.
    """
    config = model_config.to_dict()
    others = set(config.get("layer_types") or ()) - _EXACT_ATTENTION
    if others:
        raise InputError(
            f"{model_config.name_or_path}: has layers of kind {', '.join(sorted(others))}; expected attention in every "
            "layer. Use a model of one of the architectures in docs/models.md."
        )
    return int(config["max_position_embeddings"])


def score_metrics(scored: Sequence[ScoredReason]) -> dict[str, Any]:
    """What a person wants to know of the scores at a glance; fractions in [0, 1], a histogram in bins of 0.1."""
    edges = tuple(tenth / 10 for tenth in range(-10, 11))
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
        "score_histogram": {"edges": list(edges), "counts": np.histogram(scores, edges)[0].tolist()},
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
        judge_prompts = read_records(prompts, "prompts.jsonl", JudgePrompt)
        written = read_records(reasons, "reasons.jsonl", Reason)
        folder = download(model, stage.work_dir / "model")
        with _open_scorer(folder, config) as score:
            model_config, tokenizer = load_config_and_tokenizer(folder)
            family = detect_family(tokenizer)
            install_template(tokenizer, family, "reason")
            max_length = min(config.max_length, context_length(model_config))
            by_id = {prompt.prompt_id: prompt for prompt in judge_prompts}
            rows, drops = encode_candidates(tokenizer, family, by_id, written, max_length)
            advice = f"The limit is {max_length:,} tokens: score.max_length or the model's context."
            drops.require_some("score_reasons", advice)
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
    total = sum(len(row.candidates) for rows in batches for row in rows)
    with track("score_reasons", total=total, unit="reason") as progress:
        progress.start_at(len(scored))
        for batch in score(todo):
            scored.update((_key(reason), reason) for reason in batch)
            fresh += batch
            progress.advance(len(batch))
            if time.monotonic() - kept_at >= PART_SECONDS:
                stage.put_part(f"{num_parts:06}.jsonl", dump_records(fresh))
                num_parts, fresh, kept_at = num_parts + 1, [], time.monotonic()
    return scored
