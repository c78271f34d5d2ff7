"""What does our engine cost on top of vLLM? The same prompts, on the same vLLM, through `LLM.generate` and through the
engine.

    python -m benchmarks.generation [--shape 7b] [--prompts 64] [--samples 16] [--max-tokens 512] [--repeats 1]
    [--output FILE]

"vLLM" has token ids handed to it and shares its random numbers; "vLLM, seeded" seeds every sample, as the engine does.
"engine" renders and tokenises the prompts, splits what comes back into turns and writes a part a batch, as the stages
do. Weights are random, the tokenizer is made here, nothing is downloaded. vLLM starts once, on one GPU.
"""
# ruff: noqa: T201 - it prints its results

import contextlib
import json
import random
import tempfile
import time
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.plain_vllm import describe, forget_prompts, plain_generate
from reasongenrm.config import EngineConfig
from reasongenrm.data.chat import detect_family, install_template
from reasongenrm.demo.tiny import tiny_tokenizer
from reasongenrm.generation import GenerationRequest, Sampling
from reasongenrm.generation.vllm import VLLMEngine
from reasongenrm.records import Reason, dump_records

PLAIN, SEEDED, ENGINE = "vLLM", "vLLM, seeded", "engine"


class ShapeName(StrEnum):
    """What --shape takes."""

    TINY = "tiny"
    QWEN_7B = "7b"


@dataclass(frozen=True)
class Shape:
    """A model of the Qwen2 architecture, what a prompt is long, and how vLLM is started."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    dtype: Any
    prompt_words: int
    options: dict[str, Any]


SHAPES = {
    ShapeName.TINY: Shape(
        64, 128, 2, 2, 1, 8192, "float32", 10, {"enforce_eager": True, "max_num_batched_tokens": 16384}
    ),
    ShapeName.QWEN_7B: Shape(3584, 18944, 28, 28, 4, 152064, "bfloat16", 600, {}),  # Qwen/Qwen2.5-7B, config.json
}

app = typer.Typer(add_completion=False)


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """A config and a tokenizer with an entry for every row of the vocabulary; vLLM makes up the weights."""
    from tokenizers import Tokenizer
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config

    small = tiny_tokenizer("qwen2.5")
    state = json.loads(small.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary.update({f"Ġword{number}": number for number in range(len(small), shape.vocab_size)})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token=small.eos_token, pad_token=small.pad_token
    )
    tokenizer.chat_template = small.chat_template
    install_template(tokenizer, detect_family(tokenizer), "reason")
    tokenizer.save_pretrained(folder)
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = Qwen2Config(
        **{name: getattr(shape, name) for name in fields},
        vocab_size=shape.vocab_size,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        architectures=["Qwen2ForCausalLM"],
        dtype=shape.dtype,
        eos_token_id=tokenizer.eos_token_id,
    )
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)


def make_requests(count: int, num_words: int) -> list[GenerationRequest]:
    """Prompts of random words, a reason to be written to each."""
    numbers = random.Random(0)
    words = ["verdict", "answer", "question", "better", "follows", "which", "system", "reason"]
    return [
        GenerationRequest(
            f"prompt{place}",
            ({"role": "user", "content": f"{place} {' '.join(numbers.choices(words, k=num_words))}"},),
            opening_role="reason",
        )
        for place in range(count)
    ]


def through_the_engine(
    engine: VLLMEngine, requests: list[GenerationRequest], sampling: Sampling, parts: Path
) -> tuple[int, float]:
    """What distill_reasons and sample_reasons do, with a folder in the object store's place; tokens written and
    seconds."""
    engine.pool.replicas[0].call(forget_prompts)
    num_tokens = 0
    started = time.perf_counter()
    for number, batch in enumerate(engine.generate(requests, sampling)):
        reasons = [
            Reason(
                prompt_id=generation.request_id,
                sample=generation.sample,
                reason=generation.reason or "",
                model=engine.model_name,
                num_tokens=generation.num_output_tokens,
                finish_reason=generation.finish_reason,
            )
            for generation in batch
        ]
        (parts / f"{number:06}.jsonl").write_bytes(dump_records(reasons))
        num_tokens += sum(reason.num_tokens for reason in reasons)
    return num_tokens, time.perf_counter() - started


@app.command()
def generation(
    shape: Annotated[ShapeName, typer.Option(help="Of the model; 7b is for a GPU.")] = ShapeName.QWEN_7B,
    prompts: Annotated[int, typer.Option(min=1)] = 64,
    samples: Annotated[int, typer.Option(min=1, help="Of each prompt.")] = 16,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Of each sample; all are so long but for a chance stop token.")
    ] = 512,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of all ways, in turning order.")] = 1,
    output: Annotated[Path | None, typer.Option(help="Where the JSON goes, besides standard output's table.")] = None,
) -> None:
    """Measure tokens/s of vLLM and of our engine on it, and print the ratio."""
    size = SHAPES[shape]
    requests = make_requests(prompts, size.prompt_words)
    sampling = Sampling(max_tokens=max_tokens, temperature=1.0, num_samples=samples)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder, size)
        started = time.perf_counter()
        longest = 16 * size.prompt_words + max_tokens  # no word of the prompts has as many tokens
        config = EngineConfig(dtype=size.dtype, max_model_len=longest, data_parallel_size=1)
        engine = VLLMEngine(folder, config, model_name="random", options={"load_format": "dummy", **size.options})
        with contextlib.closing(engine):
            replica = engine.pool.replicas[0]
            report: dict[str, Any] = {
                **replica.call(describe),
                "shape": shape.value,
                "prompts": prompts,
                "samples": samples,
                "max_tokens": max_tokens,
                "start_seconds": time.perf_counter() - started,
            }
            ids = [engine.turns.encode(request).ids for request in requests]
            ways = {
                PLAIN: partial(replica.call, plain_generate_of(ids, samples, max_tokens, None)),
                SEEDED: partial(replica.call, plain_generate_of(ids, samples, max_tokens, 0)),
                ENGINE: partial(through_the_engine, engine, requests, sampling, folder),
            }
            report["prompt_tokens"] = sum(map(len, ids)) / len(ids)
            # The first use of a sampler compiles it.
            replica.call(plain_generate_of(ids[:1], 2, 8, None))
            replica.call(plain_generate_of(ids[:1], 2, 8, 0))
            rates: dict[str, list[float]] = {way: [] for way in ways}
            own_ms: list[float] = []  # CPU time of this process a sample: rendering, splitting, storing
            for turn in range(repeats):
                order = list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]
                for way in order:
                    cpu_started = time.process_time()
                    num_tokens, seconds = ways[way]()
                    if way == ENGINE:
                        own_ms.append((time.process_time() - cpu_started) / (prompts * samples) * 1e3)
                    rates[way].append(num_tokens / seconds)
                    print(
                        f"{way:14} {rates[way][-1]:10,.0f} tokens/s {seconds:8.2f} s {num_tokens:,} tokens", flush=True
                    )
    report |= {"tokens_per_second": rates, "engine_cpu_ms_per_sample": own_ms}
    print(f"engine: {median(own_ms):.2f} ms of CPU a sample outside vLLM's processes")
    for base in (PLAIN, SEEDED):
        ratios = [ours / theirs for ours, theirs in zip(rates[ENGINE], rates[base], strict=True)]
        report[f"engine / {base}"] = ratios
        print(
            f"engine / {base}: median {median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}, {repeats} "
            "rounds"
        )
    if output is not None:
        output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def plain_generate_of(ids: list[list[int]], num_samples: int, max_tokens: int, seed: int | None) -> Any:
    """`plain_generate` with everything but the LLM."""
    return partial(plain_generate, prompts=ids, num_samples=num_samples, max_tokens=max_tokens, seed=seed)


if __name__ == "__main__":
    app()
