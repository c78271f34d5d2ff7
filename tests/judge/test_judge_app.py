"""The judge server over real HTTP, in front of a predictor that answers by a rule."""

import asyncio
import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from reasongenrm.judge import predictor as predictor_module
from reasongenrm.judge.judge_app import ServerSettings, create_app
from reasongenrm.judge.server import limits as limits_module
from reasongenrm.judge.server.limits import Limits
from reasongenrm.judge.service import JudgeSettings
from tests.endpoints import FakeEndpoint, serving
from tests.predictors import RulePredictor
from tests.server_words import FILTERED
from tests.waiting import HANG_SECONDS, wait_until

PAIR = {"question": "Which is longer?", "answer_a": "a long answer", "answer_b": "short"}
CHAT = {"model": "rule", "messages": [{"role": "user", "content": "Hello"}]}
KEY = {"Authorization": "Bearer sesame"}


@contextmanager
def judging(predictor: RulePredictor, limits: Limits | None = None, **server: Any) -> Iterator[httpx.Client]:
    with serving(predictor.app) as behind:
        app = create_app(JudgeSettings(f"{behind}/v1"), limits or Limits(), ServerSettings(**server))
        with serving(app) as address, httpx.Client(base_url=address, timeout=HANG_SECONDS) as client:
            yield client


def events_of(text: str) -> list[tuple[str, Any]]:
    lines = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


def is_error(answer: httpx.Response, status: int, code: str) -> bool:
    error = answer.json()["error"]
    assert error["request_id"] == answer.headers["x-request-id"]
    return (answer.status_code, error["code"]) == (status, code)


def metric(client: httpx.Client, line: str) -> float:
    found = re.search(rf"^{re.escape(line)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_pair_batch_list_and_single_answer_are_judged() -> None:
    with judging(RulePredictor()) as client:
        pair = client.post("/v1/pairwise", json=PAIR).json()
        assert (pair["preferred"], pair["consistent"], len(pair["judgments"])) == ("A", True, 2)
        ranked = client.post("/v1/listwise", json={"question": "?", "answers": ["ab", "abcdef", "a" * 20]}).json()
        assert ranked["ranking"] == [2, 1, 0]
        scored = client.post("/v1/pointwise", json={"question": "?", "answer": "a" * 9, "reference": "a"}).json()
        assert scored["score"] == pytest.approx(1 / (1 + 2.718281828**-2))  # the rule: 8 characters longer, over 4
        batch = {"requests": [{"kind": "pairwise", **PAIR}, {"kind": "pairwise", **PAIR, "answer_a": "x" * 500_000}]}
        judged, failed = client.post("/v1/batch", json=batch).json()["results"]
        assert judged["result"]["preferred"] == "A"
        assert judged["error"] is None
        assert failed["result"] is None
        assert failed["error"]["code"] == "too_long"


def test_a_stream_has_the_reasons_of_both_orders_then_the_result() -> None:
    with judging(RulePredictor()) as client:
        answer = client.post("/v1/pairwise", json={**PAIR, "stream": True})
        whole = client.post("/v1/pairwise", json=PAIR).json()
    events = events_of(answer.text)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert events[-1][0] == "result"
    assert events[-1][1]["judgments"] == whole["judgments"]
    for judgment in whole["judgments"]:
        pieces = [data["delta"] for name, data in events if name == "reason" and data["order"] == judgment["order"]]
        assert len(pieces) > 1
        assert "".join(pieces) == judgment["reason"]


def test_a_chat_is_passed_on_as_it_was_sent() -> None:
    predictor = RulePredictor()
    with judging(predictor) as client:
        whole = client.post("/v1/chat/completions", json={**CHAT, "future_option": {"x": [1]}})
        streamed = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert whole.json()["choices"][0]["message"]["content"] == "[[A]]"
    assert predictor.bodies[0] == {**CHAT, "future_option": {"x": [1]}}
    assert streamed.text.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/pairwise", PAIR),
        ("/v1/pairwise", {**PAIR, "stream": True}),
        ("/v1/batch", {"requests": [{"kind": "pairwise", **PAIR}]}),
        ("/v1/models/reasongenrm:predict", {"instances": [PAIR]}),
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True}),
    ],
)
def test_a_client_that_leaves_takes_its_generations_along(path: str, body: dict[str, Any]) -> None:
    predictor = RulePredictor(latency=60)
    with judging(predictor) as client:

        async def leave() -> None:
            async with httpx.AsyncClient(base_url=client.base_url) as leaving:
                asked = asyncio.create_task(leaving.post(path, json=body))
                while not predictor.num_open:
                    await asyncio.sleep(0.01)
                asked.cancel()
                await asyncio.wait([asked])

        asyncio.run(asyncio.wait_for(leave(), HANG_SECONDS))
        wait_until(lambda: predictor.num_open == 0 and predictor.num_abandoned > 0)
        wait_until(lambda: metric(client, "reasongenrm_judge_abandoned_total") == 1)
        wait_until(lambda: metric(client, "reasongenrm_judge_in_flight") == 0)


def test_requests_above_the_limit_get_429_and_the_others_an_answer() -> None:
    predictor = RulePredictor(latency=HANG_SECONDS)
    with judging(predictor, Limits(max_requests=2, retry_after_seconds=7)) as client:

        async def ask_all() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=client.base_url, timeout=HANG_SECONDS) as many:
                asked = [asyncio.create_task(many.post("/v1/pairwise", json=PAIR)) for _ in range(5)]
                while sum(task.done() for task in asked) < 3 or predictor.num_open < 4:  # two orders of each that may
                    await asyncio.sleep(0.01)
                predictor.latency = 0.0
                return await asyncio.gather(*asked)

        answers = asyncio.run(ask_all())
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert is_error(refused, 429, "overloaded")
        assert refused.headers["retry-after"] == "7"
        assert metric(client, 'reasongenrm_judge_refused_total{cause="overloaded"}') == 3
        assert client.post("/v1/pairwise", json=PAIR).status_code == 200, "the places are free again"


def test_bodies_are_limited_alone_and_together() -> None:
    with judging(RulePredictor(), Limits(max_body_bytes=100_000, max_held_bytes=50_000)) as client:
        for _ in range(3):  # what is left of a refused body does not disturb the connection's next request
            assert is_error(client.post("/v1/pairwise", content=b"x" * 60_000), 429, "overloaded")
            assert client.post("/v1/pairwise", json={**PAIR, "rubric": "x" * 18_000}).status_code == 200
    with judging(RulePredictor(), Limits(max_body_bytes=100_000)) as client:
        assert is_error(client.post("/v1/pairwise", content=b"x" * 5_000_000), 413, "too_large")
        assert client.post("/v1/pairwise", json=PAIR).status_code == 200


def test_a_body_that_trickles_in_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "BODY_SECONDS", 0.2)
    with judging(RulePredictor(), Limits(max_requests=1)) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=HANG_SECONDS) as slow:
            slow.sendall(b"POST /v1/pairwise HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        assert client.post("/v1/pairwise", json=PAIR).status_code == 200


def test_a_request_that_takes_too_long_ends_with_504_or_an_event() -> None:
    predictor = RulePredictor(latency=60)
    with judging(predictor, Limits(request_seconds=0.5)) as client:
        assert is_error(client.post("/v1/pairwise", json=PAIR), 504, "too_slow")
        streamed = client.post("/v1/pairwise", json={**PAIR, "stream": True})
        assert events_of(streamed.text)[-1][1]["code"] == "too_slow"
        chat = client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text
        last = chat.strip().split("\n\n")[-1].removeprefix("data: ")
        assert json.loads(last)["error"]["code"] == "too_slow"
        wait_until(lambda: predictor.num_open == 0)


def test_the_key_is_wanted_where_something_can_be_learned_or_done() -> None:
    with judging(RulePredictor(), Limits(api_key="sesame")) as client:
        for path in ("/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/v2/health/live", "/v2"):
            assert client.get(path).status_code == 200, path
        for headers in (
            {},
            {"Authorization": "Bearer sesam"},
            {"Authorization": "sesame"},
            {"Authorization": "Basic sesame"},
        ):
            assert is_error(client.post("/v1/pairwise", json=PAIR, headers=headers), 401, "wrong_key")
            assert is_error(client.get("/v1/models", headers=headers), 401, "wrong_key")
        assert client.post("/v1/pairwise", json=PAIR, headers=KEY).status_code == 200
        assert client.get("/v1/models", headers={"Authorization": "bearer sesame"}).status_code == 200
        described = client.get("/openapi.json").json()
    assert described["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    assert described["paths"]["/v1/pairwise"]["post"]["security"] == [{"key": []}]
    assert described["paths"]["/healthz"]["get"]["security"] == []


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("POST", "/v1/nothing", b"{}", 404, "not_found"),
        ("POST", "/v1/pairwise/", b"{}", 404, "not_found"),
        ("POST", "/v1/models/other:predict", json.dumps({"instances": [PAIR]}).encode(), 404, "no_model"),
        ("POST", "/v2/repository/models/reasongenrm/unload", b"{}", 404, "not_found"),
        ("GET", "/v1/pairwise", b"", 405, "wrong_method"),
        ("POST", "/v1/pairwise", b"{", 422, "not_json"),
        ("POST", "/v1/pairwise", b'{"question": "?"}', 422, "invalid"),
        ("POST", "/v1/pairwise", json.dumps({**PAIR, "\ud800": 1}).encode(), 422, "invalid"),
        ("POST", "/v1/pairwise", json.dumps({**PAIR, "votes": 10**400}).encode(), 422, "invalid"),
        ("POST", "/v1/pairwise", b'{"question": "\xff"}', 400, "not_json"),
    ],
)
def test_every_error_has_one_shape(method: str, path: str, content: bytes, status: int, code: str) -> None:
    with judging(RulePredictor()) as client:
        headers = {"Content-Type": "application/json"}
        assert is_error(client.request(method, path, content=content, headers=headers), status, code)


def test_a_sane_request_id_is_kept_and_any_other_replaced() -> None:
    with judging(RulePredictor()) as client:
        answer = client.post("/v1/pairwise", json=PAIR, headers={"X-Request-ID": "trace 7"})
        assert answer.headers["x-request-id"] == answer.json()["id"] == "trace 7"
        for bad in (b"x" * 129, b"\xc3\xa4", b""):
            made = client.get("/healthz", headers={b"X-Request-ID": bad}).headers["x-request-id"]
            assert re.fullmatch("[0-9a-f]{16}", made)


def test_without_its_predictor_the_judge_lives_and_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "PATIENCE_SECONDS", 0.3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_app(JudgeSettings(f"http://127.0.0.1:{port}/v1"), Limits(), ServerSettings())
    with serving(app) as address, httpx.Client(base_url=address, timeout=HANG_SECONDS) as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        assert is_error(client.get("/readyz"), 503, "predictor_unavailable")
        assert client.get("/v2/health/ready").status_code == 503
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert is_error(answer, 503, "predictor_unavailable")
        assert int(answer.headers["retry-after"]) > 0


def test_a_predictor_that_redirects_is_a_502_with_its_target_and_gets_no_second_request() -> None:
    def away(*_: Any) -> Response:
        return Response(status_code=307, headers={"Location": "http://me:canary@elsewhere.invalid/v1"})

    endpoint = FakeEndpoint(away)
    with endpoint.running() as url:
        app = create_app(JudgeSettings(url.replace("://", "://me:canary@")), Limits(), ServerSettings())
        with serving(app) as address, httpx.Client(base_url=address, timeout=HANG_SECONDS) as client:
            for path, body in (("/v1/pairwise", PAIR), ("/v1/chat/completions", CHAT)):
                answer = client.post(path, json=body)
                assert is_error(answer, 502, "predictor_refused")
                said = answer.json()["error"]["message"]
                assert "HTTP 307: a redirect to http://elsewhere.invalid/v1" in said
                assert "canary" not in said
    assert [body["model"] for body in endpoint.bodies].count(CHAT["model"]) == 1, "it is not asked again"


def test_texts_that_a_content_filter_stops_are_the_callers_to_change() -> None:
    status, body = FILTERED["azure"]
    with FakeEndpoint(lambda *_: JSONResponse(body, status)).running() as url:
        app = create_app(JudgeSettings(url), Limits(), ServerSettings())
        with serving(app) as address, httpx.Client(base_url=address, timeout=HANG_SECONDS) as client:
            answer = client.post("/v1/pairwise", json=PAIR)
    assert is_error(answer, 422, "filtered")
    assert "content management policy" in answer.json()["error"]["message"]


def test_the_page_of_the_api_fetches_nothing_from_elsewhere() -> None:
    with judging(RulePredictor()) as client:
        page = client.get("/docs").text
        fetched = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert fetched
        assert not [address for address in fetched if "//" in address]
        assert all(client.get(address).status_code == 200 for address in fetched)


def test_metrics_count_verdicts_flips_and_tokens() -> None:
    with judging(RulePredictor(rule=lambda _a, _b: 0.9)) as client:  # follows the place: every pair flips
        assert client.post("/v1/pairwise", json=PAIR).json()["preferred"] == "tie"
        name = "reasongenrm_judge"
        assert metric(client, f'{name}_verdicts_total{{order="given",verdict="A"}}') == 1
        assert metric(client, f'{name}_verdicts_total{{order="swapped",verdict="A"}}') == 1
        assert metric(client, f'{name}_pairs_total{{outcome="flipped"}}') == 1
        assert metric(client, f'{name}_tokens_total{{kind="output"}}') == 40  # 20 a generation
        assert metric(client, f'{name}_requests_total{{route="/v1/pairwise",status="200"}}') == 1
        assert metric(client, f"{name}_generation_seconds_count") == 2


@pytest.mark.parametrize("log_text", [False, True])
def test_the_log_counts_the_work_and_has_text_only_when_told_to(
    log_text: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "reasongenrm.judge.server.limits")
    batch = {"requests": [{"kind": "pairwise", **PAIR}] * 3}
    with judging(RulePredictor(), log_text=log_text) as client:
        client.post("/v1/batch", json=batch, headers={"X-Request-ID": "b1"})
        client.post("/v1/pairwise", json={**PAIR, "stream": True}, headers={"X-Request-ID": "s1"})
        client.get("/healthz")
    lines = {record.fields["request_id"]: record.fields for record in caplog.records if record.message == "answered"}  # type: ignore[attr-defined]
    assert set(lines) == {"b1", "s1"}, "probes are not logged"
    assert lines["b1"]["generations"] == 6
    assert lines["b1"]["output_tokens"] == 120
    assert lines["b1"]["verdicts"] == {"A": 3, "B": 3}
    assert lines["b1"]["pairs"] == {"consistent": 3}
    assert (lines["s1"]["route"], lines["s1"]["status"], lines["s1"]["generations"]) == ("/v1/pairwise", 200, 2)
    assert ("a long answer" in str(lines["b1"])) == ("a long answer" in str(lines["s1"])) == log_text


@contextmanager
def judge_process(predictor_url: str, log: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A judge's server as a process, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "reasongenrm", "judge-server", "--predictor", f"{predictor_url}/v1"]
    environment = {name: value for name, value in os.environ.items() if name not in ("JUDGE_API_KEY", "VLLM_API_KEY")}
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--http_port", str(port), "--model_name", "genrm", *options],
            env=environment,
            stderr=stderr,
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: process.poll() is not None or _answers(f"http://127.0.0.1:{port}/readyz"))
            assert process.poll() is None, log.read_text()
            yield process, port
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("about", [None, "trained to judge"])
def test_list_of_models_says_what_the_judge_is(about: str | None) -> None:
    with serving(RulePredictor().app) as behind:
        app = create_app(JudgeSettings(f"{behind}/v1"), Limits(), ServerSettings(about=about))
        with serving(app) as url:
            assert httpx.get(f"{url}/v1/models").json()["data"][0]["about"] == about


def test_sigterm_lets_a_request_under_way_end(tmp_path: Path) -> None:
    predictor, log = RulePredictor(latency=1.5), tmp_path / "stderr"
    with serving(predictor.app) as behind, judge_process(behind, log) as (process, port):
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/v1/models").json()["models"] == ["genrm"]
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/pairwise", json=PAIR, timeout=HANG_SECONDS))
        )
        asking.start()
        wait_until(lambda: predictor.num_open == 2)
        process.send_signal(signal.SIGTERM)
        asking.join(HANG_SECONDS)
        assert process.wait(HANG_SECONDS) == 128 + signal.SIGTERM  # as a shell says it
    assert answers[0].json()["preferred"] == "A"
    errors = log.read_text()
    logged = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert [line["status"] for line in logged if line.get("route") == "/v1/pairwise"] == [200]
    notes = [line for line in errors.splitlines() if line.strip() and not line.startswith("{")]
    assert "Ctrl-C stops" in " ".join(notes), notes
    assert "a long answer" not in errors
    assert "Traceback" not in errors


def test_between_sigterm_and_its_end_every_answer_is_the_last_of_its_connection(tmp_path: Path) -> None:
    with (
        serving(RulePredictor().app) as behind,
        judge_process(behind, tmp_path / "log", "--drain-seconds=600") as found,
    ):
        process, port = found
        kept = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_SECONDS)

        def ask(client: http.client.HTTPConnection) -> tuple[int, str | None]:
            client.request("POST", "/v1/pairwise", json.dumps(PAIR), {"Content-Type": "application/json"})
            answer = client.getresponse()
            answer.read()
            return answer.status, answer.headers["connection"]

        def ask_anew() -> tuple[int, str | None]:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_SECONDS)) as client:
                return ask(client)

        assert ask(kept) == (200, None)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: ask_anew() == (200, "close"))
        assert ask(kept) == (200, "close")  # on the connection of before
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)  # a second one ends it
        assert process.wait(HANG_SECONDS) == 128 + signal.SIGTERM  # as a shell says it
        assert not _answers(f"http://127.0.0.1:{port}/healthz")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_the_command_line_does_not_import_kserve() -> None:
    code = "import sys, reasongenrm.cli; sys.exit('kserve' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=HANG_SECONDS, check=False).returncode == 0
