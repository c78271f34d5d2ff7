"""The seam of generation: what an engine is asked, what it answers.

Three engines stand behind it (endpoint, vLLM, transformers). All take the same requests and yield the same records, in
fixed batches, so that a run that was killed goes on after its last whole batch with the same random numbers.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from reasongenrm.records import FinishReason, OpeningRole


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to be answered `num_samples` times."""

    request_id: str  # unique within a call; with the seed and the sample's number it fixes the random numbers
    # Chat messages, each {"role", "content"}; the last is a user turn (or a reason turn, for the second step of
    # two-step generation).
    messages: tuple[dict[str, str], ...]
    # The turn that the generation prompt opens, handed to the chat template as `opening_role`; None leaves it to the
    # template (a base model's own template knows nothing of reasons).
    opening_role: OpeningRole | None = None
    # "sequence" runs to the end of the sequence (reason, then verdict, in one generation); "turn" stops at the end of
    # the first turn (a reason alone).
    stop_at: Literal["sequence", "turn"] = "sequence"
    # Text that the opened turn begins with; it is part of the prompt. Of engines that hold letters (`Engine`).
    answer_start: str = ""


@dataclass(frozen=True)
class Sampling:
    """How to sample: temperature 0 is greedy. `max_tokens` counts everything generated, markup included.

    `verdict_logprobs` asks for the probabilities of the two verdicts too, of engines that do not give them anyway.
    `letters_alone` lets every token be the letter A or B and nothing else, of engines that hold letters (`Engine`).
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    num_samples: int = 1
    seed: int = 0
    verdict_logprobs: bool = False
    letters_alone: bool = False


@dataclass(frozen=True)
class Generation:
    """One sampled answer, split into its turns."""

    request_id: str
    sample: int
    reason: str | None  # text of the reason turn, None if the generation had none (plain chat, GenRM)
    answer: str  # text of the assistant turn, "" if the generation ended before it
    num_prompt_tokens: int
    num_output_tokens: int
    finish_reason: FinishReason  # "length" if max_tokens, the context or the server cut it off
    seconds: float  # wall time of the request, or of its batch divided by the batch's samples
    # P([[A]]) at the verdict, in [0, 1] (`verdicts.probability_of_a`); None if it is not known.
    p_a: float | None = None


class Engine(Protocol):
    """An engine generates, batch by batch.

    Attributes:
        model_name: what the records call the model.
        holds_letters: whether it takes `answer_start` and `letters_alone`: it has the model's tokens in its hands.
    """

    model_name: str
    holds_letters: bool

    def generate(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, skip: Collection[str] = ()
    ) -> Iterator[list[Generation]]:
        """Yield the generations of one batch after another; all samples of a request come in one batch.

        Batches are a function of `requests` alone. A batch whose request ids are all in `skip` is left out; any
        other batch is generated whole, so that what is generated never depends on where an earlier run was killed.

        Raises:
            EngineError: the engine failed for good (retries included).
        """
        ...

    def close(self) -> None:
        """Free the model or the connections."""
        ...


def sample_seed(seed: int, request_id: str, sample: int) -> int:
    """Seed of one sample's own random numbers, in [0, 2**31): the widest range that every known server takes.

    It is a function of these three alone, so that a sample never depends on what was generated with it or before it.
    """
    digest = hashlib.sha256(json.dumps([seed, request_id, sample]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def plan_batches(
    requests: Sequence[GenerationRequest], num_samples: int, batch_size: int, skip: Collection[str]
) -> list[list[GenerationRequest]]:
    """Cut requests, in the order given, into batches of at most `batch_size` samples; leave out those all in `skip`.

    A request is never cut in two: with more samples than `batch_size` it is a batch of its own.
    """
    assert len({request.request_id for request in requests}) == len(requests), "request ids must be unique"
    size = max(1, batch_size // num_samples)
    batches = [list(requests[start : start + size]) for start in range(0, len(requests), size)]
    done = set(skip)
    return [batch for batch in batches if not all(request.request_id in done for request in batch)]
