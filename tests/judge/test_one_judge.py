"""One judge: a row that is evaluated and a pair that is asked of the service have the same verdict and the same
probability."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from reasongenrm.config import EngineConfig, EvaluateConfig
from reasongenrm.data.prompts import question_text
from reasongenrm.evaluation.calibration import PlattScaling
from reasongenrm.evaluation.evaluate import judge_benchmark
from reasongenrm.evaluation.judging import probability_of_first
from reasongenrm.generation.endpoint import EndpointEngine
from reasongenrm.generation.transformers import TransformersEngine
from reasongenrm.generation.turns import Turns
from reasongenrm.judge.api import AnswerPair, OrderJudgment
from reasongenrm.judge.service import JudgeSettings, open_judge
from reasongenrm.records import Judgment
from reasongenrm.serving.live import LiveModel
from reasongenrm.serving.server import create_app
from tests.endpoints import serving
from tests.judges import benchmark_of
from tests.tiny import exact_model, tiny_checkpoint

NUM_ROWS = 20
CONFIG = EvaluateConfig(max_tokens=60, engine=EngineConfig(concurrency=4))
CALIBRATION = PlattScaling(temperature=1.7, bias=0.3)


@pytest.fixture(scope="module")
def turns_and_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Turns, Any]:
    """A float64 model that always writes a reason and a verdict; the verdict's letter is its own choice."""
    from transformers import AutoTokenizer

    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "judge", "chatml", opening_role="reason")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), exact_model(folder).eval()
    turns = Turns(tokenizer, model.generation_config)
    family = turns.family
    script = tokenizer.encode(
        f"One differs.{family.turn_end}{family.assistant_header}[[A]]{family.turn_end}{family.sequence_end}",
        add_special_tokens=False,
    )
    letters = tokenizer.convert_tokens_to_ids(["A", "B"])
    plain, steps = model.forward, iter(script)

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        output = plain(*args, **kwargs)
        if kwargs["input_ids"].shape[1] > 1:  # a prompt
            steps = iter(script)
        token = next(steps)
        output.logits[:, -1, letters if token == letters[0] else token] += 60.0
        return output

    model.forward = forward
    return turns, model


@pytest.fixture(scope="module")
def url(turns_and_model: tuple[Turns, Any]) -> Iterator[str]:
    turns, model = turns_and_model
    with serving(create_app(LiveModel(model, turns), "judge")) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return benchmark_of(tmp_path_factory.mktemp("rows"), {"sums": NUM_ROWS}).rows


@pytest.fixture(scope="module")
def evaluated(url: str, rows: Any) -> list[Judgment]:
    return judge_benchmark(EndpointEngine(url, CONFIG.engine), rows, CONFIG, "reason")


def served(url: str, rows: Any, calibration: PlattScaling | None, constrained: bool) -> list[OrderJudgment]:
    """Both orders of every row, by the service; the caller's A is the chosen answer."""
    settings = JudgeSettings(url, max_tokens=CONFIG.max_tokens, calibration=calibration, constrained=constrained)

    async def ask() -> list[OrderJudgment]:
        async with open_judge(settings) as service:
            found = []
            for row in rows:
                pair = AnswerPair(question=question_text(row.question), answer_a=row.chosen, answer_b=row.rejected)
                found += (await service.pairwise(pair, row.row_id)).judgments
            return found

    return asyncio.run(ask())


@pytest.mark.parametrize("constrained", [True, False], ids=["held to verdicts", "free"])
@pytest.mark.parametrize("calibration", [None, CALIBRATION], ids=["before calibration", "after calibration"])
def test_service_and_evaluation_agree(
    url: str, rows: Any, evaluated: list[Judgment], calibration: PlattScaling | None, constrained: bool
) -> None:
    asked = served(url, rows, calibration, constrained)
    assert len(asked) == len(evaluated) == 2 * NUM_ROWS
    for judgment, found in zip(evaluated, asked, strict=True):
        is_swapped = judgment.order == "rejected_first"
        assert found.order == ("swapped" if is_swapped else "given")
        assert judgment.verdict is not None
        assert found.preferred == ("A" if (judgment.verdict == "[[A]]") != is_swapped else "B")
        expected = probability_of_first(judgment.p_a, is_swapped, calibration)
        assert found.p_a == pytest.approx(expected, abs=1e-9)
    # The comparison is of something: the letters and the probabilities are many, and calibration moves them.
    assert {judgment.verdict for judgment in evaluated} == {"[[A]]", "[[B]]"}
    assert len({round(found.p_a or 0.0, 6) for found in asked}) > NUM_ROWS


def test_engine_in_this_process_agrees_with_the_endpoint(
    turns_and_model: tuple[Turns, Any], rows: Any, evaluated: list[Judgment]
) -> None:
    turns, model = turns_and_model
    engine = TransformersEngine(model, turns.tokenizer, batch_size=1, max_model_len=None, model_name="judge")
    here = judge_benchmark(engine, rows, CONFIG, "reason")
    assert [judgment.verdict for judgment in here] == [judgment.verdict for judgment in evaluated]
    assert [judgment.p_a for judgment in here] == pytest.approx([judgment.p_a for judgment in evaluated], abs=1e-9)


def test_calibration_is_in_the_terms_of_the_prompt_and_its_answer_in_those_of_the_caller() -> None:
    # sigmoid(logit(0.75) / 2 + ln 3) with temperature 2: sqrt(3) * 3 = 5.196 to 1.
    calibration = PlattScaling(temperature=2.0, bias=1.0986122886681098)
    odds = 3**1.5
    assert probability_of_first(0.75, False, calibration) == pytest.approx(odds / (1 + odds))
    assert probability_of_first(0.75, True, calibration) == pytest.approx(1 / (1 + odds))
    assert probability_of_first(0.75, True) == 0.25
    assert probability_of_first(None, True, calibration) is None
