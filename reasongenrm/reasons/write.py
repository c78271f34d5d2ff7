"""distill_reasons, sample_reasons: a teacher that is told the verdict writes, then the SFT model.

In: judge prompts and a model. Out: reasons that can be trained on: whole, of some length, no two alike for a prompt,
without a verdict's mark, and without a word of having been told the verdict. What is dropped is counted by cause.
"""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reasongenrm.config import DistillConfig, ModelConfig, SampleConfig, WriteConfig
from reasongenrm.data.prompts import judge_prompt, teacher_prompt
from reasongenrm.data.rows import take
from reasongenrm.errors import ConfigError
from reasongenrm.generation import Generation, GenerationRequest, Sampling, is_endpoint, open_engine
from reasongenrm.http_client import parse_address
from reasongenrm.progress import track
from reasongenrm.records import Drops, JudgePrompt, Reason, dump_records, parse_records
from reasongenrm.store.artifacts import ArtifactRef, Store, download, open_artifact, read_records
from reasongenrm.store.stage import Stage

_MARK = re.compile(r"\[\[\s*[AB]\s*\]\]")
_HEADING = re.compile(r"\W*(?:the\s+)?(?:final\s+)?(?:verdict|answer|decision)\W*", re.IGNORECASE)
# A teacher that lets slip that it was told. Narrow on purpose: "the correct result", "we are given a triangle" and "the
# better answer given these limits" are what honest reasons say.
_TOLD = re.compile(
    r"\b(?:given|provided|supplied|known|stated|predetermined)\s+(?:correct\s+|right\s+)?(?:verdict|judge?ment)\b"
    r"|\bverdict\s+(?:(?:that\s+)?(?:is|was|has\s+been|had\s+been)\s+)?(?:already\s+)?"
    r"(?:given|provided|supplied|known|told)\b"
    r"|\b(?:better|preferred)\s+answer\s+(?:is|was|has\s+been)\s+(?:already\s+)?(?:known|given|provided)\b(?!\s+by)"
    r"|\bknown\s+to\s+be\s+(?:the\s+)?better\b"
    r"|\b(?:I|we)(?:'ve|\s+was|\s+were|\s+am|\s+are|\s+have|\s+had)(?:\s+been)?\s+(?:already\s+)?(?:told|informed)\b",
    re.IGNORECASE,
)


def without_verdict_line(text: str) -> str:
    """A reason without a last line that gives the verdict's mark, and without the heading above that line.

    "A is right.\\n\\nVerdict:\\n[[A]]" becomes "A is right."; a mark anywhere else is left where it is.
    """
    lines = text.rstrip().split("\n")
    if not _MARK.search(lines[-1]):
        return text.strip()
    rest = "\n".join(lines[:-1]).rstrip()
    above, _, last = rest.rpartition("\n")
    return (above if _HEADING.fullmatch(last) else rest).strip()


def read_thoughts(text: str, *, keep: bool) -> str | None:
    """What a teacher that thinks wrote as its answer: what follows its last `</think>`.

    Qwen3 writes "<think>...</think>answer"; DeepSeek-R1's template writes the opening tag, so that its text begins
    within the block.

    Args:
        keep: the thoughts stay, in front of the answer and without their tags.

    Returns:
        None if a block has no end: there is no answer.
    """
    thoughts, closing, answer = text.rpartition("</think>")
    if "<think>" in answer:
        return None
    if not closing:
        return text
    thoughts = re.sub(r"</?think>", "", thoughts).strip()
    return f"{thoughts}\n\n{answer.strip()}" if keep and thoughts else answer


def tells_that_it_was_told(text: str) -> bool:
    """Whether a reason speaks of the verdict as something that was given to its writer."""
    return _TOLD.search(text) is not None


def clean_reasons(
    written: Sequence[Reason], min_reason_chars: int, *, told_verdict: bool, keep_thoughts: bool = False
) -> tuple[list[Reason], Drops, int]:
    """Keep the reasons that can be trained on.

    Dropped, under the first cause that applies: refused (by the server, or its content filter), cut_off (the writer was
    stopped by its token limit, or the prompt was too long), unclosed_thoughts (a think block without an end),
    tells_that_it_was_told, verdict_mark (a [[A]] or [[B]] in the text), too_short, duplicate (of an earlier reason of
    the same prompt).

    Args:
        written: as generated, in order.
        min_reason_chars: of a reason without the white space around it.
        told_verdict: the writer is the teacher: what it lets slip is looked for, and a last line that is a verdict is
            cut off. The policy's own reasons are taken as they are or not at all.
        keep_thoughts: what a teacher thinks before it answers is part of its reason, without its tags; else it is left
            out.

    Returns:
        The reasons kept, in order; the counts; how many of those kept lost a last line with a verdict.
    """
    kept: list[Reason] = []
    drops = Drops()
    num_cut = 0
    seen: set[tuple[str, str]] = set()
    for reason in written:
        drops.num_in += 1
        whole = read_thoughts(reason.reason, keep=keep_thoughts) if told_verdict else reason.reason
        stripped = (whole or "").strip()
        text = without_verdict_line(stripped) if told_verdict else stripped
        cause = None
        if reason.finish_reason == "refused":
            cause = "refused"
        elif reason.finish_reason == "length":
            cause = "cut_off"
        elif whole is None:
            cause = "unclosed_thoughts"
        elif told_verdict and tells_that_it_was_told(text):
            cause = "tells_that_it_was_told"
        elif _MARK.search(text):
            cause = "verdict_mark"
        elif len(text) < min_reason_chars:
            cause = "too_short"
        elif (reason.prompt_id, text) in seen:
            cause = "duplicate"
        if cause:
            shown = stripped or reason.reason.strip()
            drops.drop(cause, f"prompt {reason.prompt_id} sample {reason.sample}: {shown[:80]!r}")
            continue
        seen.add((reason.prompt_id, text))
        num_cut += text != stripped
        kept.append(reason.model_copy(update={"reason": text}))
        drops.num_out += 1
    return kept, drops, num_cut


def distill_reasons(store: Store, config: DistillConfig, prompts: ArtifactRef, teacher_uri: str) -> ArtifactRef:
    """Stage: the teacher, who is told the right verdict, writes reasons for each judge prompt (reasons.jsonl).

    Args:
        prompts: of prepare_pairs.
        teacher_uri: the http(s):// address of an OpenAI-compatible endpoint, or a model as `import_model` takes it. A
            teacher uses its own chat template. With `config.teacher_model` the model's name stands for the teacher, and
            the same model at another address gives the same artifact.

    Raises:
        ConfigError: `teacher_model` for a teacher that is no endpoint, or an endpoint's URL that cannot be used.
        InputError: the teacher's model is not what was expected.
        EngineError: the teacher failed for good.
        EmptyStageError: no reason is left.
    """
    inputs: dict[str, ArtifactRef | str] = {"prompts": prompts}
    extra: dict[str, Any] = {}
    teacher = None if is_endpoint(teacher_uri) else _teacher_artifact(store, config, teacher_uri)
    if teacher:
        inputs["teacher"] = teacher
    elif config.teacher_model is None:
        extra["teacher"] = str(parse_address(teacher_uri))  # without a password
    with Stage(store, "distill_reasons", config, inputs, extra) as stage:
        if stage.done:
            return stage.done
        judge_prompts = read_records(prompts, "prompts.jsonl", JudgePrompt)
        requests = [
            GenerationRequest(prompt.prompt_id, ({"role": "user", "content": teacher_prompt(prompt)},))
            for prompt in judge_prompts
        ]
        address = download(teacher, stage.work_dir / "teacher") if teacher else teacher_uri
        name = _name(teacher) if teacher else config.teacher_model
        return _write(stage, config, requests, address, name, told_verdict=True, keep_thoughts=config.keep_thoughts)


def _teacher_artifact(store: Store, config: DistillConfig, teacher_uri: str) -> ArtifactRef:
    """The teacher's checkpoint in the store: an artifact as it is, any other model imported."""
    if config.teacher_model is not None:
        raise ConfigError(
            f"distill.teacher_model is '{config.teacher_model}', which only an endpoint is asked for, but the teacher "
            f"is {teacher_uri}. Leave it out, or give the teacher's http(s):// address."
        )
    if teacher_uri.lower().startswith("s3://") and Store(teacher_uri).exists("manifest.json"):
        return open_artifact(teacher_uri).ref()
    from reasongenrm.data.import_model import import_model

    return import_model(store, ModelConfig(), teacher_uri, scores=False)


def sample_reasons(store: Store, config: SampleConfig, model: ArtifactRef, prompts: ArtifactRef) -> ArtifactRef:
    """Stage: the SFT model writes reasons for judge prompts without seeing the verdict (reasons.jsonl).

    Args:
        model: a ReasonGenRM checkpoint of train_sft.
        prompts: of prepare_pairs; `config.limit` of them are taken.

    Raises:
        EngineError: the engine failed for good.
        EmptyStageError: no reason is left.
    """
    with Stage(store, "sample_reasons", config, {"model": model, "prompts": prompts}) as stage:
        if stage.done:
            return stage.done
        judge_prompts = read_records(prompts, "prompts.jsonl", JudgePrompt)
        requests = [
            GenerationRequest(prompt.prompt_id, ({"role": "user", "content": text},), "reason", stop_at="turn")
            for prompt in take(judge_prompts, config.limit, config.seed)
            for text in [judge_prompt(prompt.question, prompt.answer_a, prompt.answer_b)]
        ]
        folder = download(model, stage.work_dir / "model")
        return _write(stage, config, requests, folder, _name(model), told_verdict=False)


def _name(model: ArtifactRef) -> str:
    """What the records call a model: the same for the same artifact in any folder."""
    return f"{model.stage}/{model.key}"


def _text_of(generation: Generation, keep_thoughts: bool) -> str:
    """A teacher's text; thoughts that its server split off are put back where they are to be kept."""
    if keep_thoughts and generation.reason:
        return f"<think>{generation.reason}</think>{generation.answer}"
    return generation.answer


def _write(
    stage: Stage,
    config: WriteConfig,
    requests: Sequence[GenerationRequest],
    address: str | Path,
    model_name: str | None,
    *,
    told_verdict: bool,
    keep_thoughts: bool = False,
) -> ArtifactRef:
    """Have all reasons written, clean them and close the stage; each batch is kept as a part, and not made again."""
    sampling = Sampling(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        num_samples=config.num_samples,
        seed=config.seed,
    )
    parts = stage.parts()
    written = [reason for name, data in parts.items() for reason in parse_records(data, Reason, name)]
    is_done = list(dict.fromkeys(reason.prompt_id for reason in written))
    with (
        contextlib.closing(open_engine(address, config.engine, model_name=model_name)) as engine,
        track(stage.name, total=len(requests) * config.num_samples, unit="reason") as progress,
    ):
        progress.start_at(len(written))
        for number, batch in enumerate(engine.generate(requests, sampling, skip=is_done), start=len(parts)):
            reasons = [
                Reason(
                    prompt_id=generation.request_id,
                    sample=generation.sample,
                    reason=_text_of(generation, keep_thoughts) if told_verdict else generation.reason or "",
                    model=engine.model_name,
                    num_tokens=generation.num_output_tokens,
                    finish_reason=generation.finish_reason,
                )
                for generation in batch
            ]
            stage.put_part(f"{number:06}.jsonl", dump_records(reasons))
            written += reasons
            progress.advance(len(reasons))
    places = {request.request_id: place for place, request in enumerate(requests)}
    written.sort(key=lambda reason: (places[reason.prompt_id], reason.sample))
    kept, drops, num_cut = clean_reasons(
        written, config.min_reason_chars, told_verdict=told_verdict, keep_thoughts=keep_thoughts
    )
    drops.require_some(
        stage.name,
        f"Read what the model wrote (the examples above); look at max_tokens ({config.max_tokens:,}) and "
        f"min_reason_chars ({config.min_reason_chars:,}).",
    )
    stage.add_bytes("reasons.jsonl", dump_records(kept))
    counts = {
        **drops.counts(),
        "num_prompts": len(requests),
        "num_prompts_without_reason": len(requests) - len({reason.prompt_id for reason in kept}),
        **({"num_verdict_lines_cut": num_cut} if told_verdict else {}),
    }
    metrics = {
        "tokens_mean": sum(reason.num_tokens for reason in kept) / len(kept),
        "chars_mean": sum(len(reason.reason) for reason in kept) / len(kept),
    }
    return stage.finish(counts, metrics)
