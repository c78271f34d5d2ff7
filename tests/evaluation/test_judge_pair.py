"""One pair in both orders: verdicts in terms of the answers as given; how a checkpoint wants to be asked."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest

from reasongenrm.config import EvaluateConfig
from reasongenrm.evaluation.judge_pair import judge_pair, style_of
from reasongenrm.evaluation.metrics import JudgeStyle
from reasongenrm.generation import Generation, GenerationRequest, Sampling
from tests.tiny import FAMILIES, Family, tiny_tokenizer


class ScriptedEngine:
    """Answers every request with what a rule makes of its text."""

    model_name = "scripted"

    def __init__(self, rule: dict[bool, str], marker: str) -> None:
        self._rule, self._marker = rule, marker

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,  # noqa: ARG002 - the seam's shape
        skip: Collection[str] = (),  # noqa: ARG002
    ) -> Iterator[list[Generation]]:
        for request in requests:
            text = request.messages[-1]["content"]
            marked_first = text.index(self._marker) < text.index("### Answer B")
            yield [
                Generation(
                    request_id=request.request_id,
                    sample=0,
                    reason=f"Asked to open {request.opening_role}.",
                    answer=self._rule[marked_first],
                    num_prompt_tokens=1,
                    num_output_tokens=1,
                    finish_reason="stop",
                    seconds=0.0,
                )
            ]

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("rule", "verdicts", "preferred"),
    [
        ({True: "[[A]]", False: "[[B]]"}, ("[[A]]", "[[A]]"), "A"),  # always finds the marked answer, given as A
        ({True: "[[B]]", False: "[[A]]"}, ("[[B]]", "[[B]]"), "B"),
        ({True: "[[A]]", False: "[[A]]"}, ("[[A]]", "[[B]]"), None),  # says A whatever stands there
        ({True: "[[A]]", False: "I cannot say."}, ("[[A]]", None), None),
        ({True: "?", False: "?"}, (None, None), None),
    ],
)
def test_preferred_answer_is_the_one_that_both_orders_name(
    rule: dict[bool, str], verdicts: tuple[str | None, str | None], preferred: str | None
) -> None:
    found = judge_pair(
        ScriptedEngine(rule, "MARK"), "Which?", "MARK one", "the other", EvaluateConfig(votes=3), "reason"
    )
    assert found.verdicts == verdicts
    assert found.preferred == preferred
    assert found.given.reason == "Asked to open reason."


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("opening_role", "style"), [("reason", "reason"), ("assistant", "verdict"), (None, "plain")])
def test_checkpoint_is_asked_as_its_chat_template_says(
    tmp_path: Path, family: Family, opening_role: str | None, style: JudgeStyle
) -> None:
    from reasongenrm.data.chat import detect_family, install_template

    tokenizer = tiny_tokenizer(family)
    if opening_role is not None:
        install_template(tokenizer, detect_family(tokenizer), opening_role)  # type: ignore[arg-type]
    tokenizer.save_pretrained(tmp_path)
    assert style_of(tmp_path) == style


def test_checkpoint_without_a_template_file_is_asked_by_plain_chat(tmp_path: Path) -> None:
    assert style_of(tmp_path) == "plain"
