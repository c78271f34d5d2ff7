"""The vLLM engine: a checkpoint on this machine's GPUs, for distillation and evaluation in GPU pods.

vLLM (0.22) schedules by itself and wants hundreds of samples at once, so several batches are handed over together and
come back as the batches that they are. Prompts are rendered and tokenised here, as for the transformers engine, and a
prompt that leaves no room in the context is likewise answered by empty generations with finish_reason "length".

The random numbers of a sample are its own, on any machine and after any resume. vLLM's arithmetic depends on what runs
beside it, though: records are equal to the last token only with VLLM_BATCH_INVARIANT=1.
"""

import gc
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from reasongenrm.config import EngineConfig
from reasongenrm.errors import ConfigError, EngineError, InputError
from reasongenrm.generation.seam import Generation, GenerationRequest, Sampling, plan_batches, sample_seed
from reasongenrm.generation.turns import Prompt, Turns, load_end_ids
from reasongenrm.generation.verdicts import TOP_LOGPROBS

WINDOW_SAMPLES = 1024  # handed over together: what an H100 keeps under way; also the most work that a kill can lose


class VLLMEngine:
    """Generates with `vllm.LLM`.

    Args:
        path: folder of the checkpoint.
        config: batch_size, dtype, max_model_len, tensor_parallel_size and gpu_memory_utilization are used.
        model_name: what the records call the model.

    Raises:
        ConfigError: vLLM is not installed.
        InputError: the folder holds no checkpoint, or one of no supported chat family.
        EngineError: vLLM cannot start.
    """

    def __init__(self, path: Path, config: EngineConfig, *, model_name: str) -> None:
        if not (path / "config.json").is_file():
            raise InputError(
                f"{path}: found no config.json; expected the folder of a checkpoint. Give an existing one."
            )
        try:
            import vllm
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"engine.kind is 'vllm', but vLLM cannot be imported ({error}); expected an environment of its own with "
                "the extra 'vllm'. Use that, or set engine.kind: transformers."
            ) from error
        from transformers import AutoConfig, AutoTokenizer

        self.model_name = model_name
        self.batch_size = config.batch_size
        try:
            own_len = int(AutoConfig.from_pretrained(path).max_position_embeddings)
            tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: cannot be loaded: {' '.join(str(error).split())} Expected the config, weights and tokenizer of "
                "a causal language model."
            ) from error
        self.max_model_len = min(config.max_model_len or own_len, own_len)
        self.turns = Turns(tokenizer, load_end_ids(path))
        try:
            self._llm = vllm.LLM(
                model=str(path),
                dtype=config.dtype,
                max_model_len=self.max_model_len,
                tensor_parallel_size=config.tensor_parallel_size,
                gpu_memory_utilization=config.gpu_memory_utilization,
                generation_config="vllm",  # no sampling defaults from the checkpoint: `Sampling` says it all
            )
        except (RuntimeError, ValueError) as error:
            raise EngineError(
                f"{path}: vLLM cannot start: {' '.join(str(error).split())} Expected a model and a context that fit on the "
                "GPUs. See vLLM's log above; engine.max_model_len and engine.tensor_parallel_size change what it needs."
            ) from error

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, skip: Collection[str] = ()
    ) -> Iterator[list[Generation]]:
        """See `Engine.generate`. Batches come in the order of the requests.

        Raises:
            EngineError: vLLM refused the sampling parameters, or its engine died.
        """
        batches = plan_batches(requests, sampling.num_samples, self.batch_size, skip)
        window = max(1, WINDOW_SAMPLES // max(self.batch_size, sampling.num_samples))
        for start in range(0, len(batches), window):
            yield from self._generate_window(batches[start : start + window], sampling)

    def _generate_window(
        self, batches: list[list[GenerationRequest]], sampling: Sampling
    ) -> Iterator[list[Generation]]:
        import vllm
        from vllm.v1.engine.exceptions import EngineDeadError

        started = time.perf_counter()
        prompts = {request.request_id: self.turns.encode(request) for batch in batches for request in batch}
        rows = [(name, sample) for name in prompts for sample in range(sampling.num_samples)]
        asked = [(name, sample) for name, sample in rows if len(prompts[name].ids) < self.max_model_len]
        params = [
            vllm.SamplingParams(
                max_tokens=min(sampling.max_tokens, self.max_model_len - len(prompts[name].ids)),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sample_seed(sampling.seed, name, sample),
                stop_token_ids=sorted(prompts[name].stop_ids),
                ignore_eos=True,  # the stop tokens above are all that end a generation
                detokenize=False,  # turns are split by token, here
                logprobs=TOP_LOGPROBS if sampling.verdict_logprobs else None,
            )
            for name, sample in asked
        ]
        try:
            outputs = self._llm.generate(
                [{"prompt_token_ids": prompts[name].ids} for name, _ in asked], params, use_tqdm=False
            )
        except (EngineDeadError, ValueError) as error:
            raise EngineError(
                f"{self.model_name}: vLLM failed: {' '.join(str(error).split())} Expected {len(asked)} generations. "
                "See vLLM's log above, then start again: finished work is kept."
            ) from error
        tokens = {row: list(output.outputs[0].token_ids) for row, output in zip(asked, outputs, strict=True)}
        letters = {row: self._letters(output.outputs[0]) for row, output in zip(asked, outputs, strict=True)}
        seconds = (time.perf_counter() - started) / len(rows)
        for batch in batches:
            yield [
                self._generation(
                    request.request_id,
                    sample,
                    prompts[request.request_id],
                    tokens.get((request.request_id, sample), []),
                    letters.get((request.request_id, sample), {}),
                    seconds,
                )
                for request in batch
                for sample in range(sampling.num_samples)
            ]

    def _letters(self, output: Any) -> dict[int, tuple[float, float]]:
        """(log P("A"), log P("B")) by place of every single letter token, where both are among the most probable ones."""
        letter_a, letter_b = self.turns.letter_ids
        found: dict[int, tuple[float, float]] = {}
        for place, (token, top) in enumerate(zip(output.token_ids, output.logprobs or [], strict=False)):
            if token in self.turns.letter_ids and letter_a in top and letter_b in top:
                found[place] = (float(top[letter_a].logprob), float(top[letter_b].logprob))
        return found

    def _generation(
        self,
        request_id: str,
        sample: int,
        prompt: Prompt,
        tokens: list[int],
        letters: dict[int, tuple[float, float]],
        seconds: float,
    ) -> Generation:
        reason, answer = self.turns.split(tokens, prompt)
        return Generation(
            request_id=request_id,
            sample=sample,
            reason=reason,
            answer=answer,
            num_prompt_tokens=len(prompt.ids),
            num_output_tokens=len(tokens),
            finish_reason="stop" if tokens and tokens[-1] in prompt.stop_ids else "length",
            seconds=seconds,
            verdict_logprobs=self.turns.verdict_logprobs(tokens, answer, letters),
        )

    def close(self) -> None:
        """Stop vLLM's processes and free the GPUs; the engine cannot be used afterwards."""
        del self._llm
        gc.collect()  # vLLM ends its engine process when the LLM object goes
