"""A stand-in for vLLM (0.22 and later), which cannot be installed beside the training libraries.

It has the names and arguments that the project uses, and no others: an unknown argument is a TypeError, as there. The
folder $VLLM_STAND_IN says what it writes (script.json: tokens, the same for every prompt, until a stop token or
max_tokens) and gets a log of what was asked (log-PID.jsonl). A file `die` in it makes the engine die in the middle of
its third step.
"""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm.sampling_params import RequestOutputKind

__version__ = "stand-in"
FOLDER = Path(os.environ["VLLM_STAND_IN"])


def log(**record: Any) -> None:
    with (FOLDER / f"log-{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    seed: int | None
    ignore_eos: bool
    detokenize: bool
    n: int = 1
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    logprob_token_ids: list[int] | None = None
    allowed_token_ids: list[int] | None = None
    flat_logprobs: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE


@dataclass
class Logprob:
    logprob: float


@dataclass
class CompletionOutput:
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None


@dataclass
class RequestOutput:
    request_id: str
    outputs: list[CompletionOutput]


class LLMEngine:
    def __init__(self, max_num_seqs: int) -> None:
        self.max_num_seqs = max_num_seqs
        self.script = json.loads((FOLDER / "script.json").read_text())
        self.under_way: dict[str, tuple[SamplingParams, list[int]]] = {}
        self.num_steps = 0

    def add_request(self, request_id: str, prompt: dict[str, Any], params: SamplingParams) -> None:
        if params.top_p == 0:
            raise ValueError("top_p must be in (0, 1], got 0.")
        assert params.output_kind is RequestOutputKind.FINAL_ONLY
        assert request_id not in self.under_way
        self.under_way[request_id] = (params, [])
        fields = {name: value for name, value in asdict(params).items() if name != "output_kind"}
        log(request=request_id, prompt=prompt["prompt_token_ids"], **fields)

    def step(self) -> list[RequestOutput]:
        self.num_steps += 1
        if self.num_steps == 3 and (FOLDER / "die").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        done = []
        for request_id, (params, written) in list(self.under_way.items())[: self.max_num_seqs]:
            written.append((params.allowed_token_ids or self.script[len(written) :])[0])
            if written[-1] in params.stop_token_ids or len(written) == params.max_tokens:
                del self.under_way[request_id]
                asked = params.logprob_token_ids
                logprobs = asked and [{id: Logprob(-0.25 - place) for place, id in enumerate(asked)} for _ in written]
                done.append(RequestOutput(request_id, [CompletionOutput(written, logprobs)]))
        return done


class LLM:
    def __init__(
        self,
        model: str,
        dtype: str,
        max_model_len: int,
        tensor_parallel_size: int,
        gpu_memory_utilization: float,
        max_num_seqs: int,
        enable_prefix_caching: bool,
        generation_config: str,
        load_format: str = "auto",
        enforce_eager: bool = False,
        max_num_batched_tokens: int | None = None,
    ) -> None:
        if tensor_parallel_size > 8:
            raise ValueError("World size (9) is larger than the number of available GPUs (8)")
        self.llm_engine = LLMEngine(max_num_seqs)
        core = multiprocessing.get_context("fork").Process(
            target=time.sleep, args=(600,)
        )  # outlives us, as vLLM's does
        core.start()
        log(
            llm=[model, dtype, max_model_len, tensor_parallel_size, gpu_memory_utilization],
            max_num_seqs=max_num_seqs,
            enable_prefix_caching=enable_prefix_caching,
            generation_config=generation_config,
            options=[load_format, enforce_eager, max_num_batched_tokens],
            gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
            processes=[os.getpid(), core.pid],
        )

    def reset_prefix_cache(self) -> None:
        log(reset=True)

    def generate(
        self, prompts: list[dict[str, list[int]]], params: SamplingParams, use_tqdm: bool
    ) -> list[RequestOutput]:
        assert not use_tqdm
        written = self.llm_engine.script[: params.max_tokens]
        return [
            RequestOutput(str(place), [CompletionOutput(written, None)] * params.n) for place in range(len(prompts))
        ]
