"""One vLLM on one group of GPUs, fed while it works.

In: tokens of prompts, a seed for every sample. Out: tokens of samples. vLLM (0.22 and later) is imported only here.

Its `LLM.generate` returns when the last of the prompts handed over is done, with a GPU that gets emptier towards that
end. The engine under it takes requests at any step (`add_request`, `step`), so nothing here waits for a last one. That
engine is asked and not `AsyncLLM`, which does the same with a task and a queue of asyncio's for every sample; both keep
the GPU's work in a process of its own, which goes on while we tokenise, split texts or store them.
"""

from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reasongenrm.config import EngineConfig
from reasongenrm.errors import EngineError

if TYPE_CHECKING:
    import vllm

MAX_NUM_SEQS = 512  # decoded together: the largest batch that vLLM has CUDA graphs for
CAPACITY = 2 * MAX_NUM_SEQS  # samples under way: as many wait as are decoded, so that a place is filled at once


@dataclass(frozen=True)
class PromptTask:
    """One prompt to be answered once a seed."""

    prompt_ids: list[int]  # token ids, shape (T_prompt,), T_prompt < max_model_len
    stop_ids: list[int]  # tokens that end a generation; nothing else does but `max_tokens`
    seeds: list[int]  # of the samples, shape (num_samples,)
    max_tokens: int  # to be generated, at least 1


@dataclass(frozen=True)
class PromptBatch:
    """Prompts whose samples are wanted together."""

    prompts: list[PromptTask]  # none is fine
    temperature: float  # 0 is greedy
    top_p: float  # in (0, 1]
    # Tokens whose log-probabilities are wanted wherever one of them was written.
    letter_ids: tuple[int, ...] = ()
    allowed_ids: tuple[int, ...] = ()  # all that may be written; (): any token

    @property
    def num_samples(self) -> int:
        """Of all prompts."""
        return sum(len(prompt.seeds) for prompt in self.prompts)


@dataclass(frozen=True)
class Sample:
    """What was written: tokens, a final stop token included, and `letters` as `Turns.generation` takes them."""

    tokens: "array[int]"  # 4 bytes each: thousands of samples wait for an earlier one
    letters: dict[int, list[float]]


@dataclass(frozen=True)
class ReplicaSettings:
    """How to start a replica."""

    path: Path  # folder of the checkpoint
    config: EngineConfig  # dtype, tensor_parallel_size and gpu_memory_utilization are used
    max_model_len: int  # context in tokens
    options: Mapping[str, Any] = field(default_factory=dict)  # further arguments of `vllm.LLM`


class Replica:
    """vLLM in this process, its GPUs' work in a process that vLLM starts.

    Raises:
        EngineError: vLLM cannot start.
    """

    def __init__(self, settings: ReplicaSettings) -> None:
        import vllm

        try:
            self.llm = vllm.LLM(
                model=str(settings.path),
                dtype=settings.config.dtype,
                max_model_len=settings.max_model_len,
                tensor_parallel_size=settings.config.tensor_parallel_size,
                gpu_memory_utilization=settings.config.gpu_memory_utilization,
                max_num_seqs=MAX_NUM_SEQS,
                enable_prefix_caching=True,  # a prompt is computed once for all its samples
                generation_config="vllm",  # no sampling defaults from the checkpoint: a task says it all
                **settings.options,
            )
        except (RuntimeError, ValueError) as error:
            raise EngineError(
                f"vLLM cannot start: {' '.join(str(error).split())} Expected a model and a context that fit on the "
                "GPUs. See vLLM's log above; engine.max_model_len and engine.tensor_parallel_size change what it "
                "needs."
            ) from error
        # Tasks under way, and what is written of each: samples by place, in the order of its prompts, then seeds.
        self._open: dict[int, tuple[PromptBatch, dict[int, Sample]]] = {}

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._open

    def submit(self, number: int, task: PromptBatch) -> None:
        """Hand a task to vLLM. Its samples are adjacent in vLLM's queue, which is first come, first served.

        Args:
            number: names the task; used once in a replica's life.

        Raises:
            EngineError: vLLM refused the sampling parameters, or its engine died.
        """
        from vllm.inputs import tokens_input

        self._open[number] = task, {}
        asked = [(prompt, seed) for prompt in task.prompts for seed in prompt.seeds]
        with _failures_of_vllm():
            for place, (prompt, seed) in enumerate(asked):
                self.llm.llm_engine.add_request(
                    f"{number}:{place}", tokens_input(prompt.prompt_ids), _sampling_params(task, prompt, seed)
                )

    def step(self) -> tuple[int, list[tuple[int, list[Sample]]]]:
        """Let vLLM go on by one step, a token for each of up to 512 samples. Not to be called while idle: it would
        wait.

        Returns:
            How many samples were written to their end; and the tasks that became whole: number, and samples in the
            order of prompts, then seeds.

        Raises:
            EngineError: vLLM's engine died.
        """
        with _failures_of_vllm():
            outputs = self.llm.llm_engine.step()
        whole = []
        for output in outputs:
            number, place = (int(part) for part in output.request_id.split(":"))
            task, samples = self._open[number]
            samples[place] = _sample(output.outputs[0], task.letter_ids)
            if len(samples) == task.num_samples:
                del self._open[number]
                whole.append((number, [samples[place] for place in range(task.num_samples)]))
        return len(outputs), whole


@contextmanager
def _failures_of_vllm() -> Iterator[None]:
    """What vLLM raises when it refuses parameters or when its engine has died, as our error."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except (EngineDeadError, ValueError) as error:
        raise EngineError(
            f"vLLM failed: {' '.join(str(error).split())} See its log above, then start again: finished work is kept."
        ) from error


def _sampling_params(task: PromptBatch, prompt: PromptTask, seed: int) -> "vllm.SamplingParams":
    """One request a sample: `n` samples of one request would be seeded seed, seed + 1, ... by vLLM itself."""
    import vllm
    from vllm.sampling_params import RequestOutputKind

    return vllm.SamplingParams(
        max_tokens=prompt.max_tokens,
        temperature=task.temperature,
        top_p=task.top_p,
        seed=seed,
        stop_token_ids=prompt.stop_ids,
        ignore_eos=True,  # the stop tokens above are all that end a generation
        detokenize=False,  # turns are split by token, by the engine
        logprob_token_ids=list(task.letter_ids) or None,
        allowed_token_ids=list(task.allowed_ids) or None,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _sample(output: Any, letter_ids: tuple[int, ...]) -> Sample:
    letters = {}
    for place in [place for place, token in enumerate(output.token_ids) if token in letter_ids]:
        logprobs = output.logprobs[place]
        letters[place] = [float(logprobs[letter].logprob) for letter in letter_ids]
    return Sample(array("i", output.token_ids), letters)
