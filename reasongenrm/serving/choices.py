"""Which tokens may come next: a reason that ends in time, an answer held to one of several texts.

The reason stays the model's own, but is closed by force when its budget is spent or when no more tokens are left than
the choices need. So every generation has an answer, an untrained model's too. docs/decisions/0002-one-generation.md has
the turns.
"""

from collections.abc import Sequence

import torch

from reasongenrm.data.chat import encode_text
from reasongenrm.errors import InputError
from reasongenrm.generation.turns import Turns
from reasongenrm.records import OpeningRole


class Choices:
    """The texts that an answer may be, as a tokenizer writes them.

    Args:
        texts: none of them empty; without any the answer is free.

    Raises:
        InputError: a text begins or ends in white space (which no answer does) or has a token of the turn markup.
    """

    def __init__(self, turns: Turns, texts: Sequence[str]) -> None:
        # As in training: one tokenisation of each text (chat.encode_reason_example), so that its probability is one
        # number.
        self.ids = tuple(tuple(encode_text(turns.tokenizer, text)) for text in texts)
        for text, ids in zip(texts, self.ids, strict=True):
            if not text or text != text.strip() or turns.special_ids.intersection(ids):
                raise InputError(
                    f"choice {text!r}: is empty, begins or ends in white space or has turn markup; expected plain "
                    "text. Change it."
                )
        self.assistant_header = tuple(encode_text(turns.tokenizer, turns.family.assistant_header))
        self.turn_end = turns.turn_end_id
        self.markup = sorted(turns.special_ids - {self.turn_end})

    def num_answer_tokens(self, opening_role: OpeningRole) -> int:
        """Tokens kept for the answer: the longest choice; after a reason, also its closing token and the header."""
        longest = max((len(ids) for ids in self.ids), default=0)
        return longest if opening_role == "assistant" else 1 + len(self.assistant_header) + longest


class HeldRow:
    """One generation under way that is held to choices.

    Args:
        max_tokens: of the generation, at least `choices.num_answer_tokens` if there are choices.
        max_reason_tokens: of the reason, without its closing token; None: what the choices leave of `max_tokens`.

    Attributes:
        reason_truncated: whether the reason was closed by force.
        done: whether the answer is one of the choices and can become no other.
    """

    def __init__(
        self, choices: Choices, opening_role: OpeningRole, max_tokens: int, max_reason_tokens: int | None = None
    ) -> None:
        self._choices = choices
        room = max_tokens - choices.num_answer_tokens(opening_role) if choices.ids else max_tokens
        assert room >= 0
        self._num_reason_left = room if max_reason_tokens is None else min(room, max_reason_tokens)
        self._in_reason = opening_role == "reason"
        self._assistant_header = choices.assistant_header if self._in_reason else ()
        self._answer: tuple[int, ...] = ()
        self.reason_truncated = False
        self.done = False

    def allowed(self) -> list[int] | None:
        """The tokens that may come next; None in the reason and in an answer without choices, which are free."""
        if self._in_reason:
            return [self._choices.turn_end] if self._num_reason_left == 0 else None
        if self._assistant_header:
            return [self._assistant_header[0]]
        if not self._choices.ids:
            return None
        written = len(self._answer)
        following = {ids[written] for ids in self._longer_choices()}
        if self._answer in self._choices.ids:
            following.add(self._choices.turn_end)  # a whole choice that is the beginning of another
        return sorted(following)

    def _longer_choices(self) -> list[tuple[int, ...]]:
        """Those that the answer so far is the beginning of, and that go on."""
        written = len(self._answer)
        return [ids for ids in self._choices.ids if len(ids) > written and ids[:written] == self._answer]

    def limit(self, logits_V: torch.Tensor) -> torch.Tensor:
        """Logits of all tokens, shape (V,), as those that may be drawn: -inf for what is not allowed.

        With choices, markup that does not close a reason is not allowed in it: it would end the generation.
        """
        allowed = self.allowed()
        if allowed is not None:
            limited_V = torch.full_like(logits_V, -torch.inf)
            limited_V[allowed] = logits_V[allowed]
            return limited_V
        if not self._choices.ids:
            return logits_V
        without_markup_V = logits_V.clone()
        without_markup_V[self._choices.markup] = -torch.inf
        return without_markup_V

    def add(self, token: int) -> None:
        """Take one more token, one of the allowed."""
        if self._in_reason:
            self._in_reason = token != self._choices.turn_end
            self.reason_truncated = self._num_reason_left == 0
            self._num_reason_left -= 1
        elif self._assistant_header:
            self._assistant_header = self._assistant_header[1:]
        elif not self._choices.ids:
            return
        elif token == self._choices.turn_end:
            self.done = True
        else:
            self._answer += (token,)
            self.done = not self._longer_choices()
