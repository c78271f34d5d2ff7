"""What a server turns out not to take, against real HTTP servers that refuse it in the words of the real ones."""

import json
import logging
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from reasongenrm.config import EngineConfig
from reasongenrm.errors import EngineError
from reasongenrm.generation.endpoint import EndpointEngine
from reasongenrm.generation.seam import Generation, GenerationRequest, Sampling
from tests.endpoints import FakeEndpoint, completion, refusal

WARM = Sampling(max_tokens=9, temperature=0.7, verdict_logprobs=True)


def unsupported(param: str, message: str, code: str = "unsupported_parameter") -> Response:
    return refusal(400, message, type="invalid_request_error", param=param, code=code)


def reasoning_model(body: dict[str, Any], _: int) -> Response:
    """Refuses one field at a time, as OpenAI's reasoning models do."""
    if "max_tokens" in body:
        return unsupported(
            "max_tokens",
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
            "instead.",
        )
    if body.get("temperature", 1) != 1:
        return unsupported(
            "temperature",
            f"Unsupported value: 'temperature' does not support {body['temperature']} with this model. Only the "
            "default (1) value is supported.",
            "unsupported_value",
        )
    if "top_p" in body:
        return unsupported("top_p", "Unsupported parameter: 'top_p' is not supported with this model.")
    if "logprobs" in body:
        return refusal(403, "You are not allowed to request logprobs from this model", type="invalid_request_error")
    return completion("fine")


def asked(reply: Any, num: int = 4, sampling: Sampling = WARM, **config: Any) -> tuple[FakeEndpoint, list[Generation]]:
    fake = FakeEndpoint(reply)
    with fake.running() as url:
        requests = [GenerationRequest(f"q{i}", ({"role": "user", "content": str(i)},)) for i in range(num)]
        batches = list(EndpointEngine(url, EngineConfig(**config)).generate(requests, sampling))
    return fake, [generation for batch in batches for generation in batch]


def test_what_is_refused_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fake, found = asked(reasoning_model, concurrency=1)
    assert [one.answer for one in found] == ["fine"] * 4
    assert len(fake.bodies) == 4 + 4, "each field is refused once, in the first request"
    for body in fake.bodies[4:]:
        assert body["max_completion_tokens"] == 9
        assert not {"max_tokens", "temperature", "top_p", "logprobs", "top_logprobs"} & set(body)
    assert [message.split(" does not take or give ")[1] for message in caplog.messages] == [
        "max_tokens: max_completion_tokens is sent instead",
        "temperature: it draws at its own temperature, 1",
        "top_p: it draws from all tokens",
        "logprobs: probabilities of the verdicts are not known",
    ]


def test_requests_side_by_side_all_pass(caplog: pytest.LogCaptureFixture) -> None:
    _, found = asked(reasoning_model, num=40, concurrency=16)
    assert [one.answer for one in found] == ["fine"] * 40
    assert len(caplog.messages) == 4


def test_what_is_told_beforehand_is_never_sent(caplog: pytest.LogCaptureFixture) -> None:
    told = {"limit_field": "max_completion_tokens", "temperature": False, "top_logprobs": 0}
    fake, _ = asked(lambda *_: completion("fine"), num=1, endpoint=told)
    assert fake.bodies[0].keys() == {"model", "messages", "max_completion_tokens", "top_p", "seed"}
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("status", "body"),
    [
        # vLLM with --max-logprobs 5; text-generation-inference with --max-top-n-tokens 5; DeepSeek's and others' words.
        (
            400,
            {
                "error": {
                    "message": "Requested sample logprobs of 20, which is greater than max allowed: 5",
                    "type": "BadRequestError",
                    "param": "logprobs",
                    "code": 400,
                }
            },
        ),
        (
            422,
            {
                "error": "Input validation error: `top_n_tokens` must be >= 0 and <= 5. Given: 20",
                "error_type": "validation",
            },
        ),
        (400, {"error": {"message": "Invalid top_logprobs value, the valid range of top_logprobs is [0, 5]"}}),
    ],
)
def test_fewer_log_probabilities_are_asked_for_where_a_server_has_fewer(
    status: int, body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    listed = [
        {"token": "[[", "logprob": -0.1, "top_logprobs": []},
        {
            "token": "A",
            "logprob": -0.5,
            "top_logprobs": [{"token": "A", "logprob": -0.5}, {"token": "B", "logprob": -0.5}],
        },
        {"token": "]]", "logprob": -0.1, "top_logprobs": []},
    ]

    def reply(sent: dict[str, Any], _: int) -> Response:
        if sent["top_logprobs"] > 5:
            return JSONResponse(body, status)
        answer = json.loads(completion("[[A]]").body)
        answer["choices"][0]["logprobs"] = {"content": listed}
        return JSONResponse(answer)

    fake, found = asked(reply, num=3, concurrency=1)
    assert [sent["top_logprobs"] for sent in fake.bodies] == [20, 5, 5, 5]
    assert [one.p_a for one in found] == [0.5] * 3
    assert [message.split(": ")[-1] for message in caplog.messages] == ["it gives at most 5 of the 20 asked for"]


def test_a_value_that_is_wrong_is_no_lack() -> None:
    with pytest.raises(EngineError, match=r"1 of 1 requests failed.*temperature must be at most 2"):
        asked(lambda *_: unsupported("temperature", "temperature must be at most 2", "invalid_value"), num=1)
