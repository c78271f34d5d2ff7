"""How much faster is scoring in batches than one sequence at a time? Real prompts and reasons of the demo, on one checkpoint.

    python benchmarks/score_reasons.py CHECKPOINT [--prompts 16] [--samples 3] [--max-batch-tokens 4096] [--threads 2]

"one at a time" is the reference's way: a forward pass over prompt, reason and verdict with a log-softmax over all logits.
CPU seconds are printed beside wall seconds: they tell the two ways apart on a machine that is busy with other things, too.
"""
# ruff: noqa: T201 - it prints its results

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reasongenrm.candidates import Row, encode_candidates, plan_batches
from reasongenrm.chat import detect_family, install_template
from reasongenrm.pairs import make_judge_prompts, parse_pairs, read_rows
from reasongenrm.records import Drops, JudgePrompt, Reason
from reasongenrm.scoring import probability, score_batch
from reasongenrm.stage import quiet_threads

DEMO = Path(__file__).parents[1] / "examples" / "demo" / "preferences.jsonl"
Scores = dict[tuple[str, int], tuple[float, float]]  # (prompt, sample) -> P(R|U), P(A|U,R)


def demo_reasons(prompts: Sequence[JudgePrompt], num_samples: int) -> list[Reason]:
    """Some words in a random order for each prompt: scoring takes as long for nonsense as for sense."""
    numbers = random.Random(0)
    reasons = []
    for prompt in prompts:
        words = (
            f"{prompt.question[-1].content} {prompt.answer_a} {prompt.answer_b} follows better because wrong".split()
        )
        for sample in range(num_samples):
            text = " ".join(numbers.choices(words, k=numbers.randint(18, 34)))
            reasons.append(
                Reason(
                    prompt_id=prompt.prompt_id, sample=sample, reason=text, model="", num_tokens=0, finish_reason="stop"
                )
            )
    return reasons


def one_at_a_time(model: Any, rows: Sequence[Row]) -> Scores:
    """Score every reason in a forward pass of its own."""
    import torch

    scores = {}
    for row in rows:
        for candidate in row.candidates:
            ids_1T = torch.tensor([[*row.prompt_ids, *candidate.ids]], device=model.device)
            with torch.inference_mode():
                logprobs_TV = torch.log_softmax(model(ids_1T).logits[0].float(), dim=-1)
            logprobs = logprobs_TV[:-1].gather(-1, ids_1T[0, 1:, None])[:, 0].tolist()[len(row.prompt_ids) - 1 :]
            parts = logprobs[: candidate.num_reason_tokens], logprobs[-candidate.num_verdict_tokens :]
            key = candidate.reason.prompt_id, candidate.reason.sample
            scores[key] = probability(parts[0]), probability(parts[1])
    return scores


def in_batches(model: Any, rows: Sequence[Row], max_batch_tokens: int) -> Scores:
    """Score as the stage does."""
    scored = [reason for batch in plan_batches(rows, max_batch_tokens) for reason in score_batch(model, batch)]
    return {(reason.prompt_id, reason.sample): (reason.p_reason, reason.p_verdict) for reason in scored}


def measure(name: str, work: Callable[[], Scores]) -> tuple[Scores, float]:
    """Do the work and print its speed; returns what it gave and the CPU seconds it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    scores = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:14} {len(scores) / wall:8.2f} reasons/s {wall:8.1f} s {cpu:8.1f} CPU s")
    return scores, cpu


def main() -> None:
    """Print both speeds, their ratio, and how far the scores are apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--max-batch-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    quiet_threads()
    import torch

    from reasongenrm.generation.transformers import load_checkpoint

    torch.set_num_threads(options.threads)
    model, tokenizer = load_checkpoint(options.checkpoint, "auto")
    family = detect_family(tokenizer)
    install_template(tokenizer, family, "reason")
    pairs = parse_pairs(read_rows(str(DEMO))[1], Drops(), "error")
    prompts = make_judge_prompts(pairs, "random", seed=0)[: options.prompts]
    reasons = demo_reasons(prompts, options.samples)
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    rows, _ = encode_candidates(tokenizer, family, by_id, reasons, model.config.max_position_embeddings)
    num_prompt = sum(len(row.prompt_ids) for row in rows) / len(rows)
    num_reason = sum(c.num_reason_tokens for row in rows for c in row.candidates) / len(reasons)
    print(f"{len(rows)} prompts of {num_prompt:.0f} tokens, {len(reasons)} reasons of {num_reason:.0f} tokens")
    in_batches(model, rows[:1], options.max_batch_tokens)  # the first pass sets things up
    plain, plain_seconds = measure("one at a time", lambda: one_at_a_time(model, rows))
    batched, batched_seconds = measure("in batches", lambda: in_batches(model, rows, options.max_batch_tokens))
    apart = max(abs(a - b) for key in plain for a, b in zip(plain[key], batched[key], strict=True))
    print(
        f"in batches is {plain_seconds / batched_seconds:.2f} times as fast (CPU seconds); scores at most {apart:.1e} apart"
    )


if __name__ == "__main__":
    main()
