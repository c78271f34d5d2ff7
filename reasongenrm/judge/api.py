"""What the judge is asked and what it answers: the JSON of its REST API, the records of its client.

"A" and "B" are always the answers as the caller gave them, whatever order the model saw them in.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool

from reasongenrm.judge.notebook import judgment_html
from reasongenrm.records import Letter, Record

MAX_TEXT_CHARS = 1_000_000  # of one text; what exceeds the model's context is refused or cut with better words
MAX_TURNS = 256
MAX_ANSWERS = 32  # of a list
MAX_VOTES = 16  # docs/method.md, section 7: majority vote of k samples
MAX_BATCH = 256


def _no_guess(value: object) -> object:
    """Pydantic would take "3" and true for numbers."""
    if isinstance(value, bool | str):
        raise ValueError("expected a number")
    return value


NoGuess = BeforeValidator(_no_guess)
CallerOrder = Literal["given", "swapped"]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]


class QuestionTurn(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class JudgeOptions(Record):
    """What every kind of judgment takes.

    Attributes:
        question: the question's text, or a conversation; the answers are its next turn.
        rubric: what to judge by, in words; None leaves it to the judge.
        votes: reasons sampled per order; 1 is greedy.
        temperature: of the votes; used if `votes` is above 1.
        both_orders: judge with the answers in each other's place too. False halves the cost and keeps the position
            bias.
        max_tokens: of one reason with its verdict; None: the server's setting.
        seed: of the votes' random numbers.
        when_too_long: "refuse" answers 422; "truncate" cuts the middle out of what is too long and says so.
    """

    question: Text | Annotated[list[QuestionTurn], Field(min_length=1, max_length=MAX_TURNS)]
    rubric: Annotated[str, Field(max_length=20_000)] | None = None
    votes: Annotated[int, Field(ge=1, le=MAX_VOTES), NoGuess] = 1
    temperature: Annotated[float, Field(gt=0, le=2), NoGuess] = 1.0
    both_orders: StrictBool = True
    max_tokens: Annotated[int, Field(ge=1, le=131_072), NoGuess] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31), NoGuess] = 0
    when_too_long: Literal["refuse", "truncate"] = "refuse"

    def turns(self) -> list[QuestionTurn]:
        """The question as turns."""
        asked = self.question
        return [QuestionTurn(role="user", content=asked)] if isinstance(asked, str) else list(asked)


class AnswerPair(JudgeOptions):
    """A question and two answers."""

    answer_a: Text
    answer_b: Text


class PairwiseRequest(AnswerPair):
    """Which of two answers is better. `stream`: server-sent events, see docs/judge.md."""

    stream: StrictBool = False


class ListwiseRequest(JudgeOptions):
    """Rank several answers by comparing pairs of them.

    `max_comparisons` bounds the pairs that are judged; None: as many as sorting by merges needs at most.
    """

    answers: Annotated[list[Text], Field(min_length=2, max_length=MAX_ANSWERS)]
    max_comparisons: Annotated[int, Field(ge=1, le=MAX_ANSWERS * (MAX_ANSWERS - 1) // 2), NoGuess] | None = None


class PointwiseRequest(JudgeOptions):
    """Score one answer against a reference answer; None: against the server's fixed anchor."""

    answer: Text
    reference: Text | None = None


class Usage(Record):
    """What the predictor counted, over all of its requests."""

    num_requests: int
    prompt_tokens: int
    completion_tokens: int


class OrderJudgment(Record):
    """One generation of the judge.

    Attributes:
        vote: from 0.
        reason: as the model wrote it. In the order "swapped" its "answer A" is the caller's B.
        preferred: the caller's answer that the verdict names; None if no verdict could be read.
        p_a: calibrated probability that the caller's A is the better one, in [0, 1]; None if the predictor gave no
            log-probabilities or the generation ended before its verdict.
        truncated: the generation was cut off by max_tokens or the context.
    """

    order: CallerOrder
    vote: int
    reason: str | None
    preferred: Letter | None
    p_a: float | None
    truncated: bool


class ReasonDelta(Record):
    """A streamed piece of a reason: which order's, which vote's."""

    order: CallerOrder
    vote: int
    delta: str


class Cut(Record):
    """A text whose middle was left out: which one, and how many of its characters."""

    field: str
    num_chars: int


class _Answered(Record):
    """What every answer has. `id` is the request's, also in the header X-Request-ID."""

    id: str
    model: str
    cuts: list[Cut]
    usage: Usage
    latency_seconds: float

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return judgment_html(self)


class PairwiseResponse(_Answered):
    """The judgment of a pair.

    Attributes:
        preferred: the answer that both orders name (the majority of each order's votes); "tie" if they disagree or one
            order's votes are even; None if no order has a verdict that can be read.
        p_a: mean over orders and votes; None if there is none.
        consistent: both orders name the same answer; None with one order, or if an order has no verdict.
        calibrated: p_a was corrected by a calibration of this checkpoint.
        judgments: one an order and vote, in the order "given" then "swapped".
    """

    preferred: Literal["A", "B", "tie"] | None
    p_a: float | None
    consistent: bool | None
    calibrated: bool
    judgments: list[OrderJudgment]


class Comparison(Record):
    """One pair of a list: indices of the two answers, the better one's index (None: tie or unread), P(first better)."""

    first: int
    second: int
    preferred: int | None
    p_first: float | None
    consistent: bool | None


class ListwiseResponse(_Answered):
    """A ranking.

    Attributes:
        ranking: indices of the answers, best first: by `scores`, equal ones as given.
        scores: per answer, in the order given, in [0, 1], 0.5 in the mean: the probability that it is better than
            another answer of the list, in the mean over all of them, whether compared or not. From strengths fitted to
            all comparisons (Bradley-Terry), so that it matters who the opponents were.
        comparisons: what was judged.
        complete: False if `max_comparisons` ended the tournament before the ranking was sure.
    """

    ranking: list[int]
    scores: list[float]
    comparisons: list[Comparison]
    complete: bool


class PointwiseResponse(_Answered):
    """A score in [0, 1]: the probability that the answer is better than what it was held against; None: no verdict.

    `against` says what that was.
    """

    score: float | None
    against: Literal["reference", "anchor"]
    consistent: bool | None
    calibrated: bool
    judgments: list[OrderJudgment]


class BatchPair(AnswerPair):
    """A pair in a batch."""

    kind: Literal["pairwise"]


class BatchList(ListwiseRequest):
    """A list in a batch."""

    kind: Literal["listwise"]


class BatchPoint(PointwiseRequest):
    """A single answer in a batch."""

    kind: Literal["pointwise"]


class BatchRequest(Record):
    """Several judgments; each ends by itself, with an answer or an error."""

    requests: Annotated[
        list[Annotated[BatchPair | BatchList | BatchPoint, Field(discriminator="kind")]],
        Field(min_length=1, max_length=MAX_BATCH),
    ]


class ErrorDetail(Record):
    """What went wrong, in words that say what to do; `code` is for programs, `param` the field that is at fault.

    `num_chars_over`: about how many characters question and answers have too many, where that is the fault and known.
    """

    message: str
    code: str
    param: str | None = None
    request_id: str | None = None
    num_chars_over: int | None = None


class ErrorResponse(Record):
    """The body of every answer that is an error."""

    error: ErrorDetail


class BatchItem(Record):
    """One of a batch: an answer or an error."""

    result: PairwiseResponse | ListwiseResponse | PointwiseResponse | None = None
    error: ErrorDetail | None = None


class BatchResponse(Record):
    """In the order of the requests."""

    id: str
    results: list[BatchItem]
