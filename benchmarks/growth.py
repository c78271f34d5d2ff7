"""How does the cost of a stage grow with its work? Every stage, four models, three amounts of work each.

    python -m benchmarks.growth --output points.json [--kinds sft dpo] [--models 5M 20M] [--repeat 1]
                                [--clock wall --threads 2 --title "..."]

The models have random weights: a stage takes as long for nonsense as for sense. What is measured is the stage as the
pipeline runs it: load, work, store (a SeaweedFS of its own on this machine). The clock is the process's CPU time on one
thread: what one free core would take, also on a machine that does other things; import_model, which waits for the
store, goes by wall time. On a machine that does nothing else, `--clock wall --threads N --title ...` measures N cores.
Then: `reasongenrm plan --points points.json --gpu MACHINE`.
"""
# ruff: noqa: T201 - it prints its results

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.shapes import sizes
from reasongenrm import __version__
from reasongenrm.config import (
    DPOConfig,
    EngineConfig,
    EvaluateConfig,
    ModelConfig,
    PairsConfig,
    PreferencesConfig,
    ScoreConfig,
    Section,
    SFTConfig,
)
from reasongenrm.data.chat import detect_family, encode_reason_example, install_template
from reasongenrm.data.prompts import judge_messages, judge_prompt
from reasongenrm.planning.fit import fit_law
from reasongenrm.planning.points import KINDS, LIGHT, Kind, Machine, MeasuredPoint, Points, Work
from reasongenrm.planning.tables import laws_grid
from reasongenrm.records import (
    JudgePrompt,
    Judgment,
    Message,
    Preference,
    Reason,
    ScoredReason,
    TrainingExample,
    dump_records,
    parse_records,
)
from reasongenrm.store.artifacts import ArtifactRef, FileEntry, Store, digest_bytes, read_file, sha256_file
from reasongenrm.store.stage import Stage, content_digest, quiet_threads
from reasongenrm.training.shapes import SHAPES, ModelShape

BATCH_SIZE = 8  # of a training step, and of what is written side by side
NUM_SAMPLES = 2
NEW_TOKENS = 32  # of a written reason: random weights hardly ever end one
WORDS = ["answer", "better", "because", "question", "follows", "capital", "letters", "list", "river", "name", "three"]


@dataclass(frozen=True)
class Size:
    """A model, and how many prompts it gets."""

    model: ModelShape
    num_prompts: int


def _small(name: str, layers: int, hidden: int, heads: int, vocab: int) -> ModelShape:
    return ModelShape(
        name=name,
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        tied=True,
    )


SMALLEST = _small("1.6M", 4, 128, 4, 4_096)
MODELS = {
    shape.name: shape
    for shape in (SMALLEST, _small("5M", 6, 192, 3, 8_192), _small("20M", 8, 384, 6, 16_384), SHAPES["135M"])
}
# Fewer prompts for the larger models, so that none takes minutes.
NUM_PROMPTS = {"1.6M": (8, 16, 32), "5M": (4, 8, 16), "20M": (2, 4, 8), SHAPES["135M"].name: (2, 4, 6)}
ROWS = (2_000, 8_000, 32_000)  # of the light stages


class Nothing(Section):
    """The made-up inputs depend on no setting."""


def random_checkpoint(folder: Path, shape: ModelShape) -> Path:
    """Write random bfloat16 weights of a shape, with a small tokenizer whose ids all are in its vocabulary."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    from reasongenrm.demo.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer("chatml")
    config = LlamaConfig(
        **sizes(shape),
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _text(numbers: random.Random, num_words: int) -> str:
    return " ".join(numbers.choices(WORDS, k=num_words))


def make_prompts(num_prompts: int) -> list[JudgePrompt]:
    """Judge prompts of some 270 of the small tokenizer's tokens."""
    numbers = random.Random(0)
    return [
        JudgePrompt(
            prompt_id=f"p{number}",
            pair_id=f"p{number}",
            question=(Message(role="user", content=_text(numbers, 10)),),
            answer_a=_text(numbers, numbers.randint(4, 12)),
            answer_b=_text(numbers, numbers.randint(4, 12)),
            label="[[A]]",
        )
        for number in range(num_prompts)
    ]


class Bench:
    """Inputs in a store, and the measurements.

    Args:
        store_uri: every measurement writes below a prefix of its own, or the second would find the first's artifact.
        folder: for checkpoints and files.
        clock: seconds, from any start.
    """

    def __init__(self, store_uri: str, folder: Path, clock: Callable[[], float]) -> None:
        self._store_uri, self._folder, self._clock = store_uri, folder, clock
        self._number = 0
        self._models: dict[str, tuple[Path, ArtifactRef]] = {}
        self._inputs = Store(f"{store_uri}/inputs")

    def measure(self, kind: Kind, size: Size) -> tuple[Work, float]:
        """Do the work once; returns what it was, and its wall seconds."""
        measures: dict[Kind, Callable[[Size], tuple[Work, float]]] = {
            "generate": self._generate,
            "score": self._score,
            "sft": self._sft,
            "dpo": self._dpo,
            "evaluate": self._evaluate,
            "store": self._import,
        }
        return measures[kind](size)

    @contextmanager
    def _timed(self, clock: Callable[[], float] | None = None) -> Iterator[Callable[[], float]]:
        """Seconds of the context, from what it yields, once it has ended."""
        clock = clock or self._clock
        started = clock()
        ended: list[float] = []
        yield lambda: ended[0] - started
        ended.append(clock())

    def _fresh(self) -> Store:
        self._number += 1
        return Store(f"{self._store_uri}/{self._number}")

    def _model(self, shape: ModelShape) -> tuple[Path, ArtifactRef]:
        if shape.name not in self._models:
            folder = random_checkpoint(self._folder / shape.name, shape)
            files = [FileEntry(path=f.name, size=f.stat().st_size, sha256=sha256_file(f)) for f in folder.iterdir()]
            with Stage(self._inputs, "import_model", Nothing(), {"model": content_digest(files)}) as stage:
                if not stage.done:
                    stage.add_folder(folder)
                self._models[shape.name] = folder, stage.done or stage.finish({})
        return self._models[shape.name]

    def _put(self, name: str, records: Sequence[Any]) -> ArtifactRef:
        data = dump_records(records)
        with Stage(self._inputs, "made_up", Nothing(), {name: digest_bytes(data)}) as stage:
            if not stage.done:
                stage.add_bytes(name, data)
            return stage.done or stage.finish({"num_out": len(records)})

    def _work(self, shape: ModelShape, texts: Sequence[tuple[JudgePrompt, Sequence[str]]], num_steps: int) -> Work:
        """Tokens of prompts and of the reasons behind each, verdicts included."""
        tokenizer: Any = _tokenizer(self._model(shape)[0])
        prompt_tokens = reason_tokens = num_reasons = 0
        for prompt, reasons in texts:
            text = judge_prompt(prompt.question, prompt.answer_a, prompt.answer_b)
            examples = [
                encode_reason_example(tokenizer, detect_family(tokenizer), text, reason, prompt.label)
                for reason in reasons
            ]
            prompt_tokens += examples[0].prompt_span[1]
            reason_tokens += sum(len(example.input_ids) - example.prompt_span[1] for example in examples)
            num_reasons += len(reasons)
        return Work(
            num_prompts=len(texts),
            prompt_tokens=prompt_tokens,
            num_reasons=num_reasons,
            reason_tokens=reason_tokens,
            num_steps=num_steps,
        )

    def _texts(self, size: Size, num_reasons: int) -> list[tuple[JudgePrompt, list[str]]]:
        numbers = random.Random(1)
        prompts = make_prompts(size.num_prompts)
        return [(prompt, [_text(numbers, numbers.randint(6, 18)) for _ in range(num_reasons)]) for prompt in prompts]

    def _generate(self, size: Size) -> tuple[Work, float]:
        """The engine of distill_reasons and sample_reasons; the stages themselves refuse what random weights write."""
        from reasongenrm.generation import GenerationRequest, Sampling, open_engine

        requests = [
            GenerationRequest(prompt.prompt_id, judge_messages(prompt, "trained"), stop_at="turn")
            for prompt in make_prompts(size.num_prompts)
        ]
        folder, _ = self._model(size.model)
        sampling = Sampling(max_tokens=NEW_TOKENS, temperature=1.0, num_samples=NUM_SAMPLES)
        with self._timed() as seconds, closing(open_engine(folder, _engine())) as engine:
            batches = list(engine.generate(requests, sampling))
        written = [generation for batch in batches for generation in batch]
        return _written(
            written, NUM_SAMPLES, sum(max(g.num_output_tokens for g in batch) for batch in batches)
        ), seconds()

    def _evaluate(self, size: Size) -> tuple[Work, float]:
        from reasongenrm.evaluation.evaluate import evaluate_rewardbench

        path = self._folder / f"{size.num_prompts}.jsonl"
        rows = [
            {
                "prompt": p.question[0].content,
                "chosen": p.answer_a,
                "rejected": p.answer_b + ".",
                "subset": "s",
                "id": n,
            }
            for n, p in enumerate(make_prompts(-(-size.num_prompts // 2)))
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        _, model = self._model(size.model)
        config = EvaluateConfig(max_tokens=NEW_TOKENS, num_bootstrap=100, engine=_engine())
        with self._timed() as seconds:
            evaluated = evaluate_rewardbench(self._fresh(), config, "sft", model, str(path))
        judged = parse_records(read_file(evaluated, "judgments.jsonl"), Judgment, "judgments.jsonl")
        return _written(judged, 1, NEW_TOKENS * -(-len(judged) // BATCH_SIZE)), seconds()

    def _score(self, size: Size) -> tuple[Work, float]:
        from reasongenrm.reasons.score import score_reasons

        texts = self._texts(size, 4)
        reasons = [
            Reason(prompt_id=p.prompt_id, sample=n, reason=text, model="", num_tokens=0, finish_reason="stop")
            for p, its in texts
            for n, text in enumerate(its)
        ]
        prompts = self._put("prompts.jsonl", [prompt for prompt, _ in texts])
        written = self._put("reasons.jsonl", reasons)
        _, model = self._model(size.model)
        with self._timed() as seconds:
            score_reasons(self._fresh(), ScoreConfig(max_batch_tokens=4096), model, prompts, written)
        return self._work(size.model, texts, 0), seconds()

    def _sft(self, size: Size) -> tuple[Work, float]:
        from reasongenrm.training.sft import train_sft

        texts = self._texts(size, 1)
        examples = self._put(
            "examples.jsonl",
            [TrainingExample(prompt=p, reason=reason, verdict=p.label) for p, (reason,) in texts],
        )
        config = SFTConfig(
            num_train_epochs=1, train_batch_size=_batch(size), max_length=2048, dtype="float32", save_steps=1_000
        )
        _, model = self._model(size.model)
        with self._timed() as seconds:
            train_sft(self._fresh(), config, "sft", model, examples)
        return self._work(size.model, texts, size.num_prompts // _batch(size)), seconds()

    def _dpo(self, size: Size) -> tuple[Work, float]:
        from reasongenrm.training.dpo import train_dpo

        texts = self._texts(size, 2)
        pairs = [
            Preference(
                prompt=p,
                chosen=chosen,
                chosen_verdict="[[A]]",
                chosen_score=0.5,
                rejected=rejected,
                rejected_verdict="[[B]]",
                rejected_score=-0.5,
            )
            for p, (chosen, rejected) in texts
        ]
        preferences = self._put("preferences.jsonl", pairs)
        config = DPOConfig(
            num_train_epochs=1, train_batch_size=_batch(size), max_length=2048, dtype="float32", save_steps=1_000
        )
        _, model = self._model(size.model)
        with self._timed() as seconds:
            train_dpo(self._fresh(), config, model, preferences)
        return self._work(size.model, texts, size.num_prompts // _batch(size)), seconds()

    def _import(self, size: Size) -> tuple[Work, float]:
        from reasongenrm.data.import_model import import_model

        folder, _ = self._model(size.model)
        num_bytes = sum(file.stat().st_size for file in folder.iterdir())
        with self._timed(time.perf_counter) as seconds:  # most of it is the wait for the store
            import_model(self._fresh(), ModelConfig(), str(folder))
        return Work(num_bytes=num_bytes), seconds()

    def _prepare(self, num_rows: int) -> float:
        from reasongenrm.data.pairs import prepare_pairs

        path = self._folder / f"pairs-{num_rows}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for prompt in make_prompts(num_rows):
                user = {"role": "user", "content": prompt.question[0].content}
                answers = {"chosen": prompt.answer_a, "rejected": f"{prompt.answer_b}."}
                turns = {side: [user, {"role": "assistant", "content": text}] for side, text in answers.items()}
                file.write(json.dumps(turns) + "\n")
        _, model = self._model(SMALLEST)
        with self._timed() as seconds:
            prepare_pairs(self._fresh(), PairsConfig(), str(path), model)
        return seconds()

    def _select(self, num_rows: int) -> float:
        """Both selections have the same to read; the dearer one is measured."""
        from reasongenrm.reasons.select import select_preferences

        texts = self._texts(Size(SMALLEST, num_rows // 4), 4)
        scored = [
            ScoredReason(
                prompt_id=p.prompt_id,
                sample=n,
                reason=text,
                p_reason=0.5,
                p_verdict=1.0 - n % 2,
                reason_score=0.5 - n % 2,
                num_reason_tokens=9,
            )
            for p, its in texts
            for n, text in enumerate(its)
        ]
        prompts = self._put("prompts.jsonl", [prompt for prompt, _ in texts])
        scores = self._put("scored.jsonl", scored)
        with self._timed() as seconds:
            select_preferences(self._fresh(), PreferencesConfig(), prompts, scores)
        return seconds()

    def measure_rows(self, kind: Kind, num_rows: int) -> tuple[Work, float]:
        """A light stage on so many rows: what it reads, and its seconds."""
        seconds = self._prepare(num_rows) if kind == "prepare" else self._select(num_rows)
        return Work(num_rows=num_rows), seconds


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    install_template(tokenizer, detect_family(tokenizer), "reason")
    return tokenizer


def _engine() -> EngineConfig:
    return EngineConfig(kind="transformers", batch_size=BATCH_SIZE)


def _batch(size: Size) -> int:
    return min(BATCH_SIZE, size.num_prompts)


def _written(written: Sequence[Any], num_samples: int, num_steps: int) -> Work:
    """Work of generations or judgments, which know their tokens; a prompt's samples share its computation."""
    return Work(
        num_prompts=len(written) // num_samples,
        prompt_tokens=sum(one.num_prompt_tokens for one in written) // num_samples,
        num_reasons=len(written),
        reason_tokens=sum(one.num_output_tokens for one in written),
        num_steps=num_steps,
    )


def measure_all(
    bench: Bench, kinds: Sequence[Kind], models: Sequence[str], repeat: int, machine: str
) -> list[MeasuredPoint]:
    """Every kind at every size, `repeat` times; prints each as it comes."""
    points: list[MeasuredPoint] = []

    def keep(kind: Kind, model: ModelShape | None, work: Work, seconds: float) -> None:
        point = MeasuredPoint(
            kind=kind,
            machine=machine,
            model=model,
            work=work,
            seconds=round(seconds, 3),
            version=__version__,
            command="python -m benchmarks.growth",
            date=datetime.now(UTC).date().isoformat(),
        )
        points.append(point)
        amount = work.num_tokens or work.num_rows or work.num_bytes
        print(f"{kind:9} {model.name if model else '':13} {amount:>11,} {seconds:8.2f} s", flush=True)

    for kind in kinds:
        # Imports and caches, once.
        if LIGHT.get(kind) == "num_rows":
            bench.measure_rows(kind, ROWS[0])
        else:
            bench.measure(kind, Size(SMALLEST, 4))
        for _ in range(repeat):
            if LIGHT.get(kind) == "num_rows":
                for num_rows in ROWS:
                    keep(kind, None, *bench.measure_rows(kind, num_rows))
                continue
            for model in (MODELS[name] for name in models):
                for number in NUM_PROMPTS[model.name] if kind != "store" else (1,):
                    keep(kind, None if kind == "store" else model, *bench.measure(kind, Size(model, number)))
    return points


def main() -> None:
    """Measure, write the points, print how each kind grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument(
        "--machine", default="cpu", help="name of this machine in the file; --gpu of `reasongenrm plan`"
    )
    parser.add_argument("--title", default="one CPU core", help="what it is, for people")
    parser.add_argument(
        "--clock", choices=("cpu", "wall"), default="cpu", help="CPU time of this process, or wall time"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    quiet_threads()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    from reasongenrm.store.seaweed import embedded_store

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with embedded_store(folder / "store") as server:
            os.environ.update(server.env)
            bench = Bench(server.uri, folder, clock)
            points = measure_all(bench, options.kinds, options.models, options.repeat, options.machine)
    machine = Machine(name=options.machine, title=options.title, memory_bytes=None)
    Points(machines=(machine,), points=tuple(points)).write(options.output)
    laws = [fit_law([point for point in points if point.kind == kind]) for kind in options.kinds]
    print(f"\n{laws_grid(laws).markdown()}")


if __name__ == "__main__":
    main()
