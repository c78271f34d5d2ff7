"""Bodies that are sent and replies that are read, in the shapes of OpenAI and of vLLM 0.32."""

import json
from typing import Any

import pytest

from reasongenrm.generation.chat_completions import Completion, chat_body, join_parts, read_chunk, read_completion
from reasongenrm.generation.seam import GenerationRequest, Sampling

MESSAGES = ({"role": "user", "content": "Judge."},)
CHOICES = ("[[A]]", "[[B]]")


def body(request: GenerationRequest, sampling: Sampling, **more: Any) -> dict[str, Any]:
    """The body as a server reads it."""
    found: dict[str, Any] = json.loads(json.dumps(chat_body("judge", request, sampling, 3, **more)))
    return found


def test_plain_request_has_openais_fields_alone() -> None:
    assert body(GenerationRequest("q", MESSAGES), Sampling(9, temperature=0.5, top_p=0.9)) == {
        "model": "judge",
        "messages": [{"role": "user", "content": "Judge."}],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
    }


def test_every_extension_is_sent_when_it_is_asked_for() -> None:
    request = GenerationRequest("q", MESSAGES, opening_role="reason", stop_at="turn")
    found = body(request, Sampling(40, verdict_logprobs=True), choices=CHOICES, keep_markup=True)
    assert found["chat_template_kwargs"] == {"opening_role": "reason"}
    assert found["stop"] == ["<|eot_id|>", "<|im_end|>", "<end_of_turn>"]
    assert (found["logprobs"], found["top_logprobs"], found["skip_special_tokens"]) == (True, 20, False)
    assert found["structured_outputs"] == {"choice": ["[[A]]", "[[B]]"]}
    assert found["thinking_token_budget"] == 24  # 40, less 16 for the assistant turn's opening and a verdict


def reply(**choice: Any) -> dict[str, Any]:
    """A reply of vLLM 0.32, with the fields that it sends and nobody here reads."""
    message = {"role": "assistant", "content": "[[A]]", "refusal": None, "annotations": None, "tool_calls": []}
    usage = {"prompt_tokens": 7, "total_tokens": 12, "completion_tokens": 5, "prompt_tokens_details": None}
    one = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None, **choice}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "choices": [one], "usage": usage}


def test_reply_is_read() -> None:
    found = read_completion(json.dumps(reply()))
    assert found == Completion(
        content="[[A]]", finish_reason="stop", num_prompt_tokens=7, num_output_tokens=5, has_usage=True
    )


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reason_is_read_under_both_of_its_names(name: str) -> None:
    found = read_completion(json.dumps(reply(message={"content": None, name: " so "})))
    assert (found.reason, found.content) == (" so ", "")


def test_log_probabilities_are_read_without_what_is_not_used() -> None:
    listed = {"token": "A", "logprob": -0.5, "bytes": [65]}
    tokens = [{**listed, "top_logprobs": [listed]}, {"token": "]]", "logprob": -9999}]
    found = read_completion(json.dumps(reply(logprobs={"content": tokens})))
    assert found.tokens == [
        {"token": "A", "logprob": -0.5, "top_logprobs": [{"token": "A", "logprob": -0.5}]},
        {"token": "]]", "logprob": -9999.0},
    ]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("<html>", "^not JSON: expected value at line 1 column 1$"),
        ("[1]", "should be an object"),
        ('{"usage": null}', "choices: Field required"),
        (json.dumps(reply() | {"choices": []}), "expected one choice with a message"),
        (json.dumps(reply() | {"choices": [{"delta": {}}]}), "expected one choice with a message"),
        (json.dumps(reply(message={"content": 3})), r"choices\.0\.message\.content"),
        (json.dumps(reply(logprobs={"content": [{"token": "A"}]})), r"choices\.0\.logprobs\.content\.0\.logprob: "),
    ],
)
def test_what_is_no_completion_is_refused_by_its_place(data: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_completion(data)


def test_parts_join_to_the_whole() -> None:
    token = {"token": "[[A]]", "logprob": -0.1, "bytes": None, "top_logprobs": []}
    usage = {"prompt_tokens": 7, "completion_tokens": 5}
    chunks = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None}]},
        {"choices": [{"index": 0, "delta": {"reasoning": "A "}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"reasoning": "wins.", "reasoning_truncated": True}}]},
        {"choices": [{"index": 0, "delta": {"content": "[[A]]"}, "logprobs": {"content": [token]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": usage},
    ]
    joined = join_parts([read_chunk(json.dumps(chunk)) for chunk in chunks])
    message = {"content": "[[A]]", "reasoning": "A wins.", "reasoning_truncated": True}
    assert joined == read_completion(json.dumps(reply(message=message, logprobs={"content": [token]})))
    assert join_parts([]) == Completion()
    with pytest.raises(ValueError, match="choices: Field required"):
        read_chunk('{"error": {"message": "out of memory"}}')
