"""The transformers engine: a checkpoint in this process, on the CPU or one GPU.

Requests are sorted by their prompts' length, longest first, so that batches are padded little and a batch that does not
fit into memory fails at once; then cut into fixed batches. A prompt that leaves no room in the context is not an error
(one long row must not end a run of hours): it is answered by empty generations with finish_reason "length".
"""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from reasongenrm.config import Dtype, EngineConfig
from reasongenrm.errors import EngineError, InputError
from reasongenrm.generation.seam import Generation, GenerationRequest, Sampling, plan_batches, sample_seed
from reasongenrm.generation.turns import Prompt, Turns
from reasongenrm.processes.cpu_math import warm_up_cpu_math

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_checkpoint(path: Path, dtype: Dtype) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a checkpoint's model (see `load_model`) and its tokenizer.

    Raises:
        InputError: the folder is missing, has no weights or no tokenizer, or holds a damaged file.
    """
    _, tokenizer = load_config_and_tokenizer(path)
    return load_model(path, dtype), tokenizer


def load_config_and_tokenizer(path: Path) -> "tuple[PreTrainedConfig, PreTrainedTokenizerBase]":
    """Load all of a checkpoint but its weights.

    Raises:
        InputError: the folder is missing, or has no config or no tokenizer.
    """
    from transformers import AutoConfig, AutoTokenizer

    with _loading(path):
        return AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def load_model(path: Path, dtype: Dtype) -> "PreTrainedModel":
    """Load a checkpoint's model, ready for inference on the GPU if there is one.

    Args:
        dtype: "auto" is the checkpoint's own on a GPU and float32 on a CPU, which is slow in bfloat16.

    Raises:
        InputError: the folder is missing, has no weights, or holds a damaged file.
    """
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto" and device == "cpu":
        dtype = "float32"
    warm_up_cpu_math()
    with _loading(path):
        # Straight to the device: eight processes of a pod would need eight times the weights in its memory else.
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map=device).eval()


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    """What is wrong with a checkpoint, as our error."""
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: found no config.json; expected the folder of a checkpoint. Give an existing one.")
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise InputError(
            f"{path}: a .safetensors file is damaged or cut short ({error}); expected whole weights. "
            "Copy the checkpoint again."
        ) from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: cannot be loaded: {reason} Expected the config, weights and tokenizer of a causal language model."
        ) from error


@dataclass
class _Row:
    """One sample of one request while it is written; `letters` as `Turns.generation` takes them."""

    request_id: str
    prompt: Prompt
    sample: int
    tokens: list[int] = field(default_factory=list)
    letters: dict[int, list[float]] = field(default_factory=dict)


class TransformersEngine:
    """Generates with a model that is in memory.

    Args:
        model: on its device, in its dtype.
        tokenizer: of the model.
        batch_size: prompts x samples that are decoded together.
        max_model_len: context in tokens; None means the model's own.
        model_name: what the records call the model.

    Raises:
        InputError: the tokenizer belongs to no supported chat family.
    """

    holds_letters = True

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        batch_size: int,
        max_model_len: int | None,
        model_name: str,
    ) -> None:
        self.model_name = model_name
        self.batch_size = batch_size
        own_len = int(model.config.max_position_embeddings)
        self.max_model_len = min(max_model_len or own_len, own_len)
        self.model = model
        self.turns = Turns(tokenizer, model.generation_config)

    @classmethod
    def load(cls, path: Path, config: EngineConfig, model_name: str) -> "TransformersEngine":
        """Load the checkpoint in `path` (see `load_checkpoint`)."""
        model, tokenizer = load_checkpoint(path, config.dtype)
        size, context = config.batch_size, config.max_model_len
        return cls(model, tokenizer, batch_size=size, max_model_len=context, model_name=model_name)

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, skip: Collection[str] = ()
    ) -> Iterator[list[Generation]]:
        """See `Engine.generate`. Batches come longest prompts first.

        Raises:
            EngineError: the GPU's memory does not hold a batch.
            InputError: the tokenizer has no chat template.
        """
        prompts = {request.request_id: self.turns.encode(request) for request in requests}
        by_length = sorted(requests, key=lambda request: len(prompts[request.request_id].ids), reverse=True)
        for batch in plan_batches(by_length, sampling.num_samples, self.batch_size, skip):
            yield self._generate_batch(batch, prompts, sampling)

    def _generate_batch(
        self, batch: list[GenerationRequest], prompts: dict[str, Prompt], sampling: Sampling
    ) -> list[Generation]:
        started = time.perf_counter()
        rows = [
            _Row(request.request_id, prompts[request.request_id], sample)
            for request in batch
            for sample in range(sampling.num_samples)
        ]
        # One pass, unless a request alone has more samples than fit into a batch.
        for start in range(0, sampling.num_samples, self.batch_size):
            samples = range(start, start + self.batch_size)
            part = [row for row in rows if row.sample in samples and len(row.prompt.ids) < self.max_model_len]
            if part:
                self._decode(part, sampling)
        seconds = (time.perf_counter() - started) / len(rows)
        return [
            self.turns.generation(row.request_id, row.sample, row.prompt, row.tokens, row.letters, seconds)
            for row in rows
        ]

    def _decode(self, rows: list[_Row], sampling: Sampling) -> None:
        """Write the tokens of `rows`, which hold equally many samples of each prompt, side by side."""
        import torch

        from reasongenrm.generation.decoding import DecodingPrompt, decode

        prompts = [
            DecodingPrompt(
                ids=prompt.ids,
                stop_ids=prompt.stop_ids,
                max_tokens=min(sampling.max_tokens, self.max_model_len - len(prompt.ids)),
                seeds=[
                    sample_seed(sampling.seed, request_id, row.sample) for row in rows if row.request_id == request_id
                ],
            )
            for request_id, prompt in {row.request_id: row.prompt for row in rows}.items()
        ]
        letter_ids, alone = list(self.turns.letter_ids), list(self.turns.letters_alone)

        def letters_alone(_row: int, logits_V: torch.Tensor) -> torch.Tensor:
            held_V = torch.full_like(logits_V, -torch.inf)
            held_V[alone] = logits_V[alone]
            return held_V

        limit = letters_alone if sampling.letters_alone else None
        drawn = sampling.temperature, sampling.top_p
        try:
            for step in decode(self.model, prompts, letter_ids[0], *drawn, limit=limit):
                for place, (index, token) in enumerate(zip(step.rows, step.tokens, strict=True)):
                    row = rows[index]
                    if token in letter_ids:
                        logprobs_V = torch.log_softmax(step.logits_RV[place].double(), dim=-1)
                        row.letters[len(row.tokens)] = logprobs_V[letter_ids].tolist()
                    row.tokens.append(token)
        except torch.OutOfMemoryError as error:
            longest = max(len(prompt.ids) for prompt in prompts)
            raise EngineError(
                f"{self.model_name}: out of GPU memory with {len(rows)} samples, the longest prompt {longest} tokens; "
                "expected a batch that fits. Set a smaller engine.batch_size or max_tokens."
            ) from error

    def close(self) -> None:
        """Free the model's memory; the engine cannot be used afterwards."""
        import torch

        del self.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
