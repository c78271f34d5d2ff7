"""The tokenizer's side of an engine: a request to prompt tokens, generated tokens to turns.

The transformers engine, the vLLM engine and the server all stand on it, so that they ask and read in the same way.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reasongenrm.data.chat import detect_family, is_installed, render, split_generation
from reasongenrm.generation.seam import Generation, GenerationRequest
from reasongenrm.generation.verdicts import ReplyToken, probability_of_a
from reasongenrm.records import OpeningRole

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

_LETTER = re.compile(r"\[{0,2}[AB](\]?|\]\].*)")


@dataclass(frozen=True)
class Prompt:
    """One request as an engine needs it."""

    ids: list[int]  # token ids, shape (T_prompt,), ending inside the turn that is generated
    opening_role: OpeningRole  # the turn in which the generation begins, as it was really rendered
    stop_ids: frozenset[int]  # tokens that end the generation


class Turns:
    """Renders requests and splits generations for one tokenizer.

    With our template installed, a generation ends at the family's sequence end and nothing else; a base model, with a
    template of its own, ends where its tokenizer or its generation config say.

    Raises:
        InputError: the tokenizer belongs to no supported family.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", generation_config: "GenerationConfig") -> None:
        self.tokenizer = tokenizer
        self.family = detect_family(tokenizer)
        self.turn_end_id = int(tokenizer.convert_tokens_to_ids(self.family.turn_end))
        if is_installed(tokenizer):
            self._sequence_ends = frozenset([int(tokenizer.convert_tokens_to_ids(self.family.sequence_end))])
        else:
            named = generation_config.eos_token_id
            ends = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
            self._sequence_ends = frozenset(int(token) for token in ends if token is not None)
        self.special_ids = frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._opening_of_reason = self.family.opening("reason")
        # All tokens that may hold a verdict's letter. Byte-level vocabularies spell ASCII as it is and have both
        # letters.
        letters = sorted((token, text) for text, token in tokenizer.get_vocab().items() if _LETTER.fullmatch(text))
        self.letter_ids = tuple(token for token, _ in letters)
        self.letter_texts = tuple(text for _, text in letters)
        self.letters_alone = tuple(token for token, text in letters if text in ("A", "B"))

    def encode(self, request: GenerationRequest) -> Prompt:
        """Render one request.

        Raises:
            InputError: the tokenizer has no chat template.
            jinja2.TemplateError: the template refuses the messages (roles out of turn).
        """
        ids = render(self.tokenizer, request.messages, opening_role=request.opening_role)
        # A base model's template ignores opening_role, and a reason turn is always followed by the assistant's:
        # what was rendered decides, not what was asked for.
        tail = self.tokenizer.decode(ids[-len(self._opening_of_reason) :], skip_special_tokens=False)
        role: OpeningRole = "reason" if tail.endswith(self._opening_of_reason) else "assistant"
        stop_ids = self._sequence_ends | ({self.turn_end_id} if request.stop_at == "turn" else set())
        if request.answer_start:
            ids = [*ids, *self.tokenizer.encode(request.answer_start, add_special_tokens=False)]
        return Prompt(ids, role, frozenset(stop_ids))

    def text(self, ids: Sequence[int]) -> str:
        """Generated tokens as text with markup; a turn token spelled out in ordinary tokens never reads as markup."""
        pieces: list[str] = []
        run: list[int] = []
        for token in [*ids, None]:
            if token is not None and token not in self.special_ids:
                run.append(token)
                continue
            if run:
                pieces.append(self.family.as_text(self.tokenizer.decode(run, skip_special_tokens=False)))
                run = []
            if token is not None:
                pieces.append(self.tokenizer.decode([token], skip_special_tokens=False))
        return "".join(pieces)

    def split(self, ids: Sequence[int], prompt: Prompt) -> tuple[str | None, str]:
        """Generated tokens, shape (T_output,), as (reason, answer); a final stop token belongs to neither."""
        if ids and ids[-1] in prompt.stop_ids:
            ids = ids[:-1]
        return split_generation(self.text(ids), self.family, prompt.opening_role)

    def generation(
        self,
        request_id: str,
        sample: int,
        prompt: Prompt,
        ids: Sequence[int],
        letters: Mapping[int, Sequence[float]],
        seconds: float,
    ) -> Generation:
        """The record of one sample.

        Args:
            ids: the generated tokens, shape (T_output,), a final stop token included.
            letters: log-probabilities of `letter_ids`, natural log, by position in `ids` of every such token.
        """
        reason, answer = self.split(ids, prompt)
        reply = (
            ReplyToken(self.text([ids[place]]), dict(zip(self.letter_texts, letters.get(place, ()), strict=False)))
            for place in reversed(range(len(ids)))
        )
        return Generation(
            request_id=request_id,
            sample=sample,
            reason=reason,
            answer=answer,
            num_prompt_tokens=len(prompt.ids),
            num_output_tokens=len(ids),
            finish_reason="stop" if ids and ids[-1] in prompt.stop_ids else "length",
            seconds=seconds,
            p_a=probability_of_a(answer, reply),
        )
