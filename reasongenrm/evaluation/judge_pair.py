"""One pair judged in both orders: what `reasongenrm judge` and the end of a run show.

The same requests as in an evaluation, so that what a person sees here is what the report counts.
"""

import re
from pathlib import Path
from typing import Literal

from reasongenrm.config import EvaluateConfig
from reasongenrm.data.benchmarks import BenchmarkRow
from reasongenrm.evaluation.evaluate import judge_benchmark
from reasongenrm.evaluation.metrics import JudgeStyle
from reasongenrm.generation import Engine
from reasongenrm.records import OPPOSITE, Judgment, Message, Record, Verdict

TEMPLATE = "chat_template.jinja"
_OPENING = re.compile(
    r'set opening_role = opening_role \| default\("(reason|assistant)"\)'
)  # in chat_templates/*.jinja


class PairJudgment(Record):
    """What a judge says about two answers, in the order given and with the answers in each other's place.

    Attributes:
        preferred: the answer that both orders name, as given; None if they do not agree or a verdict is missing.
    """

    given: Judgment
    swapped: Judgment
    preferred: Literal["A", "B"] | None

    @property
    def verdicts(self) -> tuple[Verdict | None, Verdict | None]:
        """Both verdicts in terms of the answers as given."""
        return self.given.verdict, OPPOSITE[self.swapped.verdict] if self.swapped.verdict else None


def judge_row(engine: Engine, row: BenchmarkRow, config: EvaluateConfig, style: JudgeStyle) -> PairJudgment:
    """Have one benchmark row judged in both orders; answer A "as given" is the row's chosen answer.

    Raises:
        EngineError: the engine failed for good.
    """
    given, swapped = judge_benchmark(engine, [row], config.model_copy(update={"votes": 1}), style)
    found = PairJudgment(given=given, swapped=swapped, preferred=None)
    first, second = found.verdicts
    agreed = first if first == second else None
    letters: dict[Verdict, Literal["A", "B"]] = {"[[A]]": "A", "[[B]]": "B"}
    return found.model_copy(update={"preferred": letters[agreed] if agreed else None})


def judge_pair(
    engine: Engine, question: str, answer_a: str, answer_b: str, config: EvaluateConfig, style: JudgeStyle
) -> PairJudgment:
    """Have two answers to a question judged in both orders (see `judge_row`)."""
    row = BenchmarkRow(
        row_id="pair",
        subset="pair",
        question=(Message(role="user", content=question),),
        chosen=answer_a,
        rejected=answer_b,
    )
    return judge_row(engine, row, config, style)


def style_of(folder: Path) -> JudgeStyle:
    """How a checkpoint wants to be asked, by its chat template: "plain" if the template is not ours."""
    path = folder / TEMPLATE
    opening = _OPENING.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    if opening is None:
        return "plain"
    return "reason" if opening[1] == "reason" else "verdict"
