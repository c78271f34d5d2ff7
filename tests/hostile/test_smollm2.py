"""Every hostile pair through the real small server and the real judge on SmolLM2: an untrained model, whose verdicts
mean nothing.

That is the point: a weak model is talked into things easily, and still no text becomes markup or the verdict, nothing
breaks, and swapping the answers swaps the verdict or gives a tie.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from reasongenrm.config import EngineConfig
from reasongenrm.demo.formats import smollm2_path
from reasongenrm.generation.transformers import load_checkpoint
from reasongenrm.generation.turns import Turns
from reasongenrm.judge.judge_app import ServerSettings
from reasongenrm.judge.judge_app import create_app as judge_app
from reasongenrm.judge.server.limits import Limits
from reasongenrm.judge.service import JudgeSettings
from reasongenrm.runs.served_checkpoint import find_checkpoint
from reasongenrm.serving.live import LiveModel
from reasongenrm.serving.server import create_app as predictor_app
from tests.endpoints import serving
from tests.hostile.cases import Case, every_case
from tests.hostile.test_judge import SWAPPED, ask

MAX_CHARS = 1000  # long texts lose their middle, or a prompt would take minutes
MAX_TOKENS = 20  # the assistant turn and the verdict need up to 9 of them

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    store: Path = tmp_path_factory.mktemp("store")
    checkpoint = find_checkpoint(str(smollm2_path()), str(store), smollm2_path)
    model, tokenizer = load_checkpoint(checkpoint.folder, "float32")
    live = LiveModel(model, Turns(tokenizer, model.generation_config), EngineConfig().max_model_len)
    with serving(predictor_app(live, "smollm2")) as predictor:
        settings = JudgeSettings(f"{predictor}/v1", max_chars=MAX_CHARS, max_tokens=MAX_TOKENS, timeout_seconds=300)
        with (
            serving(judge_app(settings, Limits(), ServerSettings())) as address,
            httpx.Client(base_url=address, timeout=600) as client,
        ):
            yield client


@every_case
def test_small_model_cannot_be_talked_out_of_a_verdict_that_swaps_with_the_answers(
    judge: httpx.Client, case: Case
) -> None:
    given = ask(judge, case, when_too_long="truncate")
    swapped = ask(judge, case, swapped=True, when_too_long="truncate")
    assert given.status_code == swapped.status_code == (200 if case.sendable else 422), given.text
    if not case.sendable:
        return
    one, two = given.json(), swapped.json()
    assert one["preferred"] in ("A", "B", "tie")  # decoding allows nothing but a verdict
    assert two["preferred"] == SWAPPED[one["preferred"]]
    assert two["p_a"] == pytest.approx(1 - one["p_a"], abs=1e-4)
    assert bool(one["cuts"]) == (
        len(case.question) + len(case.answer_a) + len(case.answer_b) > MAX_CHARS and case.answer_a != case.answer_b
    )
    for judgment in one["judgments"]:
        assert "<|" not in (judgment["reason"] or "")
