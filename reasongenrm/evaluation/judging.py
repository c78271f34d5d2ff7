"""How a pair is judged by any engine: what is asked in one order, what the answer means in the caller's terms.

Pure functions over the seam's records. An evaluation and the judge service both stand on them, so that a row and a
request with the same texts are the same question, and their verdicts and probabilities the same numbers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from reasongenrm.data.prompts import TurnText, judge_prompt, plain_judge_prompt
from reasongenrm.generation.seam import Generation, GenerationRequest, Sampling
from reasongenrm.generation.verdicts import parse_verdict
from reasongenrm.records import Letter
from reasongenrm.variants import OPENINGS, JudgeStyle

if TYPE_CHECKING:
    from reasongenrm.evaluation.calibration import PlattScaling

_VERDICT_START = "[["
HELD = Sampling(max_tokens=1, letters_alone=True)  # greedy: the more probable letter


def judge_request(
    request_id: str,
    question: Sequence[TurnText],
    first: str,
    second: str,
    style: JudgeStyle,
    rubric: str | None = None,
    stop_at: Literal["sequence", "turn"] = "sequence",
) -> GenerationRequest:
    """What asks for one judgment.

    Args:
        first: the answer that the prompt calls A; swap the two for the other order.
        rubric: what to judge by; None leaves it to the judge.
        stop_at: "turn" for the reason alone (two steps).
    """
    write = plain_judge_prompt if style == "plain" else judge_prompt
    message = {"role": "user", "content": write(question, first, second, rubric)}
    return GenerationRequest(request_id, (message,), opening_role=OPENINGS[style], stop_at=stop_at)


def held_request(request_id: str, question: Sequence[TurnText], first: str, second: str) -> GenerationRequest:
    """What asks for a verdict and nothing else: the answer begins with "[[", and one of two letters follows.

    For a judge in plain chat, which may write on without a verdict. See `HELD`.
    """
    message = {"role": "user", "content": judge_prompt(question, first, second)}
    return GenerationRequest(request_id, (message,), answer_start=_VERDICT_START)


def held_answer(letter: str) -> str:
    """The whole answer of which a held generation is the letter."""
    return f"{_VERDICT_START}{letter}]]"


def judge_sampling(
    max_tokens: int, num_votes: int, temperature: float, seed: int, *, verdict_logprobs: bool = True
) -> Sampling:
    """One vote is greedy, several are sampled at `temperature`."""
    return Sampling(
        max_tokens,
        temperature=temperature if num_votes > 1 else 0.0,
        num_samples=num_votes,
        seed=seed,
        verdict_logprobs=verdict_logprobs,
    )


def preferred_answer(generation: Generation, is_swapped: bool) -> Letter | None:
    """The caller's answer that a generation's verdict names; None if it has none."""
    verdict = parse_verdict(generation.answer)
    if verdict is None:
        return None
    return "A" if (verdict == "[[A]]") != is_swapped else "B"


def probability_of_first(
    p_a: float | None, is_swapped: bool, calibration: "PlattScaling | None" = None
) -> float | None:
    """Calibrated probability that the caller's A is the better one, in [0, 1].

    Args:
        p_a: P([[A]]) in the terms of the prompt (`Generation.p_a`), in which a calibration is fitted: its bias is the
            place's.
        calibration: None leaves the probability as it is.
    """
    if p_a is None:
        return None
    calibrated = p_a if calibration is None else calibration.apply(p_a)
    return 1.0 - calibrated if is_swapped else calibrated
