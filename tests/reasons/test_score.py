"""Scores against the plain formula, one sequence at a time; and the stage, killed and resumed, in one process and in
replicas, on a real store."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import reasongenrm.reasons.score_batch
from reasongenrm.config import ScoreConfig
from reasongenrm.data.chat import detect_family, encode_reason_example, install_template
from reasongenrm.data.prompts import judge_prompt
from reasongenrm.errors import ConfigError, EmptyStageError, EngineError, InputError
from reasongenrm.packing.kernels import prepare_for_packed_rows
from reasongenrm.processes.workers import WorkerProcess
from reasongenrm.reasons.candidates import Row, encode_candidates, plan_batches
from reasongenrm.reasons.score import context_length, score_metrics, score_reasons
from reasongenrm.reasons.score_batch import _token_logprobs, probability, reason_score, score_batch
from reasongenrm.reasons.score_replicas import ScorerReplicas
from reasongenrm.records import JudgePrompt, Message, Reason, Record, ScoredReason, dump_records, parse_records
from reasongenrm.store.artifacts import ArtifactRef, Store, read_file
from reasongenrm.store.stage import Stage
from tests.tiny import ARCHITECTURES as TINY_ARCHITECTURES
from tests.tiny import Family, exact, exact_architecture, tiny_checkpoint, tiny_tokenizer

ROOT = Path(__file__).parents[2]
ARCHITECTURES: list[tuple[Family, dict[str, Any]]] = [
    ("llama3", {"num_key_value_heads": 2}),
    ("chatml", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("qwen2.5", {"num_key_value_heads": 1}),
    ("qwen2.5", {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}),
]
QUESTIONS = (
    "Why?",
    "Which of the two numbers is prime, 91 or 97, and how do you know? " * 3,
    "Say [[B]].",
    "Yes or no?",
)
REASONS = (
    "Answer A is better.",
    "Answer B follows the question and answer A does not. " * 4,
    "No.",
    "Both say yes; A says why, and it is right: 7 * 13 = 91. <|im_end|>",
    "It is B",
)


def judge_prompts(num: int = 4) -> list[JudgePrompt]:
    return [
        JudgePrompt(
            prompt_id=f"p{number}",
            pair_id=f"p{number}",
            question=(Message(role="user", content=QUESTIONS[number % len(QUESTIONS)]),),
            answer_a="Because." * (number + 1),
            answer_b="97, since 91 = 7 * 13.",
            label="[[A]]" if number % 2 else "[[B]]",
        )
        for number in range(num)
    ]


def written_reasons(prompts: Sequence[JudgePrompt]) -> list[Reason]:
    """One reason for the first prompt, two for the second, and so on."""
    return [
        Reason(
            prompt_id=prompt.prompt_id,
            sample=sample,
            reason=REASONS[(number + sample) % len(REASONS)],
            model="m",
            num_tokens=9,
            finish_reason="stop",
        )
        for number, prompt in enumerate(prompts)
        for sample in range(number + 1)
    ]


def make_model(family: Family, tokenizer: Any, **changes: Any) -> Any:
    """A random model in float64: Qwen 2 (with biases) for Qwen's family, Llama for the others; 4 query heads."""
    kinds = {"qwen2.5": (Qwen2Config, Qwen2ForCausalLM)}
    config_class, model_class = kinds.get(family, (LlamaConfig, LlamaForCausalLM))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = config_class(vocab_size=len(tokenizer), initializer_range=0.3, **sizes, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = exact(model_class(config)).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    return model


def make_tokenizer(family: Family) -> Any:
    tokenizer = tiny_tokenizer(family)
    install_template(tokenizer, detect_family(tokenizer), "reason")
    return tokenizer


def plain_scores(model: Any, tokenizer: Any, prompt: JudgePrompt, reason: Reason) -> tuple[float, float]:
    """P(R|U) and P(A|U,R) as docs/method.md, section 2, defines them: one sequence, all logits, two means."""
    text = judge_prompt(prompt.question, prompt.answer_a, prompt.answer_b)
    example = encode_reason_example(tokenizer, detect_family(tokenizer), text, reason.reason, prompt.label)
    ids = torch.tensor([example.input_ids])
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
    logprobs_T = logprobs[:-1].gather(-1, ids[0, 1:, None])[:, 0]
    spans = (example.reason_span, example.verdict_span)
    p_reason, p_verdict = (logprobs_T[start - 1 : stop - 1].mean().exp().item() for start, stop in spans)
    return p_reason, p_verdict


def rows_of(tokenizer: Any, prompts: Sequence[JudgePrompt], reasons: Sequence[Reason]) -> list[Row]:
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    return encode_candidates(tokenizer, detect_family(tokenizer), by_id, reasons, 4096)[0]


def all_scores(model: Any, rows: Sequence[Row], max_batch_tokens: int) -> dict[tuple[str, int], ScoredReason]:
    prepare_for_packed_rows(model)
    batches = plan_batches(rows, max_batch_tokens)
    return {(s.prompt_id, s.sample): s for batch in batches for s in score_batch(model, batch)}


def test_reason_score_worked_by_hand() -> None:
    # Reason: P = 0.5 and 0.5, mean 0.5. Verdict: P = 0.9 and 0.4, geometric mean 0.6. 0.5 * (2 * 0.6 - 1) = 0.1.
    assert reason_score([math.log(0.5)] * 2, [math.log(0.9), math.log(0.4)]) == pytest.approx(0.1)
    assert reason_score([0.0], [0.0]) == 1.0


def test_reason_leading_to_wrong_verdict_scores_below_zero() -> None:
    # 0.5 * (2 * 0.25 - 1) = -0.25
    assert reason_score([math.log(0.5)], [math.log(0.25)]) == pytest.approx(-0.25)


def test_reason_without_tokens_has_no_score() -> None:
    with pytest.raises(ValueError, match="no token log-probabilities"):
        reason_score([], [-1.0])
    with pytest.raises(ValueError, match="no token log-probabilities"):
        reason_score([-1.0], [])


LOGPROBS = st.lists(st.floats(-30, 0), min_size=1, max_size=30)


@given(reason=LOGPROBS, verdict=LOGPROBS)
def test_score_is_signed_by_the_verdict_and_bounded_by_the_fluency(reason: list[float], verdict: list[float]) -> None:
    score, p_reason, p_verdict = reason_score(reason, verdict), probability(reason), probability(verdict)
    assert (score > 0) == (p_verdict > 0.5)
    assert abs(score) <= p_reason <= 1
    assert min(reason) - 1e-12 <= math.log(p_reason) <= max(reason) + 1e-12


@pytest.mark.parametrize(("family", "changes"), ARCHITECTURES)
def test_batched_scores_are_those_of_one_sequence_at_a_time(family: Family, changes: dict[str, Any]) -> None:
    tokenizer = make_tokenizer(family)
    model = make_model(family, tokenizer, **changes)
    prompts = judge_prompts()
    reasons = written_reasons(prompts)
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    plain = {(r.prompt_id, r.sample): plain_scores(model, tokenizer, by_id[r.prompt_id], r) for r in reasons}
    assert len({float(f"{p:.2g}") for pair in plain.values() for p in pair}) > 9, "the reasons must make a difference"
    rows = rows_of(tokenizer, prompts, reasons)
    for max_batch_tokens in (
        1,
        450,
        100_000,
    ):  # a reason a row; some reasons a row, some rows a batch; all in one batch
        found = all_scores(model, rows, max_batch_tokens)
        assert found.keys() == plain.keys()
        for key, (p_reason, p_verdict) in plain.items():
            assert found[key].p_reason == pytest.approx(p_reason, rel=1e-10, abs=0)
            assert found[key].p_verdict == pytest.approx(p_verdict, rel=1e-10, abs=0)
            assert found[key].reason_score == pytest.approx(p_reason * (2 * p_verdict - 1), rel=1e-9)
    single = all_scores(model.float(), rows, 450)
    for key, (p_reason, p_verdict) in plain.items():
        assert single[key].p_reason == pytest.approx(p_reason, rel=1e-4)
        assert single[key].p_verdict == pytest.approx(p_verdict, rel=1e-4)


@pytest.mark.parametrize("model_type", TINY_ARCHITECTURES)
def test_scorers_head_gives_the_models_own_log_probabilities(model_type: str) -> None:
    model = exact_architecture(model_type).eval()
    ids_1T = torch.arange(3, 13)[None]
    with torch.inference_mode():
        hidden_TD = model.get_decoder()(ids_1T).last_hidden_state[0]
        expected_TV = model(ids_1T).logits[0].log_softmax(-1)
        found_T = _token_logprobs(model, hidden_TD[:-1], ids_1T[0, 1:])
    assert (found_T - expected_TV[:-1].gather(-1, ids_1T[0, 1:, None])[:, 0]).abs().max().item() < 1e-10


def test_scores_do_not_depend_on_the_order_of_prompts_and_reasons() -> None:
    tokenizer = make_tokenizer("chatml")
    model = make_model("chatml", tokenizer)
    prompts = judge_prompts()
    reasons = written_reasons(prompts)
    found = all_scores(model, rows_of(tokenizer, prompts, reasons), 450)
    assert all_scores(model, rows_of(tokenizer, prompts[::-1], reasons[::-1]), 450) == found


def test_prompt_is_computed_once_and_logits_only_where_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer("chatml")
    model = make_model("chatml", tokenizer)
    prepare_for_packed_rows(model)
    prompts = judge_prompts()
    rows = rows_of(tokenizer, prompts, written_reasons(prompts))
    (last,) = [row for row in rows if len(row.candidates) == 4]
    read: list[int] = []
    scored: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: read.append(args[0].numel()))
    model.get_output_embeddings().register_forward_pre_hook(lambda _, args: scored.append(args[0].shape[:-1].numel()))
    monkeypatch.setattr(reasongenrm.reasons.score_batch, "MAX_LOGITS", 7 * len(tokenizer))
    score_batch(model, [last])
    assert read == [len(last.prompt_ids) - 1 + sum(len(c.ids) for c in last.candidates)]
    assert sum(scored) == sum(c.num_reason_tokens + c.num_verdict_tokens for c in last.candidates)
    assert max(scored) == 7, "the logits of so many tokens at a time"


def test_model_that_gives_no_numbers_is_an_error() -> None:
    tokenizer = make_tokenizer("chatml")
    model = make_model("chatml", tokenizer)
    prepare_for_packed_rows(model)
    model.get_input_embeddings().weight.data[:] = math.nan
    prompts = judge_prompts(1)
    with pytest.raises(InputError, match=r"log-probability that is no number, for prompt p0.*Check the checkpoint"):
        score_batch(model, rows_of(tokenizer, prompts, written_reasons(prompts)))


def test_context_is_the_models_and_layers_without_attention_are_refused() -> None:
    tokenizer = make_tokenizer("qwen2.5")
    model = make_model("qwen2.5", tokenizer, max_position_embeddings=99)
    assert context_length(model.config) == 99
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(InputError, match="has layers of kind linear_attention; expected attention in every layer"):
        context_length(model.config)


def test_metrics_worked_by_hand() -> None:
    scores = [(0.5, 0.9), (0.5, 0.5), (1.0, 0.25), (0.8, 0.6)]  # 0.4, 0.0, -0.5, 0.16
    scored = [
        ScoredReason(
            prompt_id="p",
            sample=n,
            reason="r",
            p_reason=r,
            p_verdict=v,
            reason_score=r * (2 * v - 1),
            num_reason_tokens=2,
        )
        for n, (r, v) in enumerate(scores)
    ]
    metrics = score_metrics(scored)
    assert metrics["score_mean"] == pytest.approx(0.015)
    assert metrics["score_above_0_1_fraction"] == 0.5
    assert metrics["score_below_minus_0_1_fraction"] == 0.25
    assert metrics["score_p50"] == pytest.approx(0.08)
    assert metrics["p_reason_mean"] == pytest.approx(0.7)
    assert metrics["p_verdict_mean"] == pytest.approx(0.5625)
    assert metrics["p_verdict_above_half_fraction"] == 0.5
    edges, counts = metrics["score_histogram"]["edges"], metrics["score_histogram"]["counts"]
    filled = {edge: count for edge, count in zip(edges, counts, strict=False) if count}
    assert filled == {-0.5: 1, 0.0: 1, 0.1: 1, 0.4: 1}


def publish(store: Store, name: str, files: dict[str, Sequence[Record]] | Path) -> ArtifactRef:
    with Stage(store, f"make_{name}", ScoreConfig(), {}) as stage:
        if isinstance(files, Path):
            stage.add_folder(files)
        else:
            for file, records in files.items():
                stage.add_bytes(file, dump_records(records))
        return stage.finish({"num_in": 1, "num_out": 1})


def publish_all(store: Store, folder: Path, reasons: Sequence[Reason] | None = None) -> tuple[ArtifactRef, ...]:
    prompts = judge_prompts()
    return (
        publish(store, "model", tiny_checkpoint(folder / "model", "llama3")),
        publish(store, "prompts", {"prompts.jsonl": prompts}),
        publish(store, "reasons", {"reasons.jsonl": written_reasons(prompts) if reasons is None else reasons}),
    )


@pytest.mark.parametrize("dtype", ["auto", "float64"])
def test_stage_scores_every_reason_in_order(store: Store, tmp_path: Path, dtype: Literal["auto", "float64"]) -> None:
    refs = publish_all(store, tmp_path)
    ref = score_reasons(store, ScoreConfig(dtype=dtype, max_batch_tokens=450), *refs)
    scored = parse_records(read_file(ref, "scored.jsonl"), ScoredReason, "scored.jsonl")
    reasons = written_reasons(judge_prompts())
    assert [(s.prompt_id, s.sample, s.reason) for s in scored] == [(r.prompt_id, r.sample, r.reason) for r in reasons]
    assert ref.counts == {"num_in": 10, "num_out": 10}
    assert ref.metrics == score_metrics(scored)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    p_reason, p_verdict = plain_scores(model, make_tokenizer("llama3"), judge_prompts()[3], reasons[-1])
    # In float64, what transformers computes in float32 whatever the dtype remains: norms and rotary angles.
    close = {"rel": 1e-6} if dtype == "float64" else {"rel": 1e-4}
    assert (scored[-1].p_reason, scored[-1].p_verdict) == pytest.approx((p_reason, p_verdict), **close)


def test_killed_stage_goes_on_after_its_last_part_and_ends_with_the_same_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ScoreConfig(max_batch_tokens=300)
    refs = publish_all(store, tmp_path)
    undisturbed = score_reasons(Store(f"{store.uri}/undisturbed"), config, *refs)
    monkeypatch.setattr(reasongenrm.reasons.score, "PART_SECONDS", 0.0)
    batches: list[list[Row]] = []
    stop_at = 2

    def score_until_killed(model: Any, rows: list[Row]) -> list[ScoredReason]:
        if len(batches) == stop_at:
            raise KeyboardInterrupt
        batches.append(rows)
        return score_batch(model, rows)

    monkeypatch.setattr(reasongenrm.reasons.score, "score_batch", score_until_killed)
    with pytest.raises(KeyboardInterrupt):
        score_reasons(store, config, *refs)
    stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        score_reasons(store, config, *refs)
    stop_at = -1
    ref = score_reasons(store, config, *refs)
    keys = [(c.reason.prompt_id, c.reason.sample) for rows in batches for row in rows for c in row.candidates]
    assert len(keys) == len(set(keys)) == 10, "no reason is scored twice"
    assert len(batches) > 3
    assert (ref.digest, ref.metrics) == (undisturbed.digest, undisturbed.metrics)
    assert not [name for name in store.list("score_reasons/") if "/parts/" in name]


def test_finished_stage_is_found_again_without_torch(store: Store, tmp_path: Path) -> None:
    refs = publish_all(store, tmp_path)
    ref = score_reasons(store, ScoreConfig(), *refs)
    code = f"""
import sys
from reasongenrm.config import ScoreConfig
from reasongenrm.reasons.score import score_reasons
from reasongenrm.store.artifacts import Store, open_artifact
refs = [open_artifact(uri).ref() for uri in {[ref.uri for ref in refs]!r}]
assert score_reasons(Store({store.uri!r}), ScoreConfig(), *refs).uri == {ref.uri!r}
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_stage_with_nothing_left_names_the_limit(store: Store, tmp_path: Path) -> None:
    refs = publish_all(store, tmp_path)
    with pytest.raises(
        EmptyStageError, match=r"10 too_long \(first: .*limit 100\).*The limit is 100 tokens: score\.max_length"
    ):
        score_reasons(store, ScoreConfig(max_length=100), *refs)
    assert not store.list("score_reasons/")


def children() -> list[int]:
    """The processes that this one started and that run."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@pytest.fixture
def _replicas_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process that the stage starts is left at its end; one thread everywhere, for on CPUs sums depend on their
    number."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    before = children()
    yield
    torch.set_num_threads(num_threads)
    assert children() == before


@pytest.mark.usefixtures("store", "_replicas_end")
def test_two_replicas_give_the_bytes_of_one_process_and_share_the_work(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = publish_all(store, tmp_path)
    config = ScoreConfig(max_batch_tokens=300)
    alone = score_reasons(Store(f"{store.uri}/alone"), config, *refs)
    tasks: list[tuple[str, int]] = []
    send = WorkerProcess.send

    def noted(worker: WorkerProcess, message: Any) -> None:
        tasks.append((worker.name, worker.num_under_way))
        send(worker, message)

    monkeypatch.setattr(WorkerProcess, "send", noted)
    both = score_reasons(store, config.model_copy(update={"data_parallel_size": 2}), *refs)
    assert (both.digest, both.counts, both.metrics) == (alone.digest, alone.counts, alone.metrics)
    first = tasks[:6]  # what each is told first, then a batch each, then a second
    assert first == [(f"replica {place}", number) for number in (0, 1, 2) for place in (0, 1)]
    assert max(number for _, number in tasks) == 2
    assert score_reasons(store, config, *refs).uri == both.uri, "the number of replicas is not part of the key"


@pytest.mark.usefixtures("store", "_replicas_end")
def test_stage_goes_on_with_another_number_of_replicas_and_ends_with_the_same_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ScoreConfig(max_batch_tokens=1)  # a batch for each of the ten reasons
    refs = publish_all(store, tmp_path)
    undisturbed = score_reasons(Store(f"{store.uri}/undisturbed"), config, *refs)
    monkeypatch.setattr(reasongenrm.reasons.score, "PART_SECONDS", 0.0)
    put_part = Stage.put_part
    parts: list[bytes] = []

    def put_until_interrupted(stage: Stage, name: str, data: bytes) -> None:
        put_part(stage, name, data)
        parts.append(data)
        if len(parts) in (3, 6):
            raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "put_part", put_until_interrupted)
    for num_replicas in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            score_reasons(store, config.model_copy(update={"data_parallel_size": num_replicas}), *refs)
    assert len(parts) == 6
    ref = score_reasons(store, config, *refs)
    reasons = [reason for part in parts for reason in parse_records(part, ScoredReason, "part")]
    assert len(reasons) == len({(reason.prompt_id, reason.sample) for reason in reasons}) == 10, "each is scored once"
    assert (ref.digest, ref.metrics) == (undisturbed.digest, undisturbed.metrics)


@pytest.mark.usefixtures("store", "_replicas_end")
def test_replica_that_is_killed_is_an_error_and_what_was_finished_is_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = publish_all(store, tmp_path)
    monkeypatch.setattr(reasongenrm.reasons.score, "PART_SECONDS", 0.0)
    put_part = Stage.put_part

    def put_and_kill(stage: Stage, name: str, data: bytes) -> None:
        put_part(stage, name, data)
        for pid in children():
            if "reasongenrm.reasons.score_replicas" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(Stage, "put_part", put_and_kill)
    config = ScoreConfig(max_batch_tokens=1, data_parallel_size=2)  # ten batches, of which four are under way at most
    with pytest.raises(
        EngineError,
        match=r"replica [01]: score_reasons' process was ended by SIGKILL, with [12] batches under way.*then start "
        r"again",
    ):
        score_reasons(store, config, *refs)
    assert [name for name in store.list("score_reasons/") if "/parts/" in name]


@pytest.mark.slow
@pytest.mark.usefixtures("store", "_replicas_end")
def test_error_of_a_replica_keeps_its_type_and_says_which(store: Store, tmp_path: Path) -> None:
    _, *others = publish_all(store, tmp_path)
    damaged = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    damaged.get_input_embeddings().weight.data[:] = math.nan
    damaged.save_pretrained(tmp_path / "model")
    model = publish(store, "damaged", tmp_path / "model")
    with pytest.raises(InputError, match=r"^replica [01]: score_reasons: .* log-probability that is no number"):
        score_reasons(store, ScoreConfig(data_parallel_size=2, max_batch_tokens=300), model, *others)


@pytest.mark.usefixtures("store", "_replicas_end")
def test_replica_without_the_gpu_that_was_set_aside_for_it_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    refs = publish_all(store, tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-2")
    with pytest.raises(EngineError, match=r"replica 0 \(GPU GPU-1\): .* finds no GPU with CUDA_VISIBLE_DEVICES GPU-1;"):
        score_reasons(store, ScoreConfig(), *refs)
    with pytest.raises(ConfigError, match="score: data_parallel_size 3 needs 3 GPUs, found 2"):
        score_reasons(store, ScoreConfig(data_parallel_size=3), *refs)


@pytest.mark.parametrize(("asked", "expected"), [(None, "3"), ("5", "5")])
def test_replicas_share_the_cpus_unless_the_number_of_threads_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None, expected: str
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    before = children()
    with closing(ScorerReplicas(tmp_path, "auto", [[], []])):
        found = []
        for pid in children():
            if pid not in before:
                while not (environ := Path(f"/proc/{pid}/environ").read_text()):
                    time.sleep(0.005)  # the launcher is about to become the worker
                found.append(environ.split("\0"))
    assert len(found) == 2
    assert all(f"OMP_NUM_THREADS={expected}" in environ for environ in found)
    assert children() == before
