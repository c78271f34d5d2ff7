"""KServe's own client against the judge's v1 and v2 routes."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from reasongenrm.judge.judge_app import ServerSettings, create_app
from reasongenrm.judge.server.limits import Limits
from reasongenrm.judge.service import JudgeSettings
from tests.endpoints import serving
from tests.predictors import RulePredictor

TEXTS = {"question": ["?", "?"], "answer_a": ["a long answer", "a"], "answer_b": ["short", "a longer answer"]}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(RulePredictor().app) as behind:
        app = create_app(JudgeSettings(f"{behind}/v1"), Limits(), ServerSettings(model_name="genrm"))
        with serving(app) as found:
            yield found


@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_kserves_client_finds_server_and_model_ready(address: str, protocol: str) -> None:
    from kserve import InferenceRESTClient, RESTConfig

    async def look() -> list[bool]:
        async with InferenceRESTClient(RESTConfig(protocol=protocol)) as client:
            found = [await client.is_server_live(address), await client.is_model_ready(address, "genrm")]
            return [*found, await client.is_server_ready(address)] if protocol == "v2" else found

    assert set(asyncio.run(look())) == {True}


def test_kserves_client_predicts_by_v1(address: str) -> None:
    from kserve import InferenceRESTClient, RESTConfig

    instances = [dict(zip(TEXTS, pair, strict=True)) for pair in zip(*TEXTS.values(), strict=True)]

    async def predict() -> dict[str, list[dict[str, str]]]:
        async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
            return await client.infer(address, {"instances": instances}, model_name="genrm")  # type: ignore[return-value]

    assert [judged["preferred"] for judged in asyncio.run(predict())["predictions"]] == ["A", "B"]


def test_kserves_client_infers_by_v2(address: str) -> None:
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

    inputs = [InferInput(name, [2], "BYTES", texts) for name, texts in TEXTS.items()]
    asked = InferRequest("genrm", inputs, "r7", parameters={"both_orders": False})

    async def infer() -> Any:
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
            return await client.infer(address, asked, model_name="genrm")

    answer = asyncio.run(infer())
    columns = {output.name: output.data for output in answer.outputs}
    assert answer.id == "r7"
    assert columns["preferred"] == ["A", "B"]
    assert columns["consistent"] == ["none", "none"], "one order, as the parameters say"
    assert columns["p_a"] == [pytest.approx(1 / (1 + 2.718281828**-2)), pytest.approx(1 / (1 + 2.718281828**3.5))]


def test_tensors_of_different_lengths_are_an_error(address: str) -> None:
    tensors = [{"name": name, "shape": [2], "datatype": "BYTES", "data": texts} for name, texts in TEXTS.items()]
    tensors[2] |= {"shape": [1], "data": ["short"]}
    answer = httpx.post(f"{address}/v2/models/genrm/infer", json={"inputs": tensors})
    assert answer.status_code == 400
    assert "2 of answer_a, 1 of answer_b" in answer.json()["error"]["message"]
