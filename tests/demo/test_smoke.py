"""What a smoke run starts from is whole, in a folder and in a store; and the run it is made for ends with a served
judge."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reasongenrm.config import load_config
from reasongenrm.data.import_model import import_model
from reasongenrm.demo.formats import NUM_BENCHMARK, NUM_PREFERENCES
from reasongenrm.demo.smoke import check_completion, check_judgment, write_smoke_inputs
from reasongenrm.errors import InputError
from reasongenrm.store.artifacts import Store, read_uri

CONFIG = Path(__file__).parents[2] / "pipelines" / "configs" / "smoke.yaml"


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
    ended = run("reasongenrm.demo.smoke", "write", "s3:///no-bucket")
    assert ended.returncode == 1
    assert "smoke: store 's3:///no-bucket': expected s3://bucket or s3://bucket/prefix." in ended.stderr
    assert "Traceback" not in ended.stderr


def test_answers_of_another_form_are_refused() -> None:
    choice = {"message": {"content": "x"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    good = {"object": "chat.completion", "choices": [choice], "usage": usage}
    assert check_completion(json.dumps(good)) == "x"
    for change in ({"choices": []}, {"object": "text"}, {"usage": usage | {"completion_tokens": 0}}):
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
