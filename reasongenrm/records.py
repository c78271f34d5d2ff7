"""The records that flow between the stages, and their JSON Lines form.

Preference pairs become judge prompts; a teacher or the policy writes reasons for them; scored reasons become training
data; judgments are what an evaluation leaves. Every record is immutable and knows how to be one line of JSON.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from reasongenrm.errors import EmptyStageError, validated

Verdict = Literal["[[A]]", "[[B]]"]
Letter = Literal["A", "B"]  # one of two answers
Order = Literal["chosen_first", "rejected_first"]
OpeningRole = Literal["reason", "assistant"]  # the turn that a generation begins in
# How a generation ended: by itself, cut off by a limit or the server, or refused by the server (a content filter).
FinishReason = Literal["stop", "length", "refused"]
CALIBRATION_FILE = "judge_calibration.json"  # in a judge's checkpoint, and in its evaluation: judge/calibration.py
OPPOSITE: dict[Verdict, Verdict] = {"[[A]]": "[[B]]", "[[B]]": "[[A]]"}


class Record(BaseModel):
    """Base of all records: unknown fields are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "reason", "assistant"]
    content: str


class PreferencePair(Record):
    """A conversation with two last answers, one preferred.

    `question` ends with a user turn; `chosen` and `rejected` are the texts of the two assistant turns that may follow.
    """

    pair_id: str
    question: tuple[Message, ...]
    chosen: str
    rejected: str
    source: str = ""


class JudgePrompt(Record):
    """A pair in one order of its answers. `label` names the place of the chosen answer."""

    prompt_id: str
    pair_id: str
    question: tuple[Message, ...]
    answer_a: str
    answer_b: str
    label: Verdict
    source: str = ""


class Reason(Record):
    """One reason for one judge prompt, from the teacher or from the policy."""

    prompt_id: str
    sample: int
    reason: str
    model: str
    num_tokens: int
    finish_reason: FinishReason


class ScoredReason(Record):
    """A reason with its score (docs/method.md, section 2). p_reason, p_verdict in (0, 1]; reason_score in (-1, 1]."""

    prompt_id: str
    sample: int
    reason: str
    p_reason: float
    p_verdict: float
    reason_score: float
    num_reason_tokens: int


class TrainingExample(Record):
    """One SFT example: a judge prompt, the selected reason R* (None for GenRM), and the labelled verdict."""

    prompt: JudgePrompt
    reason: str | None
    verdict: Verdict
    reason_score: float | None = None


class Preference(Record):
    """One DPO pair: two on-policy reasons for one judge prompt (docs/method.md, section 5)."""

    prompt: JudgePrompt
    chosen: str
    chosen_verdict: Verdict
    chosen_score: float
    rejected: str
    rejected_verdict: Verdict
    rejected_score: float


class Judgment(Record):
    """What a judge said about one benchmark row in one order (one vote).

    `p_a`: P([[A]]) of the two verdicts alone, in [0, 1], in the terms of this order's prompt; None if it is not known.
    """

    row_id: str
    subset: str
    order: Order
    vote: int
    label: Verdict
    verdict: Verdict | None
    reason: str | None
    answer: str
    num_prompt_tokens: int
    num_output_tokens: int
    truncated: bool
    seconds: float
    p_a: float | None = None
    refused: bool = False  # by the endpoint, for what the prompt says


class Drops:
    """Counts of a stage's records: in, out, and dropped by cause. Nothing is dropped silently."""

    def __init__(self) -> None:
        self.num_in = 0
        self.num_out = 0
        self.causes: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def drop(self, cause: str, example: str = "") -> None:
        """Count one dropped record under `cause` (snake_case), remembering the first as an example."""
        self.causes[cause] += 1
        self.examples.setdefault(cause, example)

    def counts(self) -> dict[str, int]:
        """num_in, num_out and one num_dropped_<cause> each."""
        dropped = {f"num_dropped_{cause}": n for cause, n in sorted(self.causes.items())}
        return {"num_in": self.num_in, "num_out": self.num_out, **dropped}

    def require_some(self, stage: str, advice: str) -> None:
        """Raise EmptyStageError if nothing is left, naming every cause with its count and first example."""
        if self.num_out:
            return
        causes = "; ".join(
            f"{n} {cause}" + (f" (first: {self.examples[cause]})" if self.examples.get(cause) else "")
            for cause, n in self.causes.most_common()
        )
        raise EmptyStageError(f"{stage}: none of {self.num_in} records is left: {causes or 'no input'}. {advice}")


R = TypeVar("R", bound=Record)


def dump_records(records: Iterable[Record]) -> bytes:
    """Records as JSON Lines, UTF-8, one per line, in the order given."""
    return b"".join(record.model_dump_json().encode() + b"\n" for record in records)


def parse_records(data: bytes, kind: type[R], name: str) -> list[R]:
    """Parse JSON Lines written by `dump_records`.

    Raises:
        InputError: a line is not a valid `kind`; the message names `name` and the line.
    """
    records = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        expected = f"a {kind.__name__} record. Re-run the stage that wrote this file."
        with validated(f"{name} line {number}", expected):
            records.append(kind.model_validate_json(line))
    return records
