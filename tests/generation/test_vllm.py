"""The vLLM engine against a stand-in for the module `vllm`, which cannot be installed beside the training libraries.

What is checked here is our side of vLLM's interface: what is asked of `LLM` and `SamplingParams`, and how outputs become
records. Real vLLM is exercised by the test marked `gpu`, in an environment with the extra `vllm`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from reasongenrm.chat import BY_NAME, render
from reasongenrm.config import EngineConfig
from reasongenrm.errors import ConfigError, EngineError, InputError
from reasongenrm.generation import open_engine
from reasongenrm.generation.seam import GenerationRequest, Sampling, sample_seed
from reasongenrm.generation.vllm import WINDOW_SAMPLES, VLLMEngine
from tests.tiny import tiny_checkpoint

CHATML = BY_NAME["chatml"]
SCRIPT = f"A is right.{CHATML.turn_end}{CHATML.bridge}[[A]]{CHATML.turn_end}{CHATML.sequence_end}"


@dataclass
class SamplingParams:
    """The fields of vllm.SamplingParams (0.22) that we set; an unknown one is a TypeError, as there."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop_token_ids: list[int]
    ignore_eos: bool
    detokenize: bool
    logprobs: int | None


@dataclass
class Logprob:
    logprob: float


@dataclass
class CompletionOutput:
    token_ids: tuple[int, ...]
    logprobs: list[dict[int, Logprob]] | None


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput]


class EngineDeadError(Exception):
    """As vllm.v1.engine.exceptions has it."""


@dataclass
class LLM:
    """Writes SCRIPT for every prompt until a stop token or max_tokens."""

    model: str
    dtype: str
    max_model_len: int
    tensor_parallel_size: int
    gpu_memory_utilization: float
    generation_config: str
    calls: list[tuple[list[dict[str, list[int]]], list[SamplingParams]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        from transformers import AutoTokenizer

        if self.tensor_parallel_size > 8:
            raise ValueError("World size (9) is larger than the number of available GPUs (8)")
        self.script = AutoTokenizer.from_pretrained(self.model).encode(SCRIPT, add_special_tokens=False)

    def generate(
        self, prompts: list[dict[str, list[int]]], params: list[SamplingParams], use_tqdm: bool
    ) -> list[RequestOutput]:
        assert use_tqdm is False
        self.calls.append((prompts, params))
        outputs = []
        for one in params:
            if one.top_p == 0:
                raise ValueError("top_p must be in (0, 1], got 0.")
            written: list[int] = []
            for token in self.script[: one.max_tokens]:
                written.append(token)
                if token in one.stop_token_ids:
                    break
            # Everywhere the token itself with -0.25; beside a letter the one after it in the vocabulary, with -1.5.
            tops = [{token: Logprob(-0.25), token + 1: Logprob(-1.5)} for token in written]
            outputs.append(RequestOutput([CompletionOutput(tuple(written), tops if one.logprobs else None)]))
        return outputs


@pytest.fixture
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module, exceptions = ModuleType("vllm"), ModuleType("vllm.v1.engine.exceptions")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    exceptions.EngineDeadError = EngineDeadError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    for name in ("vllm.v1", "vllm.v1.engine"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.exceptions", exceptions)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "judge", "chatml", opening_role="reason")


def ask(name: str, text: str = "Which?", **changes: Any) -> GenerationRequest:
    return GenerationRequest(name, ({"role": "user", "content": text},), **{"opening_role": "reason", **changes})


def opened(checkpoint: Path, **config: Any) -> tuple[VLLMEngine, Any]:
    engine = open_engine(checkpoint, EngineConfig(kind="vllm", **config))
    assert isinstance(engine, VLLMEngine)
    return engine, engine._llm


@pytest.mark.usefixtures("_vllm")
def test_reason_and_verdict_come_from_one_generation(checkpoint: Path) -> None:
    engine, llm = opened(checkpoint, max_model_len=512, gpu_memory_utilization=0.5, dtype="bfloat16")
    ((one,),) = engine.generate([ask("q")], Sampling(max_tokens=99))
    assert (one.reason, one.answer, one.finish_reason) == ("A is right.", "[[A]]", "stop")
    assert one.num_output_tokens == len(llm.script)
    assert engine.model_name == "judge"
    assert (llm.model, llm.dtype, llm.max_model_len, llm.tensor_parallel_size) == (str(checkpoint), "bfloat16", 512, 1)
    assert (llm.gpu_memory_utilization, llm.generation_config) == (0.5, "vllm")


@pytest.mark.usefixtures("_vllm")
def test_probabilities_of_the_verdicts_are_read_when_they_are_asked_for(checkpoint: Path) -> None:
    engine, llm = opened(checkpoint)
    assert llm.script  # "A" and "B" are neighbours in a byte-level vocabulary
    ((one,),) = engine.generate([ask("q")], Sampling(max_tokens=99, verdict_logprobs=True))
    assert one.verdict_logprobs == {"[[A]]": -0.25, "[[B]]": -1.5}
    assert llm.calls[-1][1][0].logprobs == 20
    ((one,),) = engine.generate([ask("q")], Sampling(max_tokens=99))
    assert one.verdict_logprobs is None
    assert llm.calls[-1][1][0].logprobs is None


@pytest.mark.usefixtures("_vllm")
def test_each_sample_is_asked_for_alone_with_its_own_seed_and_our_tokens(checkpoint: Path) -> None:
    engine, llm = opened(checkpoint)
    requests = [ask("q0"), ask("q1", "Why?", stop_at="turn")]
    list(engine.generate(requests, Sampling(max_tokens=9, temperature=0.7, top_p=0.9, num_samples=2, seed=3)))
    ((prompts, params),) = llm.calls
    tokenizer = engine.turns.tokenizer
    end, turn_end = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    expected = [render(tokenizer, request.messages, opening_role="reason") for request in requests]
    assert [prompt["prompt_token_ids"] for prompt in prompts] == [expected[0]] * 2 + [expected[1]] * 2
    assert [one.seed for one in params] == [sample_seed(3, name, s) for name in ("q0", "q1") for s in (0, 1)]
    assert [one.stop_token_ids for one in params] == [[end]] * 2 + [sorted([end, turn_end])] * 2
    assert {(one.max_tokens, one.temperature, one.top_p, one.ignore_eos) for one in params} == {(9, 0.7, 0.9, True)}


@pytest.mark.usefixtures("_vllm")
def test_batches_go_in_together_and_come_back_apart(checkpoint: Path) -> None:
    engine, llm = opened(checkpoint, batch_size=4)
    requests = [ask(f"q{i}") for i in range(5)]
    batches = list(engine.generate(requests, Sampling(max_tokens=3, num_samples=2), skip={"q0", "q1", "q2"}))
    assert [[(g.request_id, g.sample) for g in batch] for batch in batches] == [
        [("q2", 0), ("q2", 1), ("q3", 0), ("q3", 1)],
        [("q4", 0), ("q4", 1)],
    ]
    assert len(llm.calls) == 1
    assert {g.finish_reason for batch in batches for g in batch} == {"length"}


@pytest.mark.usefixtures("_vllm")
def test_no_more_samples_than_a_window_go_in_together(checkpoint: Path) -> None:
    engine, llm = opened(checkpoint, batch_size=16)
    list(engine.generate([ask(f"q{i}") for i in range(70)], Sampling(max_tokens=1, num_samples=16)))
    assert [len(params) for _, params in llm.calls] == [WINDOW_SAMPLES, 70 * 16 - WINDOW_SAMPLES]


@pytest.mark.usefixtures("_vllm")
def test_prompt_beyond_the_context_is_cut_off_not_the_end_of_the_run(checkpoint: Path) -> None:
    engine, llm = opened(checkpoint, max_model_len=20)
    ((short, long),) = engine.generate([ask("q0", "Q"), ask("q1", "much longer " * 20)], Sampling(max_tokens=99))
    assert (long.answer, long.num_output_tokens, long.finish_reason) == ("", 0, "length")
    assert [one.max_tokens for one in llm.calls[0][1]] == [20 - short.num_prompt_tokens]


@pytest.mark.usefixtures("_vllm")
def test_refusals_of_vllm_become_engine_errors(checkpoint: Path) -> None:
    engine, _ = opened(checkpoint)
    with pytest.raises(EngineError, match=r"judge: vLLM failed: top_p must be in \(0, 1\]"):
        list(engine.generate([ask("q")], Sampling(max_tokens=9, top_p=0.0)))
    with pytest.raises(EngineError, match="vLLM cannot start: World size"):
        opened(checkpoint, tensor_parallel_size=9)
    with pytest.raises(InputError, match=r"nothing: found no config\.json"):
        opened(checkpoint / "nothing")


def test_missing_vllm_is_said_with_the_way_out(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"engine\.kind is 'vllm', but .* set engine\.kind: transformers"):
        opened(checkpoint)


@pytest.mark.gpu
def test_real_vllm_writes_the_tokens_that_transformers_writes(checkpoint: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM has an environment of its own (extra 'vllm')")
    requests = [ask("q0"), ask("q1", "Why is B better than A?"), ask("q2", "Q", stop_at="turn")]
    sampling = Sampling(max_tokens=16)
    records = []
    for kind in ("vllm", "transformers"):
        config = EngineConfig(kind=kind, dtype="float32", max_model_len=256, gpu_memory_utilization=0.2)
        engine = open_engine(checkpoint, config)
        got = {g.request_id: g for batch in engine.generate(requests, sampling) for g in batch}
        records.append({name: (g.reason, g.answer, g.num_output_tokens, g.finish_reason) for name, g in got.items()})
        if kind == "vllm":
            drawn = [Sampling(max_tokens=16, temperature=1.0, num_samples=2, seed=seed) for seed in (1, 1, 2)]
            reasons = [[g.reason for batch in engine.generate(requests, one) for g in batch] for one in drawn]
            assert reasons[0] == reasons[1] != reasons[2]
        engine.close()
    assert records[0] == records[1]
