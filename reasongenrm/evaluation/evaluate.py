"""evaluate_rewardbench: benchmark rows in, judgments out, each row asked in both orders.

`judge_benchmark` needs an engine and rows, no store: `reasongenrm evaluate` uses it on any endpoint or checkpoint.
`evaluate_rewardbench` is the pipeline's stage. Both resume where a killed run stopped.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from reasongenrm.config import EvaluateConfig
from reasongenrm.data.benchmarks import ORDERS, Benchmark, BenchmarkRow, load_benchmark
from reasongenrm.errors import ConfigError
from reasongenrm.evaluation.intervals import INTERVALS_VERSION
from reasongenrm.evaluation.judging import HELD, held_answer, held_request, judge_request, judge_sampling
from reasongenrm.evaluation.metrics import Evaluation, evaluate
from reasongenrm.generation import Engine, Generation, GenerationRequest, Sampling, open_engine
from reasongenrm.generation.verdicts import READER_VERSION, parse_verdict
from reasongenrm.progress import Tracker, track
from reasongenrm.records import CALIBRATION_FILE, Judgment, Order, dump_records, parse_records
from reasongenrm.store.artifacts import ArtifactRef, Store, digest_bytes, download
from reasongenrm.store.stage import Stage, say
from reasongenrm.variants import VARIANTS, JudgeStyle

KeepPart = Callable[[str, bytes], None]


@dataclass(frozen=True)
class _Question:
    """One request and which judgment it is for; `vote` None: its samples are the votes."""

    request: GenerationRequest
    row: BenchmarkRow
    order: Order
    vote: int | None = None
    reason: Judgment | None = None  # two steps: what the first one gave
    is_held: bool = False  # a letter is all that is generated

    def judgment(self, generation: Generation) -> Judgment:
        """What one generation says. In the first of two steps there is no answer yet."""
        first = self.reason
        answer = held_answer(generation.answer) if self.is_held else generation.answer
        return Judgment(
            row_id=self.row.row_id,
            subset=self.row.subset,
            order=self.order,
            vote=generation.sample if self.vote is None else self.vote,
            label=self.row.prompt(self.order).label,
            verdict=parse_verdict(answer),
            reason=first.reason if first else generation.reason,
            answer=answer,
            num_prompt_tokens=generation.num_prompt_tokens + (first.num_prompt_tokens if first else 0),
            num_output_tokens=generation.num_output_tokens + (first.num_output_tokens if first else 0),
            truncated=not self.is_held
            and (generation.finish_reason == "length" or (first is not None and first.truncated)),
            seconds=generation.seconds + (first.seconds if first else 0.0),
            p_a=generation.p_a,
            refused=generation.finish_reason == "refused" or (first is not None and first.refused),
        )


def judge_benchmark(
    engine: Engine,
    rows: Sequence[BenchmarkRow],
    config: EvaluateConfig,
    style: JudgeStyle,
    *,
    parts: Mapping[str, bytes] | None = None,
    keep_part: KeepPart | None = None,
) -> list[Judgment]:
    """Have every row judged in both orders.

    One vote is greedy; several are samples at `config.vote_temperature`. With `config.two_step` and style "reason" the
    reason is asked for first and the verdict in a second request, as the reference does; tokens and seconds are of
    both.

    Args:
        engine: who judges.
        rows: what is judged.
        config: max_tokens, votes, vote_temperature, two_step and seed are used.
        style: "plain" chat, the "verdict" at once, or "reason" and verdict in one generation.
        parts: what an earlier, killed call had kept, by name.
        keep_part: called with each finished batch, to keep it.

    Returns:
        Judgments in the order of the rows, then orders, then votes.

    Raises:
        EngineError: the engine failed for good.
    """
    keep_part = keep_part or _forget
    two_step = config.two_step and style == "reason"
    questions = [_first_question(row, order, style, two_step) for row in rows for order in ORDERS]
    # Prompts of like length share a batch; the longest come first, so that what does not fit fails at once.
    questions.sort(key=lambda question: (-_num_chars(question.request), question.request.request_id))
    num_judgments = len(questions) * config.votes
    with track("judge", total=num_judgments * (2 if two_step else 1), unit="judgment") as progress:
        name = "reasons" if two_step else "judgments"
        # A plain chat may be anybody's API, and not all of those give log-probabilities.
        asks = style != "plain" and not two_step
        sampling = judge_sampling(
            config.max_tokens, config.votes, config.vote_temperature, config.seed, verdict_logprobs=asks
        )
        judged = _ask(engine, questions, sampling, name, parts or {}, keep_part, progress)
        if two_step:
            verdicts = [
                _second_question(rows_of, found)
                for rows_of in questions
                for found in judged[rows_of.request.request_id]
            ]
            sampling = replace(sampling, num_samples=1, verdict_logprobs=True)
            answered = _ask(engine, verdicts, sampling, "judgments", parts or {}, keep_part, progress)
            judged = defaultdict(list)
            for question in verdicts:
                judged[_request_id(question.row, question.order)] += answered[question.request.request_id]
    return [
        judgment
        for row in rows
        for order in ORDERS
        for judgment in sorted(judged[_request_id(row, order)], key=lambda judgment: judgment.vote)
    ]


def judge_held(
    engine: Engine,
    rows: Sequence[BenchmarkRow],
    style: JudgeStyle,
    *,
    parts: Mapping[str, bytes] | None = None,
    keep_part: KeepPart | None = None,
) -> list[Judgment]:
    """Have every row judged in both orders by one letter alone: what a judge in plain chat knows, whatever it writes.

    Args:
        engine: who judges.
        rows: what is judged.
        style: how the judge is asked otherwise.
        parts: what an earlier, killed call had kept, by name.
        keep_part: called with each finished batch, to keep it.

    Returns:
        A judgment for each row and order; none of a trained judge, and of an engine that holds no letters.

    Raises:
        EngineError: the engine failed for good.
    """
    if style != "plain" or not engine.holds_letters:
        return []
    questions = []
    for row in rows:
        for order in ORDERS:
            prompt = row.prompt(order)
            asked = held_request(f"{_request_id(row, order)}:held", prompt.question, prompt.answer_a, prompt.answer_b)
            questions.append(_Question(asked, row, order, is_held=True))
    questions.sort(key=lambda question: (-_num_chars(question.request), question.request.request_id))
    with track("judge (held to a verdict)", total=len(questions), unit="judgment") as progress:
        judged = _ask(engine, questions, HELD, "held", parts or {}, keep_part or _forget, progress)
    return [one for found in judged.values() for one in found]


def evaluate_rewardbench(
    store: Store, config: EvaluateConfig, variant: str, judge: ArtifactRef | str, benchmark_uri: str
) -> ArtifactRef:
    """Stage: one variant judges the benchmark.

    Args:
        store: where the artifact goes: judgments.jsonl, rows.jsonl (as judged), evaluation.json, and
            judge_calibration.json if the judge's probabilities are known.
        config: its section.
        variant: of `VARIANTS`; decides how the judge is asked.
        judge: a checkpoint, or the http(s):// address of an OpenAI-compatible endpoint.
        benchmark_uri: see `load_benchmark`.

    Raises:
        ConfigError: an unknown variant.
        InputError: the benchmark is not what was expected.
        EngineError: the judge failed for good.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"evaluate_rewardbench: variant is '{variant}', expected one of {', '.join(VARIANTS)}.")
    style = VARIANTS[variant].style
    benchmark = load_benchmark(benchmark_uri, config.limit, config.seed, config.columns)
    say(f"evaluate_rewardbench: {benchmark.said}")
    inputs: dict[str, ArtifactRef | str] = {"benchmark": benchmark.digest}
    extra: dict[str, Any] = {"variant": variant, "reader": READER_VERSION, "intervals": INTERVALS_VERSION}
    if isinstance(judge, ArtifactRef):
        inputs["model"] = judge
    else:
        extra["endpoint"] = judge
    with Stage(store, "evaluate_rewardbench", config, inputs, extra) as stage:
        if stage.done:
            return stage.done
        address = download(judge, stage.work_dir / "model") if isinstance(judge, ArtifactRef) else judge
        with contextlib.closing(open_engine(address, config.engine)) as engine:
            kept: dict[str, Any] = {"parts": stage.parts(), "keep_part": stage.put_part}
            judgments = judge_benchmark(engine, benchmark.rows, config, style, **kept)
            held = judge_held(engine, benchmark.rows, style, **kept)
            model = judge.uri if isinstance(judge, ArtifactRef) else f"{engine.model_name} at {judge}"
            digest = judge.digest if isinstance(judge, ArtifactRef) else None
        evaluation = evaluate(
            judgments, benchmark, config, variant=variant, model=model, style=style, model_digest=digest, held=held
        )
        for name, data in evaluation_files(evaluation, judgments, benchmark).items():
            stage.add_bytes(name, data)
        return stage.finish(evaluation_counts(evaluation), evaluation_metrics(evaluation))


def evaluate_alone(
    engine: Engine,
    config: EvaluateConfig,
    benchmark: Benchmark,
    style: JudgeStyle,
    *,
    name: str,
    model: str,
    folder: Path,
) -> tuple[Evaluation, list[Judgment]]:
    """Evaluate a judge outside a run and leave its files in a folder; called again, it resumes where it stopped.

    Args:
        engine: who judges.
        config: as for the stage.
        benchmark: what is judged.
        style: how the judge is asked.
        name: what the report calls the judge.
        model: its URI or its endpoint, for the report.
        folder: gets judgments.jsonl, rows.jsonl and evaluation.json, and while it works parts/.

    Raises:
        ConfigError: the folder holds parts of another evaluation.
        EngineError: the judge failed for good.
    """
    kept = _FolderParts(
        folder / "parts", digest_bytes(repr((config, benchmark.digest, style, model, READER_VERSION)).encode())
    )
    parts = kept.read()
    judgments = judge_benchmark(engine, benchmark.rows, config, style, parts=parts, keep_part=kept.keep)
    held = judge_held(engine, benchmark.rows, style, parts=parts, keep_part=kept.keep)
    evaluation = evaluate(judgments, benchmark, config, variant=name, model=model, style=style, held=held)
    for file_name, data in evaluation_files(evaluation, judgments, benchmark).items():
        (folder / file_name).write_bytes(data)
    kept.remove()
    return evaluation, judgments


def evaluation_files(evaluation: Evaluation, judgments: Sequence[Judgment], benchmark: Benchmark) -> dict[str, bytes]:
    """The files of an evaluation by name; judge_calibration.json is for serving the judge."""
    files = {
        "judgments.jsonl": dump_records(judgments),
        "rows.jsonl": dump_records(benchmark.rows),
        "evaluation.json": evaluation.model_dump_json(indent=2).encode() + b"\n",
    }
    if evaluation.calibration is not None:
        files[CALIBRATION_FILE] = evaluation.calibration.model_dump_json(indent=2).encode() + b"\n"
    return files


def evaluation_counts(evaluation: Evaluation) -> dict[str, int]:
    """Rows in, judgments out; what has no verdict is counted, and the benchmark's rows that were dropped before."""
    return {
        **{f"num_dropped_{cause}": count for cause, count in evaluation.benchmark.dropped.items()},
        "num_in": evaluation.benchmark.num_rows,
        "num_out": evaluation.num_judgments,
        "num_unparsed": round(evaluation.unparsed_fraction * evaluation.num_judgments),
        "num_truncated": round(evaluation.truncated_fraction * evaluation.num_judgments),
        **({"num_refused": evaluation.num_refused} if evaluation.num_refused else {}),
    }


def evaluation_metrics(evaluation: Evaluation) -> dict[str, Any]:
    """The figures that travel with the artifact's reference; fractions in [0, 1]."""
    coverage = evaluation.benchmark.coverage
    sections = {
        f"accuracy_{section.section.lower().replace(' ', '_')}": section.accuracy for section in evaluation.sections
    }
    calibration = evaluation.calibration
    calibrated = (
        {}
        if calibration is None
        else {
            "calibration_temperature": calibration.temperature,
            "calibration_bias": calibration.bias,
            "nll_before": calibration.nll_before,
            "nll_after": calibration.nll_after,
            "ece_before": calibration.ece_before,
            "ece_after": calibration.ece_after,
        }
    )
    return {
        "variant": evaluation.variant,
        "accuracy": evaluation.accuracy,
        "accuracy_low": evaluation.interval.low,
        "accuracy_high": evaluation.interval.high,
        **({"held_accuracy": evaluation.held.accuracy} if evaluation.held else {}),
        **sections,
        "consistent_accuracy": evaluation.consistent_accuracy,
        "consistent_fraction": evaluation.consistent_fraction,
        "flip_fraction": evaluation.flip_fraction,
        "share_a": evaluation.share_a,
        "unparsed_fraction": evaluation.unparsed_fraction,
        "truncated_fraction": evaluation.truncated_fraction,
        "mean_output_tokens": evaluation.mean_output_tokens,
        "mean_seconds": evaluation.mean_seconds,
        "is_partial_benchmark": coverage is not None and coverage.is_partial,
        **calibrated,
    }


def _ask(
    engine: Engine,
    questions: Sequence[_Question],
    sampling: Sampling,
    name: str,
    parts: Mapping[str, bytes],
    keep_part: KeepPart,
    progress: Tracker,
) -> dict[str, list[Judgment]]:
    """Judgments by request id; what parts named `name`-... hold is not asked again."""
    by_id = {question.request.request_id: question for question in questions}
    by_place = {(q.row.row_id, q.order, q.vote): q.request.request_id for q in questions}
    kept = {part: data for part, data in parts.items() if part.startswith(f"{name}-")}
    judged: dict[str, dict[int, Judgment]] = defaultdict(dict)
    for part, data in kept.items():
        for judgment in parse_records(data, Judgment, part):
            vote = None if (judgment.row_id, judgment.order, None) in by_place else judgment.vote
            judged[by_place[judgment.row_id, judgment.order, vote]][judgment.vote] = judgment
    done = {request_id for request_id, votes in judged.items() if len(votes) == sampling.num_samples}
    if done:
        progress.start_at(progress.done + len(done) * sampling.num_samples)
    requests = [question.request for question in questions]
    for number, batch in enumerate(engine.generate(requests, sampling, done), start=len(kept)):
        fresh = [by_id[generation.request_id].judgment(generation) for generation in batch]
        keep_part(f"{name}-{number:06}.jsonl", dump_records(fresh))
        for generation, judgment in zip(batch, fresh, strict=True):
            judged[generation.request_id][judgment.vote] = judgment
        progress.advance(sum(generation.request_id not in done for generation in batch))
    return {request_id: list(votes.values()) for request_id, votes in judged.items()}


def _first_question(row: BenchmarkRow, order: Order, style: JudgeStyle, two_step: bool) -> _Question:
    prompt = row.prompt(order)
    stop_at: Literal["sequence", "turn"] = "turn" if two_step else "sequence"
    request = judge_request(
        _request_id(row, order), prompt.question, prompt.answer_a, prompt.answer_b, style, stop_at=stop_at
    )
    return _Question(request, row, order)


def _second_question(first: _Question, found: Judgment) -> _Question:
    """Ask for the verdict after a reason that was written in a separate request."""
    messages = (*first.request.messages, {"role": "reason", "content": found.reason or ""})
    request = GenerationRequest(f"{first.request.request_id}:{found.vote}", messages, opening_role="assistant")
    return _Question(request, first.row, first.order, found.vote, found)


def _request_id(row: BenchmarkRow, order: Order) -> str:
    return f"{row.row_id}:{order}"


def _num_chars(request: GenerationRequest) -> int:
    return sum(len(message["content"]) for message in request.messages)


def _forget(_name: str, _data: bytes) -> None:
    """Keep nothing."""


class _FolderParts:
    """Parts in a local folder, for an evaluation without a store. `mark` names what is evaluated, by whom and how."""

    def __init__(self, folder: Path, mark: str) -> None:
        self._folder, self._mark = folder, mark

    def read(self) -> dict[str, bytes]:
        """Parts by name; makes the folder at the first call."""
        self._folder.mkdir(parents=True, exist_ok=True)
        marker = self._folder / "of"
        if marker.exists() and marker.read_text(encoding="utf-8") != self._mark:
            raise ConfigError(
                f"{self._folder}: holds parts of another evaluation (other judge, benchmark or config). "
                "Give another folder, or delete this one."
            )
        marker.write_text(self._mark, encoding="utf-8")
        return {path.name: path.read_bytes() for path in sorted(self._folder.glob("*.jsonl"))}

    def keep(self, name: str, data: bytes) -> None:
        """Write a part whole or not at all."""
        partial = self._folder / f"{name}.partial"
        partial.write_bytes(data)
        partial.replace(self._folder / name)

    def remove(self) -> None:
        """Everything is in the files now."""
        for path in self._folder.iterdir():
            path.unlink()
        self._folder.rmdir()
