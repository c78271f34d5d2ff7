"""One conversation answered while it is written: the small server's view of generation.

In goes a rendered prompt with its sampling; out come deltas of reason and answer, whose sum is exactly what
`Turns.split` makes of the whole generation (cut before a stop string, if one was given).
"""

import itertools
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from reasongenrm.data.chat import split_generation
from reasongenrm.generation.decoding import DecodingPrompt, decode
from reasongenrm.generation.turns import Prompt, Turns
from reasongenrm.generation.verdicts import LOWEST_LOGPROB
from reasongenrm.serving.choices import Choices, HeldRow

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LiveRequest:
    """What is asked."""

    prompt: Prompt
    max_tokens: int  # fits into the context, and with `choices` holds at least their `num_answer_tokens`
    temperature: float
    top_p: float
    seeds: tuple[int, ...]  # one a choice of OpenAI's `n`
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None  # None: no log-probabilities
    # What the answer is held to; None: nothing, and the reason may be as long as it likes.
    choices: Choices | None = None
    max_reason_tokens: int | None = None  # with `choices`: the reason's budget, if it has a separate one


@dataclass(frozen=True)
class TokenLogprob:
    """A token of the answer, its natural-log probability, and the most probable ones there.

    Temperature and choices are left out of the probabilities. Of an answer held to choices, `top` has the tokens
    that were allowed, however improbable, and where a letter of a verdict was written, the other one: in the place of
    more probable ones, if need be.
    """

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Delta:
    """What one token added to one choice; `finish_reason` is set on the choice's last."""

    choice: int
    reasoning: str
    content: str
    logprob: TokenLogprob | None
    finish_reason: Literal["stop", "length"] | None
    reasoning_truncated: bool = False  # the reason was closed by force, with this token


class _Choice:
    """One answer so far."""

    def __init__(self, turns: Turns, request: LiveRequest) -> None:
        self._turns = turns
        self._request = request
        self._ids: list[int] = []
        self._raw = ""
        self._sent_reasoning = self._sent_content = ""
        self.held: HeldRow | None = None
        if request.choices is not None:
            role, budget = request.prompt.opening_role, request.max_reason_tokens
            self.held = HeldRow(request.choices, role, request.max_tokens, budget)

    def in_answer(self) -> bool:
        """Whether the next token is the answer's (its closing token included)."""
        raw, family = self._raw, self._turns.family
        if self._request.prompt.opening_role == "reason":
            _, closed, rest = raw.partition(family.turn_end)
            if not closed or not rest.startswith(family.assistant_header):
                return False
            raw = rest.removeprefix(family.assistant_header)
        return family.turn_end not in raw

    def add(self, token: int) -> tuple[str, str, Literal["stop", "length"] | None]:
        """Take one more token; (new reasoning, new content, finish reason)."""
        self._ids.append(token)
        if self.held is not None:
            self.held.add(token)
        finish: Literal["stop", "length"] | None = None
        if token in self._request.prompt.stop_ids:
            finish = "stop"
        else:
            self._raw = self._turns.text(self._ids)
            if self.held is not None and self.held.done:
                finish = "stop"
            elif len(self._ids) == self._request.max_tokens:
                finish = "length"
        cuts = [cut for word in self._request.stop if (cut := self._raw.find(word)) >= 0]
        if cuts:
            self._raw, finish = self._raw[: min(cuts)], "stop"
        raw = self._raw if finish else _without_unsure_end(self._raw, self._request.stop)
        reason, answer = split_generation(raw, self._turns.family, self._request.prompt.opening_role)
        new_reasoning = (reason or "").removeprefix(self._sent_reasoning)
        new_content = answer.removeprefix(self._sent_content)
        self._sent_reasoning += new_reasoning
        self._sent_content += new_content
        return new_reasoning, new_content, finish


def _without_unsure_end(raw: str, stop: Sequence[str]) -> str:
    """Leave out what the next token may still change: half a UTF-8 character, the beginning of a stop string."""
    raw = raw.rstrip("\ufffd")
    sure = len(raw)
    for word in stop:
        for size in range(min(len(word) - 1, len(raw)), 0, -1):
            if raw.endswith(word[:size]):
                sure = min(sure, len(raw) - size)
                break
    return raw[:sure]


class LiveModel:
    """A checkpoint that answers one request at a time.

    Args:
        model: on its device, in its dtype.
        turns: of its tokenizer.
        max_model_len: context in tokens; None means the model's own.
    """

    def __init__(self, model: "PreTrainedModel", turns: Turns, max_model_len: int | None = None) -> None:
        self._model = model
        self.turns = turns
        own_len = int(model.config.max_position_embeddings)
        self.max_model_len = min(max_model_len or own_len, own_len)

    def answer(self, request: LiveRequest) -> Iterator[Delta]:
        """Write all choices of a request, token by token. Leaving the iterator ends the work."""
        prompt = DecodingPrompt(request.prompt.ids, request.prompt.stop_ids, request.max_tokens, request.seeds)
        choices = [_Choice(self.turns, request) for _ in request.seeds]
        ended: set[int] = set()

        def limit(row: int, logits_V: torch.Tensor) -> torch.Tensor:
            held = choices[row].held
            return logits_V if held is None else held.limit(logits_V)

        steps = decode(
            self._model,
            [prompt],
            request.prompt.ids[0],
            request.temperature,
            request.top_p,
            ended,
            limit if request.choices is not None else None,
        )
        for step in steps:
            for place, (index, token) in enumerate(zip(step.rows, step.tokens, strict=True)):
                choice, logprob = choices[index], None
                if request.top_logprobs is not None and choice.in_answer() and token not in self.turns.special_ids:
                    also = set((choice.held.allowed() if choice.held else None) or ())
                    also |= set(self.turns.letter_ids) if token in self.turns.letter_ids else set()
                    logprob = self._logprob(step.logits_RV[place], token, request.top_logprobs, also)
                truncated_before = choice.held is not None and choice.held.reason_truncated
                reasoning, content, finish = choice.add(token)
                truncated = choice.held is not None and choice.held.reason_truncated
                if finish:
                    ended.add(index)
                yield Delta(index, reasoning, content, logprob, finish, truncated and not truncated_before)

    def _logprob(self, logits_V: torch.Tensor, token: int, num_top: int, also: Set[int]) -> TokenLogprob:
        logprobs_V = torch.log_softmax(logits_V.double(), dim=-1).clamp(min=LOWEST_LOGPROB)
        kept = sorted(also, key=lambda other: -float(logprobs_V[other]))[:num_top]
        others = (other for other in torch.topk(logprobs_V, num_top).indices.tolist() if other not in kept)
        top = [*kept, *itertools.islice(others, num_top - len(kept))]
        pairs = sorted(((other, float(logprobs_V[other])) for other in top), key=lambda pair: -pair[1])
        return TokenLogprob(
            self.turns.text([token]),
            float(logprobs_V[token]),
            tuple((self.turns.text([other]), logprob) for other, logprob in pairs),
        )
