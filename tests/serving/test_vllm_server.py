"""vLLM itself with the reasoning parser: needs REASONGENRM_VLLM_PYTHON, a Python that has vLLM (for CPUs or GPUs).

docs/judge.md says how to make one. A tiny random model of each family stands in for a judge: its reason is closed by
vLLM's thinking budget, its verdict is held to the choices.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from reasongenrm.config import EngineConfig
from reasongenrm.generation import GenerationRequest, Sampling, open_engine
from reasongenrm.serving.server import vllm_command
from tests.tiny import BY_NAME, FAMILIES, tiny_checkpoint

PYTHON = os.environ.get("REASONGENRM_VLLM_PYTHON")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(PYTHON is None, reason="REASONGENRM_VLLM_PYTHON names no Python with vLLM"),
    pytest.mark.timeout(900),
]
START_SECONDS = 600
NUM_TOKENS = 980  # all that the context has room for: some seconds of work
CHOICES = ["[[A]]", "[[B]]"]
HELD = {"structured_outputs": {"choice": CHOICES}, "thinking_token_budget": 12}
QUESTION: dict[str, Any] = {"model": "judge", "messages": [{"role": "user", "content": "Which?"}], "temperature": 1}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def url(family: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    assert PYTHON is not None
    folder = tmp_path_factory.mktemp("vllm")
    checkpoint = tiny_checkpoint(folder / "judge", family, opening_role="reason", seed=3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = EngineConfig(dtype="float32", max_model_len=1024)
    command = [PYTHON, *vllm_command(checkpoint, "judge", "127.0.0.1", port, config)[1:]]
    command += ["--enforce-eager", "--max-num-seqs", "8"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address, process, folder / "log")
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, f"vLLM ended:\n{log.read_text()[-3000:]}"
        try:
            if httpx.get(f"{address}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise AssertionError(f"vLLM did not start in {START_SECONDS} s:\n{log.read_text()[-3000:]}")


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def without_markup(text: str, family: str) -> bool:
    markup = BY_NAME[family]
    return not any(token in text for token in (markup.turn_end, markup.sequence_end, markup.opening("assistant")))


def test_reason_and_verdict_come_apart(client: openai.OpenAI, family: str) -> None:
    for seed in range(6):
        # A client that wants the markup away must not lose the reason's end by it.
        body = HELD | ({"skip_special_tokens": True} if seed % 2 else {})
        reply = client.chat.completions.create(**QUESTION, seed=seed, max_tokens=60, extra_body=body)
        (choice,) = reply.choices
        reason: str = choice.message.reasoning  # type: ignore[attr-defined]
        assert choice.finish_reason == "stop"
        assert reason
        assert without_markup(reason, family)
        assert choice.message.content in CHOICES


def test_stream_has_the_reason_first_then_the_verdict(client: openai.OpenAI, family: str) -> None:
    whole = client.chat.completions.create(**QUESTION, seed=3, max_tokens=60, extra_body=HELD).choices[0].message
    order, reason, content = [], "", ""
    for chunk in client.chat.completions.create(**QUESTION, seed=3, max_tokens=60, stream=True, extra_body=HELD):
        for choice in chunk.choices:
            piece = getattr(choice.delta, "reasoning", None) or ""
            reason += piece
            content += choice.delta.content or ""
            order += ["reason"] * bool(piece) + ["content"] * bool(choice.delta.content)
    assert (reason, content) == (whole.reasoning, whole.content)  # type: ignore[attr-defined]
    assert without_markup(reason + content, family)
    assert order == sorted(order, reverse=True)
    assert order.count("reason") > 1


def test_reason_without_an_end_is_no_content(client: openai.OpenAI) -> None:
    held = {"structured_outputs": {"choice": CHOICES}}
    (choice,) = client.chat.completions.create(**QUESTION, seed=1, max_tokens=12, extra_body=held).choices
    assert (choice.finish_reason, choice.message.content) == ("length", "")
    assert choice.message.reasoning  # type: ignore[attr-defined]


def test_answer_without_a_reason_is_content_alone(client: openai.OpenAI, family: str) -> None:
    plain = {"chat_template_kwargs": {"opening_role": "assistant"}}
    held = {"structured_outputs": {"choice": CHOICES}} | plain
    message = client.chat.completions.create(**QUESTION, seed=1, max_tokens=20, extra_body=held).choices[0].message
    assert message.reasoning is None  # type: ignore[attr-defined]
    assert message.content in CHOICES
    turns = [*QUESTION["messages"], {"role": "reason", "content": "A is right."}]
    asked = QUESTION | {"messages": turns}
    del held["chat_template_kwargs"]
    second = client.chat.completions.create(**asked, seed=1, max_tokens=20, extra_body=held).choices[0].message
    assert second.content in CHOICES
    chunks = client.chat.completions.create(**QUESTION, seed=2, max_tokens=200, stream=True, extra_body=plain)
    streamed = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert streamed
    assert without_markup(streamed, family)


def test_logprobs_have_both_letters_where_the_verdict_is(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        **QUESTION, seed=1, max_tokens=60, logprobs=True, top_logprobs=20, extra_body=HELD
    )
    verdict = reply.choices[0].message.content
    assert verdict is not None
    tokens = reply.choices[0].logprobs.content  # type: ignore[union-attr]
    letter = [token for token in tokens if token.token == verdict[2]][-1]  # type: ignore[union-attr]
    assert {"A", "B"} <= {entry.token for entry in letter.top_logprobs}


def test_engine_reads_the_verdicts_probability(url: str) -> None:
    engine = open_engine(f"{url}/v1", EngineConfig())
    request = GenerationRequest("q", tuple(QUESTION["messages"]), opening_role="reason")
    ((one,),) = engine.generate([request], Sampling(max_tokens=12))
    assert one.reason
    assert (one.answer, one.finish_reason) == ("", "length")


@pytest.mark.parametrize("streamed", [True, False])
def test_generation_ends_when_its_client_goes(url: str, streamed: bool) -> None:
    def num_generated() -> float:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_total{"))

    before = num_generated()
    body = QUESTION | {"max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": streamed}
    with httpx.Client(timeout=60) as opened:
        request = opened.build_request("POST", f"{url}/v1/chat/completions", json=body, timeout=0.4)
        started = time.monotonic()
        # A whole reply comes too late for the client; of a stream it reads some and leaves.
        with contextlib.suppress(httpx.ReadTimeout):
            for _ in opened.send(request, stream=True).iter_lines():
                if time.monotonic() - started > 0.4:
                    break
    last = num_generated()
    time.sleep(2)
    while (now := num_generated()) != last:
        last = now
        time.sleep(2)
    assert 0 < last - before < NUM_TOKENS
