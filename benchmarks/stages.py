"""How long does every stage of a run take on this machine? Its measurements are what `reasongenrm plan` rests on.

    python -m benchmarks stages --output measurements.json [--kinds train_sft train_dpo] [--models 20M]
                                [--clock wall --threads 2 --title "..."]

The models have random weights: a stage takes as long for nonsense as for sense. What is measured is the stage as the
pipeline runs it: load, work, store (a SeaweedFS of its own on this machine). The clock is the process's CPU time on one
thread: what one free core would take, also on a machine that does other things; import_model, which waits for the
store, goes by wall time. On a machine that does nothing else, `--clock wall --threads N --title ...` measures N cores.
Then: `reasongenrm plan --measurements measurements.json --gpu MACHINE`.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

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
from reasongenrm.data.prompts import judge_prompt
from reasongenrm.planning.measurements import LIGHT, Machine, Measurement, Measurements, WorkKind, Workload
from reasongenrm.processes.cpu_math import configure_cpu_math
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
from reasongenrm.store.stage import Stage, content_digest
from reasongenrm.training.shapes import SHAPES, ModelShape

BATCH_SIZE = 8  # of a training step, and of reasons that are written together
NUM_SAMPLES = 2
NEW_TOKENS = 32  # of a written reason: random weights hardly ever end one
WORDS = ["answer", "better", "because", "question", "follows", "capital", "letters", "list", "river", "name", "three"]


TWENTY_MILLION = ModelShape(
    name="20M",
    num_layers=8,
    hidden_size=384,
    intermediate_size=1_152,
    num_heads=6,
    num_kv_heads=6,
    head_dim=64,
    vocab_size=16_384,
    tied=True,
)
MODELS = {"20M": TWENTY_MILLION, "135M": SHAPES["135M"]}
NUM_PROMPTS = {"20M": 8, "135M": 6}  # so that none takes minutes
NUM_ROWS = 32_000  # of the light stages


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


def _asked(prompt: JudgePrompt) -> str:
    return judge_prompt(prompt.question, prompt.answer_a, prompt.answer_b)


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

    def measure(self, kind: WorkKind, model: ModelShape, number: int) -> tuple[Workload, float]:
        """Do the work once; returns what it was, and its seconds.

        Args:
            number: of prompts, or of the rows of a light stage.
        """
        measures: dict[WorkKind, Callable[[ModelShape, int], tuple[Workload, float]]] = {
            "import_model": self._import,
            "prepare_pairs": self._prepare,
            "write_reasons": self._write,
            "score_reasons": self._score,
            "select_reasons": self._select,
            "train_sft": self._sft,
            "train_dpo": self._dpo,
            "evaluate": self._evaluate,
        }
        return measures[kind](model, number)

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

    def _work(
        self, shape: ModelShape, texts: Sequence[tuple[JudgePrompt, Sequence[str]]], measured: Callable[[], float]
    ) -> tuple[Workload, float]:
        """Tokens of prompts and of the reasons after each, verdicts included; with the seconds."""
        tokenizer: Any = _tokenizer(self._model(shape)[0])
        prompt_tokens = reason_tokens = num_reasons = 0
        for prompt, reasons in texts:
            text = _asked(prompt)
            examples = [
                encode_reason_example(tokenizer, detect_family(tokenizer), text, reason, prompt.label)
                for reason in reasons
            ]
            prompt_tokens += examples[0].prompt_span[1]
            reason_tokens += sum(len(example.input_ids) - example.prompt_span[1] for example in examples)
            num_reasons += len(reasons)
        work = Workload(
            num_prompts=len(texts),
            prompt_tokens=prompt_tokens,
            num_reasons=num_reasons,
            reason_tokens=reason_tokens,
        )
        return work, measured()

    def _texts(self, number: int, num_reasons: int) -> list[tuple[JudgePrompt, list[str]]]:
        numbers = random.Random(1)
        prompts = make_prompts(number)
        return [(prompt, [_text(numbers, numbers.randint(6, 18)) for _ in range(num_reasons)]) for prompt in prompts]

    def _write(self, model: ModelShape, number: int) -> tuple[Workload, float]:
        """The engine of distill_reasons and sample_reasons; the stages themselves refuse what random weights write."""
        from reasongenrm.generation import GenerationRequest, Sampling, open_engine

        requests = [
            GenerationRequest(prompt.prompt_id, ({"role": "user", "content": _asked(prompt)},), stop_at="turn")
            for prompt in make_prompts(number)
        ]
        folder, _ = self._model(model)
        sampling = Sampling(max_tokens=NEW_TOKENS, temperature=1.0, num_samples=NUM_SAMPLES)
        with self._timed() as seconds, closing(open_engine(folder, _engine())) as engine:
            written = [generation for batch in engine.generate(requests, sampling) for generation in batch]
        return _written(written, NUM_SAMPLES), seconds()

    def _evaluate(self, model: ModelShape, number: int) -> tuple[Workload, float]:
        from reasongenrm.evaluation.evaluate import evaluate_rewardbench

        path = self._folder / f"{number}.jsonl"
        rows = [
            {
                "prompt": p.question[0].content,
                "chosen": p.answer_a,
                "rejected": p.answer_b + ".",
                "subset": "s",
                "id": n,
            }
            for n, p in enumerate(make_prompts(-(-number // 2)))
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        _, weights = self._model(model)
        config = EvaluateConfig(max_tokens=NEW_TOKENS, engine=_engine())
        with self._timed() as seconds:
            evaluated = evaluate_rewardbench(self._fresh(), config, "sft", weights, str(path))
        judged = parse_records(read_file(evaluated, "judgments.jsonl"), Judgment, "judgments.jsonl")
        return _written(judged, 1), seconds()

    def _score(self, model: ModelShape, number: int) -> tuple[Workload, float]:
        from reasongenrm.reasons.score import score_reasons

        texts = self._texts(number, 4)
        reasons = [
            Reason(prompt_id=p.prompt_id, sample=n, reason=text, model="", num_tokens=0, finish_reason="stop")
            for p, its in texts
            for n, text in enumerate(its)
        ]
        prompts = self._put("prompts.jsonl", [prompt for prompt, _ in texts])
        written = self._put("reasons.jsonl", reasons)
        _, weights = self._model(model)
        with self._timed() as seconds:
            score_reasons(self._fresh(), ScoreConfig(max_batch_tokens=4096), weights, prompts, written)
        return self._work(model, texts, seconds)

    def _sft(self, model: ModelShape, number: int) -> tuple[Workload, float]:
        from reasongenrm.training.sft import train_sft

        texts = self._texts(number, 1)
        examples = self._put(
            "examples.jsonl",
            [TrainingExample(prompt=p, reason=reason, verdict=p.label) for p, (reason,) in texts],
        )
        config = SFTConfig(**_training(number))
        _, weights = self._model(model)
        with self._timed() as seconds:
            train_sft(self._fresh(), config, "sft", weights, examples)
        return self._work(model, texts, seconds)

    def _dpo(self, model: ModelShape, number: int) -> tuple[Workload, float]:
        from reasongenrm.training.dpo import train_dpo

        texts = self._texts(number, 2)
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
        config = DPOConfig(**_training(number))
        _, weights = self._model(model)
        with self._timed() as seconds:
            train_dpo(self._fresh(), config, weights, preferences)
        return self._work(model, texts, seconds)

    def _import(self, model: ModelShape, _number: int) -> tuple[Workload, float]:
        from reasongenrm.data.import_model import import_model

        folder, _ = self._model(model)
        num_bytes = sum(file.stat().st_size for file in folder.iterdir())
        with self._timed(time.perf_counter) as seconds:  # most of it is the wait for the store
            import_model(self._fresh(), ModelConfig(), str(folder))
        return Workload(num_bytes=num_bytes), seconds()

    def _prepare(self, model: ModelShape, num_rows: int) -> tuple[Workload, float]:
        from reasongenrm.data.pairs import prepare_pairs

        path = self._folder / f"pairs-{num_rows}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for prompt in make_prompts(num_rows):
                user = {"role": "user", "content": prompt.question[0].content}
                answers = {"chosen": prompt.answer_a, "rejected": f"{prompt.answer_b}."}
                turns = {side: [user, {"role": "assistant", "content": text}] for side, text in answers.items()}
                file.write(json.dumps(turns) + "\n")
        _, weights = self._model(model)
        with self._timed() as seconds:
            prepare_pairs(self._fresh(), PairsConfig(), str(path), weights)
        return Workload(num_rows=num_rows), seconds()

    def _select(self, _model: ModelShape, num_rows: int) -> tuple[Workload, float]:
        """Both selections read the same; the more expensive one is measured."""
        from reasongenrm.reasons.select import select_preferences

        texts = self._texts(num_rows // 4, 4)
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
        return Workload(num_rows=num_rows), seconds()


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    install_template(tokenizer, detect_family(tokenizer), "reason")
    return tokenizer


def _engine() -> EngineConfig:
    return EngineConfig(kind="transformers", batch_size=BATCH_SIZE)


def _training(num_examples: int) -> dict[str, Any]:
    return {
        "num_train_epochs": 1,
        "train_batch_size": min(BATCH_SIZE, num_examples),
        "max_length": 2048,
        "dtype": "float32",
        "save_steps": 1_000,
    }


def _written(written: Sequence[Any], num_samples: int) -> Workload:
    """Work of generations or judgments, which know their tokens; a prompt's samples share its computation."""
    return Workload(
        num_prompts=len(written) // num_samples,
        prompt_tokens=sum(one.num_prompt_tokens for one in written) // num_samples,
        num_reasons=len(written),
        reason_tokens=sum(one.num_output_tokens for one in written),
    )


def measure_all(
    bench: Bench, kinds: Sequence[WorkKind], models: Sequence[str], machine: str, num_rows: int = NUM_ROWS
) -> list[Measurement]:
    """Every kind with every model, light ones once; prints each as it comes."""
    measured: list[Measurement] = []
    for kind in kinds:
        light = kind in LIGHT
        bench.measure(kind, TWENTY_MILLION, 4)  # imports and caches, once
        for name in list(models)[-1:] if light else models:
            work, seconds = bench.measure(kind, MODELS[name], num_rows if light else NUM_PROMPTS[name])
            one = Measurement(
                kind=kind,
                machine=machine,
                model=None if light else MODELS[name],
                work=work,
                seconds=round(seconds, 3),
                version=__version__,
                command="python -m benchmarks stages",
                date=datetime.now(UTC).date().isoformat(),
            )
            measured.append(one)
            rate = f"{one.throughput / 1e9:,.1f} GFLOP/s" if one.model else f"{one.throughput:,.0f} {LIGHT[kind]}/s"
            print(f"{kind:14} {'' if light else name:5} {seconds:8.2f} s {rate:>24}", flush=True)
    return measured


def main() -> None:
    """Measure, and write the measurements."""
    kinds: tuple[WorkKind, ...] = get_args(WorkKind)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--machine", default="cpu", help="name of this machine; --gpu of `reasongenrm plan`")
    parser.add_argument("--title", default="one CPU core", help="what it is, for people")
    parser.add_argument(
        "--clock", choices=("cpu", "wall"), default="cpu", help="CPU time of this process, or wall time"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    configure_cpu_math()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    from reasongenrm.store.seaweed import embedded_store

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with embedded_store(folder / "store") as server:
            os.environ.update(server.env)
            bench = Bench(server.uri, folder, clock)
            measured = measure_all(bench, options.kinds, options.models, options.machine)
    machine = Machine(name=options.machine, title=options.title)
    Measurements(machines=(machine,), measurements=tuple(measured)).write(options.output)


if __name__ == "__main__":
    main()
