"""Judges whose figures are known beforehand, and benchmarks for them; made-up rows, real records."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from reasongenrm.config import EvaluateConfig
from reasongenrm.data.benchmarks import LABELS, ORDERS, Benchmark, load_benchmark
from reasongenrm.errors import EngineError
from reasongenrm.evaluation.metrics import Evaluation, evaluate
from reasongenrm.generation.seam import Generation, GenerationRequest, Sampling, plan_batches
from reasongenrm.records import OPPOSITE, JudgePrompt, Judgment, Verdict

REAL_BENCHMARK = Path(__file__).parents[2] / "shared" / "data" / "rewardbench-partial.jsonl"

Judge = Callable[[JudgePrompt, int], Verdict | None]


def oracle(prompt: JudgePrompt, vote: int) -> Verdict:  # noqa: ARG001 - the shape of every judge
    """Always right."""
    return prompt.label


def contrarian(prompt: JudgePrompt, vote: int) -> Verdict:  # noqa: ARG001
    """Always wrong."""
    return OPPOSITE[prompt.label]


def always_a(prompt: JudgePrompt, vote: int) -> Verdict:  # noqa: ARG001
    """Says [[A]], whatever is asked."""
    return "[[A]]"


def silent(prompt: JudgePrompt, vote: int) -> None:
    """Never says a verdict."""


def row(subset: str, number: int, /, **changes: Any) -> dict[str, Any]:
    """One row in RewardBench's schema."""
    return {
        "prompt": f"What is {number} + 1?",
        "chosen": f"{number} + 1 = {number + 1}.",
        "rejected": f"{number} + 1 = {number + 3}.",
        "subset": subset,
        "id": number,
        "chosen_model": "calculator",
        "rejected_model": "guesser",
    } | changes


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as JSON Lines; returns the path as a URI."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def benchmark_of(folder: Path, sizes: Mapping[str, int], name: str = "bench.jsonl") -> Benchmark:
    """A benchmark with a number of rows in each subset."""
    return load_benchmark(write_rows(folder / name, [row(s, n) for s, size in sizes.items() for n in range(size)]))


def judged(benchmark: Benchmark, judge: Judge, votes: int = 1) -> list[Judgment]:
    """Every row in both orders and every vote, 100 prompt tokens, 10 output tokens and half a second each."""
    return [
        Judgment(
            row_id=row.row_id,
            subset=row.subset,
            order=order,
            vote=vote,
            label=LABELS[order],
            verdict=judge(row.prompt(order), vote),
            reason="Counting on the fingers decides.",
            answer="",
            num_prompt_tokens=100,
            num_output_tokens=10,
            truncated=False,
            seconds=0.5,
        )
        for row in benchmark.rows
        for order in ORDERS
        for vote in range(votes)
    ]


def evaluated(benchmark: Benchmark, judge: Judge, variant: str = "dpo", **changes: Any) -> Evaluation:
    """The figures of a judge, with few resamples."""
    config = EvaluateConfig(**changes)
    judgments = judged(benchmark, judge, config.votes)
    return evaluate(judgments, benchmark, config, variant=variant, model=f"the {variant} model", style="reason")


class ScriptedEngine:
    """An engine that answers as it is told, in real batches; it counts what it was asked and can be made to die.

    Args:
        say: answer to a prompt's id and a sample's number: (reason, answer, finish reason).
        batch_size: samples in a batch.
        dies_after: batches after which it raises an EngineError.
    """

    model_name = "scripted"
    holds_letters = True

    def __init__(
        self,
        say: Callable[[str, int], tuple[str | None, str, Literal["stop", "length"]]],
        batch_size: int = 4,
        dies_after: int | None = None,
    ) -> None:
        self._say, self._batch_size, self._left = say, batch_size, dies_after
        self.asked: list[GenerationRequest] = []
        self.samplings: list[Sampling] = []

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, skip: Collection[str] = ()
    ) -> Iterator[list[Generation]]:
        self.samplings.append(sampling)
        for batch in plan_batches(requests, sampling.num_samples, self._batch_size, skip):
            if self._left == 0:
                raise EngineError("the engine died; start it again")
            self._left = None if self._left is None else self._left - 1
            self.asked += batch
            yield [self._answer(request, sample) for request in batch for sample in range(sampling.num_samples)]

    def _answer(self, request: GenerationRequest, sample: int) -> Generation:
        reason, answer, finish_reason = self._say(request.request_id, sample)
        return Generation(request.request_id, sample, reason, answer, 100, 10, finish_reason, 0.5)

    def close(self) -> None:
        """Nothing is held."""
