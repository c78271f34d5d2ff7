"""KServe's own client against the judge's v1 and v2 routes."""

import asyncio
import json
import math
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
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


def infer(address: str, asked: Any, **more: Any) -> Any:
    from kserve import InferenceRESTClient, RESTConfig

    async def ask() -> Any:
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
            return await client.infer(address, asked, model_name="genrm", **more)

    return asyncio.run(ask())


def test_kserves_client_infers_with_binary_tensors_as_it_does_by_default(address: str) -> None:
    from kserve import InferInput, InferRequest

    inputs = []
    for name, texts in TEXTS.items():
        tensor = InferInput(name, [2], "BYTES")
        tensor.set_data_from_numpy(np.array([f"{text} \u00fc" for text in texts], dtype=np.object_))
        inputs.append(tensor)
    body, length = InferRequest("genrm", inputs).to_rest()
    assert isinstance(body, bytes)
    assert length is not None, "kserve's own encoder sends binary"
    answer = infer(address, InferRequest("genrm", inputs, "r8", parameters={"both_orders": False}))
    columns = {output.name: output.data for output in answer.outputs}
    assert (answer.id, columns["preferred"], columns["consistent"]) == ("r8", ["A", "B"], ["none", "none"])


@pytest.mark.parametrize("everything", [True, False])
def test_outputs_are_binary_as_asked(address: str, everything: bool) -> None:
    from kserve import InferInput, InferRequest
    from kserve.protocol.infer_type import RequestedOutput

    inputs = [InferInput(name, [2], "BYTES", texts) for name, texts in TEXTS.items()]
    wanted = [RequestedOutput("preferred", {"binary_data": not everything}), RequestedOutput("p_a")]
    asked = InferRequest("genrm", inputs, request_outputs=wanted, parameters={"binary_data_output": everything})
    raw = httpx.post(f"{address}/v2/models/genrm/infer", json=asked.to_rest()[0])
    head = int(raw.headers["Inference-Header-Content-Length"])
    described = {output["name"]: output for output in json.loads(raw.content[:head])["outputs"]}
    p_a = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(3.5))]
    if everything:
        assert described["p_a"]["parameters"] == {"binary_data_size": 16}
        assert struct.unpack("<2d", raw.content[head:]) == pytest.approx(p_a)
        assert described["preferred"]["data"] == ["A", "B"]
    else:
        assert raw.content[head:] == b"\x01\0\0\0A\x01\0\0\0B"
        assert described["p_a"]["data"] == pytest.approx(p_a)
    columns = {output.name: list(output.data) for output in infer(address, asked).outputs}
    assert columns["preferred"] == ["A", "B"]
    assert columns["p_a"] == pytest.approx(p_a)


def test_the_extension_is_listed(address: str) -> None:
    assert httpx.get(f"{address}/v2").json()["extensions"] == ["binary_tensor_data"]


ONE = b"\x01\0\0\0"


@pytest.mark.parametrize(
    ("tail", "sizes", "header", "says"),
    [
        (ONE + b"q" + ONE + b"a" + ONE + b"b", (5, 5, 5), 0, None),
        (ONE + b"q" + ONE + b"a" + ONE, (5, 5, 4), 0, "input 'answer_b' ends within element 0"),
        (ONE + b"q" + ONE + b"a" + b"\x01", (5, 5, 1), 0, "input 'answer_b' ends within element 0"),
        (ONE + b"q" + ONE + b"a" + ONE + b"\xff", (5, 5, 5), 0, "element 0 of input 'answer_b' is no UTF-8"),
        (ONE + b"q" + ONE + b"a", (5, 5, 5), 0, "input 'answer_b' has binary_data_size 5; 0 bytes are left"),
        (ONE + b"q" + ONE + b"a" + ONE + b"bc", (5, 5, 5), 0, "1 bytes follow the last tensor"),
        (b"", (0, 0, -1), 0, "binary_data_size -1"),
        (b"", (0, 0, 0), 10**9, "expected the length of the JSON"),
        (b"", (0, 0, 0), -5, "are no JSON"),
    ],
)
def test_binary_tensors_are_read_by_the_protocol_or_refused(
    address: str, tail: bytes, sizes: tuple[int, ...], header: int, says: str | None
) -> None:
    tensors = [
        {"name": name, "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
        for name, size in zip(TEXTS, sizes, strict=True)
    ]
    head = json.dumps({"inputs": tensors}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head) + header)}
    answer = httpx.post(f"{address}/v2/models/genrm/infer", content=head + tail, headers=headers)
    if says is None:
        assert answer.json()["outputs"][0] == {"name": "preferred", "shape": [1], "datatype": "BYTES", "data": ["tie"]}
    else:
        assert answer.status_code == 400
        assert says in answer.json()["error"]["message"]


def test_tensors_of_different_lengths_are_an_error(address: str) -> None:
    tensors = [{"name": name, "shape": [2], "datatype": "BYTES", "data": texts} for name, texts in TEXTS.items()]
    tensors[2] |= {"shape": [1], "data": ["short"]}
    answer = httpx.post(f"{address}/v2/models/genrm/infer", json={"inputs": tensors})
    assert answer.status_code == 400
    assert "2 of answer_a, 1 of answer_b" in answer.json()["error"]["message"]
