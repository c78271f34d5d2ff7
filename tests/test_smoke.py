"""What a smoke run starts from is whole, in a folder and in a store; and the run it is made for ends with a served judge."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from reasongenrm.config import load_config
from reasongenrm.demo import NUM_BENCHMARK, NUM_PREFERENCES
from reasongenrm.errors import InputError
from reasongenrm.model import import_model
from reasongenrm.smoke import check_completion, check_judgment, main, write_smoke_inputs
from reasongenrm.store import Store, read_uri
from tests.tiny import tiny_checkpoint

CONFIG = Path(__file__).parents[1] / "pipelines" / "configs" / "smoke.yaml"


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "COLUMNS": "120", **environment}
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, env=env, check=False, timeout=900
    )


def test_inputs_in_a_store_can_be_imported_and_read(store: Store) -> None:
    model, preferences, benchmark = write_smoke_inputs(f"{store.uri}/inputs")
    assert model == f"{store.uri}/inputs/model"
    base = import_model(store, load_config(CONFIG).model, model)
    assert base.metrics["chat_family"] == "chatml"
    assert base.metrics["num_parameters"] < 100_000
    assert len(read_uri(preferences).splitlines()) == NUM_PREFERENCES
    assert len(read_uri(benchmark).splitlines()) == NUM_BENCHMARK


def test_inputs_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = (write_smoke_inputs(str(tmp_path / name)) for name in "ab")
    assert [Path(path).name for path in first] == ["model", "preferences.jsonl", "benchmark.jsonl"]
    for one, other in zip(first, second, strict=True):
        files = [one] if Path(one).is_file() else sorted(str(path) for path in Path(one).iterdir())
        for path in files:
            assert Path(path).read_bytes() == Path(path.replace(one, other)).read_bytes()


def test_unreachable_store_ends_with_a_message_and_no_trace() -> None:
    ended = run("reasongenrm.smoke", "write", "s3:///no-bucket")
    assert ended.returncode == 1
    assert "smoke: store 's3:///no-bucket': expected s3://bucket or s3://bucket/prefix." in ended.stderr
    assert "Traceback" not in ended.stderr


def test_server_of_the_serving_pod_wants_the_key_and_gives_a_verdict_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_checkpoint(tmp_path / "model", "chatml", opening_role="reason")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # As the ServingRuntime of the kind overlay starts it, but for the address: a pod listens on all of its own.
    command = [sys.executable, "-m", "reasongenrm", "serve", "--model", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--max-model-len=4096"]
    server = subprocess.Popen(command, env={**os.environ, "VLLM_API_KEY": "secret"}, stderr=subprocess.DEVNULL)
    try:
        base, headers = f"http://127.0.0.1:{port}/v1", {"Authorization": "Bearer secret"}
        for _ in range(1200):
            assert server.poll() is None
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        body = {"model": "reasongenrm", "messages": [{"role": "user", "content": "Name three birds."}], "max_tokens": 4}
        assert httpx.post(f"{base}/chat/completions", json=body, timeout=60).status_code == 401
        answer = httpx.post(f"{base}/chat/completions", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200
        check_completion(answer.text)
        pair = ("--question", "Name a river.", "--answer-a", "The Nile.", "--answer-b", "Cats.")
        asked = ("reasongenrm", "judge", "--endpoint", base, *pair, "--json", "--set", "evaluate.max_tokens=16")
        judged = run(*asked, OPENAI_API_KEY="secret")
        assert judged.returncode == 0, judged.stderr
        (tmp_path / "judgment.json").write_text(judged.stdout, encoding="utf-8")
        (tmp_path / "completion.json").write_text(answer.text, encoding="utf-8")
        files = (str(tmp_path / "completion.json"), str(tmp_path / "judgment.json"))
        main(["check", *files])
        assert "reason (swapped): " in capsys.readouterr().out
        with pytest.raises(InputError, match="is no chat completion"):
            main(["check", files[1], files[0]])
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_answers_of_another_form_are_refused() -> None:
    choice = {"message": {"content": "x"}, "finish_reason": "stop"}
    good = {"object": "chat.completion", "choices": [choice], "usage": {"completion_tokens": 1}}
    assert check_completion(json.dumps(good)) == "x"
    for change in ({"choices": []}, {"object": "text"}, {"usage": {"completion_tokens": 0}}):
        with pytest.raises(InputError, match="chat completion"):
            check_completion(json.dumps({**good, **change}))
    with pytest.raises(InputError, match=r"is no chat completion .*no healthy upstream"):
        check_completion("no healthy upstream")
    with pytest.raises(InputError, match="is no judgment"):
        check_judgment("{}")


@pytest.mark.slow
def test_smoke_run_teaches_itself_and_ends_with_an_inference_service(tmp_path: Path) -> None:
    model, preferences, benchmark = write_smoke_inputs(str(tmp_path / "inputs"))
    inputs = ("--model", model, "--preferences", preferences, "--benchmark", benchmark)
    store = tmp_path / "store"
    ended = run("reasongenrm", "run", "--config", str(CONFIG), *inputs, "--store", str(store), "--json", "--no-try")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stderr.count(": done in ") == 17
    assert (json.loads(ended.stdout)["state"]) == "finished"
    assert "kind: InferenceService" in (store / "report" / "inferenceservice.yaml").read_text(encoding="utf-8")
