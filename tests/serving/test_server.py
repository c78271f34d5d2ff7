"""The small OpenAI-compatible server over real HTTP, with tiny models that write what they are told or at random."""

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from reasongenrm.config import EngineConfig
from reasongenrm.generation import GenerationRequest, Sampling, open_engine
from reasongenrm.generation.transformers import load_checkpoint
from reasongenrm.generation.turns import Turns
from reasongenrm.serving.live import LiveModel, _without_unsure_end
from reasongenrm.serving.server import create_app, serve, vllm_command
from tests.endpoints import serving
from tests.tiny import BY_NAME, say, tiny_checkpoint
from tests.waiting import HANG_SECONDS, wait_until

CHATML = BY_NAME["chatml"]
SCRIPT = f"A is right.{CHATML.turn_end}{CHATML.assistant_header}[[A]]{CHATML.turn_end}{CHATML.sequence_end}"
QUESTION = {"model": "judge", "messages": [{"role": "user", "content": "Which?"}], "temperature": 0}
RANDOM = {"temperature": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "judge", "chatml", opening_role="reason")


def load(checkpoint: Path, script: str | None = None, step_seconds: float = 0.0) -> LiveModel:
    """A model that writes at random, or `script`, each step taking at least so long."""
    model, tokenizer = load_checkpoint(checkpoint, "auto")
    if script is not None:
        say(model, tokenizer.encode(script, add_special_tokens=False))
    if step_seconds:
        plain = model.forward

        def slow(*args: Any, **kwargs: Any) -> Any:
            time.sleep(step_seconds)
            return plain(*args, **kwargs)

        model.forward = slow
    return LiveModel(model, Turns(tokenizer, model.generation_config))


@contextmanager
def client(model: LiveModel, **settings: Any) -> Iterator[httpx.Client]:
    with (
        serving(create_app(model, "judge", **settings)) as url,
        httpx.Client(base_url=url, timeout=HANG_SECONDS) as opened,
    ):
        yield opened


@pytest.fixture(scope="module")
def scripted(checkpoint: Path) -> Iterator[httpx.Client]:
    with client(load(checkpoint, SCRIPT)) as opened:
        yield opened


@pytest.fixture(scope="module")
def random(checkpoint: Path) -> Iterator[httpx.Client]:
    with client(load(checkpoint)) as opened:
        yield opened


def ask(opened: httpx.Client, **changes: Any) -> dict[str, Any]:
    response = opened.post("/v1/chat/completions", json=QUESTION | changes)
    assert response.status_code == 200, response.text
    return response.json()


def stream(opened: httpx.Client, **changes: Any) -> list[dict[str, Any]]:
    response = opened.post("/v1/chat/completions", json=QUESTION | {"stream": True} | changes)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, end = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert end == "[DONE]"
    return [json.loads(event) for event in events]


def joined(events: list[dict[str, Any]], index: int) -> dict[str, str]:
    """What a client makes of a stream: each field's pieces put together."""
    fields: dict[str, str] = {}
    for event in events:
        for choice in event["choices"]:
            if choice["index"] == index:
                for name, piece in choice["delta"].items():
                    fields[name] = fields.get(name, "") + piece
    return fields


def error_of(response: httpx.Response) -> tuple[int, str, str | None, str | None]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["type"], error["param"], error["code"]


def test_reply_has_the_reason_under_both_names_and_the_verdict_as_content(scripted: httpx.Client) -> None:
    reply = ask(scripted)
    (choice,) = reply["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "[[A]]",
        "reasoning": "A is right.",
        "reasoning_content": "A is right.",
        "refusal": None,
    }
    assert (choice["finish_reason"], choice["logprobs"], choice["index"]) == ("stop", None, 0)
    assert (reply["object"], reply["model"], reply["id"][:9]) == ("chat.completion", "judge", "chatcmpl-")
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_plain_answer_has_no_reason(scripted: httpx.Client) -> None:
    message = ask(scripted, chat_template_kwargs={"opening_role": "assistant"})["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == ("A is right.", None)


def test_logprobs_are_those_of_the_content(scripted: httpx.Client, checkpoint: Path) -> None:
    content = ask(scripted, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    five = ask(scripted, logprobs=True, top_logprobs=5)["choices"][0]["logprobs"]["content"]
    assert [len(entry["top_logprobs"]) for entry in five] == [5] * len(five)
    assert "".join(entry["token"] for entry in content) == "[[A]]"
    num_vocabulary = load(checkpoint).turns.tokenizer.get_vocab().__len__()
    # The scripted logit is 2, all others are 0: P = e^2 / (e^2 + V - 1).
    logprob = math.log(math.exp(2) / (math.exp(2) + num_vocabulary - 1))
    for entry in content:
        assert entry["logprob"] == pytest.approx(logprob)
        assert entry["bytes"] == list(entry["token"].encode())
        assert [top["logprob"] for top in entry["top_logprobs"][:2]] == pytest.approx([logprob, logprob - 2])
        assert entry["top_logprobs"][0]["token"] == entry["token"]
    # Where a verdict's letter was written the other one is listed too, so that their ratio is never a guess.
    places = [{top["token"] for top in entry["top_logprobs"]} for entry in content]
    assert [{"A", "B"} <= tokens for tokens in places] == [entry["token"] == "A" for entry in content]
    assert {len(entry["top_logprobs"]) for entry in content} == {2}


@pytest.mark.parametrize(
    "changes", [{}, {"stop": ["e", "ab"]}, {"chat_template_kwargs": {"opening_role": "assistant"}}]
)
def test_pieces_of_a_stream_add_up_to_the_whole_reply(random: httpx.Client, changes: dict[str, Any]) -> None:
    more = RANDOM | {"n": 3, "seed": 11, "max_tokens": 60, "logprobs": True} | changes
    whole = ask(random, **more)
    events = stream(random, stream_options={"include_usage": True}, **more)
    for choice in whole["choices"]:
        message, pieces = choice["message"], joined(events, choice["index"])
        assert pieces["role"] == "assistant"
        assert pieces["content"] == message["content"]
        assert pieces.get("reasoning", "") == pieces.get("reasoning_content", "") == (message["reasoning"] or "")
        own = [c for event in events for c in event["choices"] if c["index"] == choice["index"]]
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == [choice["finish_reason"]]
        tokens = [entry for c in own if c["logprobs"] for entry in c["logprobs"]["content"]]
        assert tokens == choice["logprobs"]["content"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    assert len({choice["message"]["content"] or choice["message"]["reasoning"] for choice in whole["choices"]}) > 1


def test_same_seed_gives_the_same_text_and_another_seed_another(random: httpx.Client) -> None:
    texts = [
        ask(random, seed=seed, max_tokens=20, **RANDOM)["choices"][0]["message"]["reasoning"] for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert ask(random, max_tokens=20, **RANDOM)["choices"] != ask(random, max_tokens=20, **RANDOM)["choices"]


def test_endpoint_engine_reads_this_server_as_the_engine_in_the_process_reads_the_model(
    scripted: httpx.Client, checkpoint: Path
) -> None:
    engine = open_engine(f"{scripted.base_url}/v1", EngineConfig())
    assert engine.model_name == "judge"
    messages = ({"role": "user", "content": "Which?"},)
    requests = [
        GenerationRequest("whole", messages, opening_role="reason"),
        GenerationRequest("turn", messages, opening_role="reason", stop_at="turn"),
    ]
    ((whole, turn),) = engine.generate(requests, Sampling(max_tokens=99))
    assert (whole.reason, whole.answer, whole.finish_reason) == ("A is right.", "[[A]]", "stop")
    assert (turn.reason, turn.answer, turn.finish_reason) == ("A is right.", "", "stop")
    local = load_checkpoint(checkpoint, "auto")[1].encode(SCRIPT, add_special_tokens=False)
    assert whole.num_output_tokens == len(local)


def test_stop_string_is_left_out_and_never_streamed(scripted: httpx.Client) -> None:
    (choice,) = ask(scripted, stop="is rig")["choices"]
    assert (choice["message"]["reasoning"], choice["finish_reason"]) == ("A", "stop")
    assert joined(stream(scripted, stop=["never", "is rig"]), 0)["reasoning"] == "A"


def test_unsure_ends_are_held_back() -> None:
    assert _without_unsure_end("half \ufffd", ()) == "half "
    assert _without_unsure_end("a sto", ("stop", "top")) == "a "
    assert _without_unsure_end("a to", ("stop", "top")) == "a "
    assert _without_unsure_end("a so", ("stop",)) == "a so"


def test_max_tokens_cuts_off(scripted: httpx.Client) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        reply = ask(scripted, **{name: 2})
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["usage"]["completion_tokens"] == 2


def test_generation_ends_with_the_context(checkpoint: Path) -> None:
    model = load(checkpoint)
    with client(LiveModel(model._model, model.turns, max_model_len=24)) as opened:
        usage = ask(opened, seed=1)["usage"]
        assert usage["total_tokens"] <= 24
        response = opened.post(
            "/v1/chat/completions", json=QUESTION | {"messages": [{"role": "user", "content": "long " * 30}]}
        )
        assert error_of(response) == (400, "invalid_request_error", "messages", "context_length_exceeded")
        assert "maximum context length is 24 tokens" in response.text
        engine = open_engine(f"{opened.base_url}/v1", EngineConfig(endpoint={"max_failed_fraction": 1}))
        request = GenerationRequest("q", ({"role": "user", "content": "long " * 30},))
        ((one,),) = engine.generate([request], Sampling(max_tokens=9))
        assert one.finish_reason == "length"


def test_content_may_come_in_parts(random: httpx.Client) -> None:
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "ich?"}]
    whole = ask(random, seed=1, max_tokens=9)
    assert (
        ask(random, seed=1, max_tokens=9, messages=[{"role": "user", "content": parts}])["choices"] == whole["choices"]
    )


def test_parameters_at_their_neutral_values_are_let_through(scripted: httpx.Client) -> None:
    assert ask(scripted, frequency_penalty=0.0, presence_penalty=0, user="me")["choices"]


@pytest.mark.parametrize(
    ("changes", "param", "code", "says"),
    [
        ({"tools": []}, "tools", "unknown_parameter", "Unknown parameter: 'tools'"),
        ({"temperature": 3}, "temperature", None, "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", None, "valid number"),
        ({"n": 0}, "n", None, "greater than or equal to 1"),
        ({"messages": []}, "messages", None, "at least 1 item"),
        ({"messages": [{"role": "judge", "content": ""}]}, "messages.0.role", None, "'system', 'user', 'reason'"),
        ({"chat_template_kwargs": {"opening_role": "verdict"}}, "chat_template_kwargs.opening_role", None, "'reason'"),
        ({"top_logprobs": 2}, None, None, "'top_logprobs' needs 'logprobs': true"),
        # As LangChain's with_structured_output sends it.
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "Verdict", "schema": {"type": "object"}, "strict": True},
                }
            },
            "response_format",
            None,
            "cannot hold an answer to a json_schema. Send 'structured_outputs': {'choice': [...]} for one of several",
        ),
        ({"stream_options": {}}, None, None, "'stream_options' needs 'stream': true"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, None, None, "send one of them"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", None, "should be 0"),
    ],
)
def test_bad_parameter_is_refused_by_name(
    scripted: httpx.Client, changes: dict[str, Any], param: str | None, code: str | None, says: str
) -> None:
    response = scripted.post("/v1/chat/completions", json=QUESTION | changes)
    assert error_of(response) == (400, "invalid_request_error", param, code)
    assert says in response.json()["error"]["message"]


def test_other_refusals_have_openais_shape(scripted: httpx.Client) -> None:
    path = "/v1/chat/completions"
    assert error_of(scripted.post(path, content="{", headers={"content-type": "application/json"}))[0] == 400
    assert error_of(scripted.post(path, content=json.dumps(QUESTION), headers={"content-type": "text/plain"}))[0] == 415
    wrong = scripted.post(path, json=QUESTION | {"model": "gpt"})
    assert error_of(wrong) == (404, "invalid_request_error", "model", "model_not_found")
    assert error_of(scripted.get("/v2"))[::3] == (404, "unknown_url")
    assert error_of(scripted.get(path))[::3] == (405, "unknown_url")
    out_of_turn = [{"role": "reason", "content": "A."}, {"role": "user", "content": "Which?"}]
    refused = scripted.post(path, json=QUESTION | {"messages": out_of_turn})
    assert error_of(refused) == (422, "invalid_request_error", "messages", None)
    assert "a reason turn must be followed by an assistant turn" in refused.text


def test_long_body_is_refused(checkpoint: Path) -> None:
    with client(load(checkpoint, SCRIPT), max_request_bytes=1000) as opened:
        assert ask(opened)["choices"]
        response = opened.post("/v1/chat/completions", json=QUESTION | {"user": "x" * 1000})
        assert error_of(response) == (413, "invalid_request_error", None, "request_too_large")


def test_key_guards_everything_but_health(checkpoint: Path) -> None:
    with client(load(checkpoint, SCRIPT), api_key="secret") as opened:
        assert opened.get("/health").json() == {"status": "ok"}
        for response in (opened.get("/v1/models"), opened.post("/v1/chat/completions", json=QUESTION)):
            assert error_of(response) == (401, "invalid_request_error", None, "invalid_api_key")
        wrong = {"Authorization": "Bearer secret2"}
        assert opened.get("/v1/models", headers=wrong).status_code == 401
        opened.headers["Authorization"] = "Bearer secret"
        assert ask(opened)["choices"]
        (card,) = opened.get("/v1/models").json()["data"]
        assert (card["id"], card["object"], card["max_model_len"]) == ("judge", "model", 4096)


def test_failure_is_told_without_its_inside(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load(checkpoint)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret inside")

    model._model.forward = fail
    with client(model) as opened, caplog.at_level(logging.ERROR):
        response = opened.post("/v1/chat/completions", json=QUESTION)
        assert error_of(response) == (500, "server_error", None, None)
        streamed = opened.post("/v1/chat/completions", json=QUESTION | {"stream": True})
        assert streamed.text.rstrip().endswith('"code": null}}')
        assert "secret" not in response.text + streamed.text
        assert "a streamed generation failed" in caplog.text
        assert opened.get("/health").status_code == 200


def test_full_line_is_refused_and_the_endpoint_engine_gets_through(checkpoint: Path) -> None:
    model, began, goes_on = load(checkpoint, SCRIPT), threading.Event(), threading.Event()
    plain = model._model.forward

    def held(*args: Any, **kwargs: Any) -> Any:
        began.set()
        assert goes_on.wait(HANG_SECONDS)
        return plain(*args, **kwargs)

    model._model.forward = held
    with client(model, max_waiting=0) as opened:
        first = threading.Thread(target=ask, args=(opened,))
        first.start()
        assert began.wait(HANG_SECONDS)
        response = opened.post("/v1/chat/completions", json=QUESTION)
        assert error_of(response) == (429, "rate_limit_error", None, "rate_limit_exceeded")
        assert response.headers["retry-after"] == "2"
        engine = open_engine(f"{opened.base_url}/v1", EngineConfig(endpoint={"max_failed_fraction": 1}))
        request = GenerationRequest("q", ({"role": "user", "content": "Which?"},), opening_role="reason")
        threading.Timer(0.5, goes_on.set).start()  # the engine is refused, too, before
        ((one,),) = engine.generate([request], Sampling(max_tokens=99))
        assert one.answer == "[[A]]"
        first.join()


@pytest.mark.parametrize("streamed", [False, True])
def test_generation_ends_when_its_client_goes(checkpoint: Path, streamed: bool) -> None:
    model = load(checkpoint, "word " * 500, step_seconds=0.02)
    steps = []
    plain = model._model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        steps.append(time.monotonic())
        return plain(*args, **kwargs)

    model._model.forward = counted
    with client(model) as opened, socket.create_connection((opened.base_url.host, opened.base_url.port or 0)) as raw:
        body = json.dumps(QUESTION | {"stream": streamed}).encode()
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        wait_until(lambda: len(steps) >= 3)
        raw.close()
        wait_until(lambda: time.monotonic() - steps[-1] > 1)
        assert len(steps) < 500  # of the whole answer
        assert opened.get("/health").status_code == 200


def test_command_for_vllm_hands_on_what_concerns_it() -> None:
    config = EngineConfig(tensor_parallel_size=2, gpu_memory_utilization=0.8, max_model_len=4096, dtype="bfloat16")
    command = vllm_command(Path("/models/judge"), "judge", "0.0.0.0", 8001, config)
    assert command[0] == sys.executable
    assert " ".join(command[1:]) == (
        "-m vllm.entrypoints.cli.main serve /models/judge --served-model-name judge --host 0.0.0.0 --port 8001 "
        "--dtype bfloat16 --tensor-parallel-size 2 --gpu-memory-utilization 0.8 --max-model-len 4096"
    )
    assert "--max-model-len" not in vllm_command(Path("m"), "judge", "127.0.0.1", 8000, EngineConfig())


def test_vllm_tells_a_judges_reason_by_our_own_parser_and_never_by_the_folders(checkpoint: Path) -> None:
    command = vllm_command(checkpoint, "judge", "127.0.0.1", 8000, EngineConfig())
    assert command[-2:] == ["--reasoning-parser", "reasongenrm"]
    assert command[-4] == "--reasoning-parser-plugin"
    parser = Path(command[-3])
    assert parser.is_file()
    assert checkpoint not in parser.parents


def test_vllm_serves_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    class Became(Exception):
        """os.execv does not return."""

    def execv(program: str, command: list[str]) -> None:
        assert program == command[0]
        raise Became(*command)

    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(Became) as became:
        serve(Path("/models/judge"), "judge", "127.0.0.1", 8000, EngineConfig())
    assert list(became.value.args) == vllm_command(Path("/models/judge"), "judge", "127.0.0.1", 8000, EngineConfig())


def test_process_serves_and_ends_on_sigint_amid_a_generation(checkpoint: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import sys; from pathlib import Path; from reasongenrm.config import EngineConfig; "
        "from reasongenrm.serving.server import serve; "
        f"serve(Path(sys.argv[1]), 'judge', '127.0.0.1', {port}, EngineConfig(max_model_len=4000))"
    )
    env = os.environ | {"VLLM_API_KEY": "secret"}
    process = subprocess.Popen([sys.executable, "-c", code, str(checkpoint)], env=env, cwd=Path(__file__).parents[2])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=HANG_SECONDS) as opened:

            def healthy() -> bool:
                assert process.poll() is None
                try:
                    return opened.get("/health").status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(healthy)
            assert opened.get("/v1/models").status_code == 401
            body = QUESTION | RANDOM | {"stream": True, "n": 8}
            headers = {"Authorization": "Bearer secret"}
            with opened.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
                assert response.status_code == 200
                next(response.iter_lines())
                process.send_signal(signal.SIGINT)
            assert process.wait(HANG_SECONDS) in (0, -signal.SIGINT)
    finally:
        process.kill()
        process.wait()
