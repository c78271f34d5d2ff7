"""The vLLM engine: a checkpoint on this machine's GPUs.

Requests are rendered and tokenised here, as for the transformers engine, go to replicas of vLLM batch by batch
(vllm_process.py, vllm_replica.py), and come back as turns. A prompt that leaves no room in the context is likewise
answered by empty generations with finish_reason "length".

The random numbers of a sample are its own, on any machine, on any number of GPUs and after any resume. vLLM's
arithmetic depends on what runs with it, though: records are equal to the last token only with VLLM_BATCH_INVARIANT=1.
"""

import time
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reasongenrm.config import EngineConfig
from reasongenrm.errors import ConfigError, EngineError
from reasongenrm.generation.seam import Generation, GenerationRequest, Sampling, plan_batches, sample_seed
from reasongenrm.generation.transformers import load_config_and_tokenizer
from reasongenrm.generation.turns import Prompt, Turns
from reasongenrm.generation.vllm_process import ReplicaPool
from reasongenrm.generation.vllm_replica import PromptBatch, PromptTask, ReplicaSettings, Sample
from reasongenrm.processes.workers import share_gpus, visible_gpus


class VLLMEngine:
    """Generates with replicas of vLLM, each on GPUs of its own.

    Args:
        path: folder of the checkpoint.
        config: batch_size, dtype, max_model_len, tensor_parallel_size, data_parallel_size and gpu_memory_utilization
            are used.
        model_name: what the records call the model.
        options: further arguments of `vllm.LLM`; the benchmark asks for random weights with them.

    Raises:
        ConfigError: vLLM is not installed, or more GPUs are asked for than there are.
        InputError: the folder holds no checkpoint, or one of no supported chat family.
        EngineError: vLLM cannot start.
    """

    holds_letters = True

    def __init__(self, path: Path, config: EngineConfig, *, model_name: str, options: Mapping[str, Any] = {}) -> None:
        if find_spec("vllm") is None:
            raise ConfigError(
                "engine.kind is 'vllm', but vLLM is not installed; expected an environment of its own with the extra "
                "'vllm'. Use that, or set engine.kind: transformers."
            )
        self.model_name = model_name
        self.batch_size = config.batch_size
        from transformers import GenerationConfig

        checkpoint, tokenizer = load_config_and_tokenizer(path)
        own_len = int(checkpoint.max_position_embeddings)
        self.max_model_len = min(config.max_model_len or own_len, own_len)
        has_defaults = (path / "generation_config.json").is_file()
        self.turns = Turns(tokenizer, GenerationConfig.from_pretrained(path) if has_defaults else GenerationConfig())
        settings = ReplicaSettings(path.resolve(), config, self.max_model_len, options)
        gpus = share_gpus(visible_gpus(), config.data_parallel_size, config.tensor_parallel_size, section="engine")
        try:
            self.pool = ReplicaPool.start(settings, gpus)
        except EngineError as error:
            raise EngineError(f"{path}: {error}") from error

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, skip: Collection[str] = ()
    ) -> Iterator[list[Generation]]:
        """See `Engine.generate`. Batches come in the order of the requests.

        Raises:
            EngineError: vLLM refused the sampling parameters, or a replica died.
        """
        batches = plan_batches(requests, sampling.num_samples, self.batch_size, skip)
        prompts: dict[str, Prompt] = {}

        def tasks() -> Iterator[PromptBatch]:
            for batch in batches:
                asked = {request.request_id: self.turns.encode(request) for request in batch}
                prompts.update(asked)
                yield self._task(asked, sampling)

        started = time.perf_counter()
        results = self.pool.run(tasks())
        for batch in batches:
            try:
                samples = iter(next(results))
            except EngineError as error:
                raise EngineError(f"{self.model_name}: {error}") from error
            now = time.perf_counter()
            seconds, started = (now - started) / (len(batch) * sampling.num_samples), now
            generations = []
            for request in batch:
                prompt = prompts.pop(request.request_id)
                for number in range(sampling.num_samples):
                    written = next(samples) if self._has_room(prompt) else Sample(array("i"), {})
                    tokens = written.tokens.tolist()
                    generations.append(
                        self.turns.generation(request.request_id, number, prompt, tokens, written.letters, seconds)
                    )
            yield generations

    def _has_room(self, prompt: Prompt) -> bool:
        return len(prompt.ids) < self.max_model_len

    def _task(self, asked: Mapping[str, Prompt], sampling: Sampling) -> PromptBatch:
        """A batch as a replica takes it; without the prompts that leave no room."""
        return PromptBatch(
            [
                PromptTask(
                    prompt_ids=prompt.ids,
                    stop_ids=sorted(prompt.stop_ids),
                    seeds=[sample_seed(sampling.seed, name, sample) for sample in range(sampling.num_samples)],
                    max_tokens=min(sampling.max_tokens, self.max_model_len - len(prompt.ids)),
                )
                for name, prompt in asked.items()
                if self._has_room(prompt)
            ],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            letter_ids=self.turns.letter_ids if sampling.verdict_logprobs else (),
            allowed_ids=self.turns.letters_alone if sampling.letters_alone else (),
        )

    def close(self) -> None:
        """End vLLM's processes and free the GPUs; the engine cannot be used afterwards."""
        self.pool.close()
