"""A published judge: what its folder holds, what its card says, and one commit on a hub of our own on loopback."""

import base64
import contextlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from reasongenrm.config import DeployConfig, DPOConfig, GateConfig, ModelConfig, RunConfig, SFTConfig
from reasongenrm.data.prompts import judge_prompt
from reasongenrm.errors import ConfigError, InputError, ReasonGenRMError
from reasongenrm.evaluation.calibration import fit, load_calibration
from reasongenrm.evaluation.gate import read_evaluation, select_winner
from reasongenrm.evaluation.intervals import Interval
from reasongenrm.evaluation.metrics import HeldScore
from reasongenrm.records import Message
from reasongenrm.runs.inventory import stored_models
from reasongenrm.runs.model_card import CardFacts, eval_results, public_name
from reasongenrm.runs.publication import publish_model
from reasongenrm.store.artifacts import ArtifactRef, Store, list_artifacts
from reasongenrm.store.run_records import RunInputs, TaskRecord, end_run, new_run, save_run
from reasongenrm.store.stage import Stage
from tests.endpoints import serving
from tests.evaluation.test_gate import evaluation_of
from tests.judges import always_a, benchmark_of, oracle
from tests.tiny import tiny_checkpoint

INPUTS = RunInputs(
    preferences_uri="org/preferences",
    benchmark_uri="/home/me/secret-place/bench.jsonl",
    model_uri="org/small-instruct",
    teacher_uri="http://teacher.internal:8000/v1",
)


HELD = HeldScore(accuracy=0.625, interval=Interval(low=0.35, high=0.84))


@dataclass
class Trained:
    """A finished run: its id, its models, and the winner's evaluation."""

    run_id: str
    base: ArtifactRef
    model: ArtifactRef
    evaluation: ArtifactRef


@pytest.fixture
def trained(store: Store, tmp_path: Path) -> Trained:
    with Stage(store, "import_model", ModelConfig(), {"model": "sha256:0"}) as stage:
        stage.add_folder(tiny_checkpoint(tmp_path / "base", "chatml"))
        base = stage.finish({"num_files": 5}, {"source": "org/small-instruct", "revision": "c0ffee"})
    with Stage(store, "train_sft", SFTConfig(learning_rate=3e-5), {"model": base}, {"variant": "sft"}) as stage:
        stage.add_folder(tiny_checkpoint(tmp_path / "sft", "chatml", opening_role="reason"))
        stage.add_bytes("training_log.json", b"[]")
        model = stage.finish({"num_in": 90, "num_out": 88, "num_dropped_too_long": 2})
    benchmark = benchmark_of(tmp_path, {"sums": 12})
    calibration = fit([0.9, 0.2, 0.8, 0.3], [True, False, True, False])
    evaluations = {
        "base": evaluation_of(store, "base", benchmark, always_a, base, held=HELD),
        "sft": evaluation_of(store, "sft", benchmark, oracle, model, calibration),
    }
    decision = select_winner(store, GateConfig(candidates=("sft",)), evaluations, {"sft": model}, DeployConfig())
    refs = (base, model, *evaluations.values(), decision)
    tasks = tuple(TaskRecord(name=ref.stage, seconds=1.0, reused=False, ref=ref) for ref in refs)
    run = end_run(new_run(INPUTS, RunConfig()).model_copy(update={"tasks": tasks}), "finished", 0)
    save_run(store, run)
    return Trained(run.run_id, base, model, evaluations["sft"])


def test_folder_has_checkpoint_calibration_and_a_card_that_the_hub_reads(
    store: Store, trained: Trained, tmp_path: Path
) -> None:
    folder = tmp_path / "published" / "my-judge"
    assert publish_model(store, trained.run_id, str(folder)) == str(folder)
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= {
        path.name for path in folder.iterdir()
    }
    assert [path.name for path in folder.parent.iterdir()] == ["my-judge"]
    assert (folder.stat().st_mode & 0o055) == 0o055
    assert load_calibration(folder) == read_evaluation(trained.evaluation).calibration
    data = ModelCard.load(folder / "README.md").data
    assert (data.base_model, data.datasets, data.pipeline_tag) == (
        "org/small-instruct",
        ["org/preferences"],
        "text-generation",
    )
    assert (data.library_name, data.model_name) == ("transformers", "my-judge")
    assert data.eval_results is not None
    [result] = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("bench.jsonl", "accuracy", 100.0)
    assert not (folder / ".eval_results").exists()  # the benchmark is none of the hub's


def test_card_has_figures_data_settings_and_no_private_place(store: Store, trained: Trained, tmp_path: Path) -> None:
    publish_model(store, trained.model.uri, str(tmp_path / "my-judge"))
    text = (tmp_path / "my-judge" / "README.md").read_text(encoding="utf-8")
    low = 100 * read_evaluation(trained.evaluation).interval.low
    for said in (
        "trained from org/small-instruct (revision `c0ffee`)",
        f"| **ReasonGenRM-sft** (this model) | **100.0 ({low:.1f} to 100.0)** | +50.0 (",
        "| base | 50.0 (",
        "Asked for one of two letters and nothing else, it has 62.5 (35.0 to 84.0).\n\n## How to ask it",
        "| 100.0 | 0.0 | 10 |",
        "| train_sft (sft) | 90 in, 88 out; dropped 2: too long |",
        "- Preferences: org/preferences",
        "written by an OpenAI-compatible endpoint, scored by the base model",
        "learning_rate: 3.0e-05",
        "ReasonGenRM-sft wins with 100.0 % and passes the gate",
        "fitted on 4 judgments",
    ):
        assert said in text
    for private in ("secret-place", "teacher.internal", "s3://", str(tmp_path)):
        assert private not in text
    assert "\n\n\n" not in text


def test_prompt_and_program_of_the_card_are_those_of_training(store: Store, trained: Trained, tmp_path: Path) -> None:
    """The card's program, run as it stands, asks the published checkpoint what we would ask it."""
    from transformers import PreTrainedTokenizerBase

    folder = tmp_path / "my-judge"
    publish_model(store, trained.run_id, str(folder))
    text = (folder / "README.md").read_text(encoding="utf-8")
    prompt, opened = re.findall(r"~~~text\n(.*?)\n~~~", text, re.DOTALL)
    texts = {"question": "Which is {odd}?", "answer_a": "7", "answer_b": "8"}
    assert prompt.format(**texts) == judge_prompt([Message(role="user", content=texts["question"])], "7", "8")
    assert opened.endswith("<|im_start|>user\nPROMPT<|im_end|>\n<|im_start|>reason\n")
    [program] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    program = program.replace('"my-judge"', repr(str(folder))).replace("max_new_tokens=512", "max_new_tokens=4")
    asked: list[Any] = []
    plain = PreTrainedTokenizerBase.apply_chat_template

    def kept(self: Any, *arguments: Any, **options: Any) -> Any:
        found = plain(self, *arguments, **options)
        asked.append(self.decode(found["input_ids"][0]))
        return found

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(PreTrainedTokenizerBase, "apply_chat_template", kept)
        exec(compile(program, "README.md", "exec"), {})
    pair = judge_prompt([Message(role="user", content="Name a prime number.")], "7", "9")
    assert asked == [opened.replace("PROMPT", pair)]
    assert "verdict: " in printed.getvalue()


def facts_of(store: Store, trained: Trained, **benchmark: Any) -> CardFacts:
    evaluation = read_evaluation(trained.evaluation)
    changed = evaluation.benchmark.model_copy(update=benchmark)
    [model] = [model for model in stored_models(list_artifacts(store), ()) if model.manifest.uri == trained.model.uri]
    return CardFacts(
        name="me/judge",
        model=model,
        evaluation=evaluation.model_copy(update={"benchmark": changed}),
        evaluated_at="2026-11-30T10:00:00+00:00",
        report=None,
        lineage=(),
        inputs=None,
    )


def test_results_on_a_whole_benchmark_of_the_hub_are_as_the_hub_reads_them(store: Store, trained: Trained) -> None:
    files = eval_results(facts_of(store, trained, uri="allenai/reward-bench"))
    assert [*files] == ["reward-bench.yaml"]
    [entry] = parse_eval_result_entries(yaml.safe_load(files["reward-bench.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("allenai/reward-bench", "default", 100.0)
    assert entry.date == "2026-11-30T10:00:00+00:00"
    part = facts_of(store, trained, uri="allenai/reward-bench", num_available_rows=13)
    assert eval_results(part) == {}
    assert eval_results(facts_of(store, trained)) == {}


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("org/data", "org/data"),
        ("/home/me/pairs.jsonl", "pairs.jsonl"),
        ("s3://private-bucket/runs/pairs.jsonl", "pairs.jsonl"),
        ("/models/mine/", "mine"),
        ("HTTPS://teacher.internal/v1", "an OpenAI-compatible endpoint"),
    ],
)
def test_private_places_are_not_named(uri: str, name: str) -> None:
    assert public_name(uri) == name


def test_what_cannot_be_published_is_said(store: Store, trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"nope: no run of .*; it holds {trained.run_id}\. Give one of them"):
        publish_model(store, "nope", str(tmp_path / "a"))
    with pytest.raises(InputError, match=r"s3://b/m: no model of .*, which holds s3://.*train_sft"):
        publish_model(store, "s3://b/m", str(tmp_path / "a"))
    with pytest.raises(InputError, match="is a base model, which nothing was trained on"):
        publish_model(store, trained.base.uri, str(tmp_path / "a"))
    with Stage(store, "train_dpo", DPOConfig(), {"model": trained.model}) as stage:
        stage.add_bytes("config.json", b"{}")
        unjudged = stage.finish({"num_in": 1})
    with pytest.raises(InputError, match="was never evaluated"):
        publish_model(store, unjudged.uri, str(tmp_path / "a"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").touch()
    with pytest.raises(ConfigError, match="this exists already"):
        publish_model(store, trained.run_id, str(tmp_path / "full"))
    with pytest.raises(ConfigError, match="--public has no effect on a folder"):
        publish_model(store, trained.run_id, str(tmp_path / "a"), public=True)
    with pytest.raises(ConfigError, match="expected hub:owner/name"):
        publish_model(store, trained.run_id, "hub:judge")
    assert not (tmp_path / "a").exists()


def test_nothing_is_left_of_a_publication_that_fails(store: Store, trained: Trained, tmp_path: Path) -> None:
    weights = next(name for name in store.list("train_sft/") if name.endswith("model.safetensors"))
    store.put_bytes(weights, b"\0" * store.sizes(weights)[weights])
    with pytest.raises(ReasonGenRMError, match=r"model\.safetensors: damaged"):
        publish_model(store, trained.run_id, str(tmp_path / "out" / "judge"))
    assert [*(tmp_path / "out").iterdir()] == []


@dataclass
class FakeHub:
    """The hub's routes for a new repository and a commit, as huggingface_hub 2.4 asks them."""

    token: str = "hf_right"
    created: list[dict[str, Any]] = field(default_factory=list)
    commits: list[dict[str, bytes]] = field(default_factory=list)
    address: str = ""

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/api/repos/create", self.create, methods=["POST"]),
                Route("/api/validate-yaml", self.validate, methods=["POST"]),
                Route("/api/models/me/judge/preupload/main", self.preupload, methods=["POST"]),
                Route("/api/models/me/judge/commit/main", self.commit, methods=["POST"]),
            ]
        )

    async def create(self, request: Request) -> JSONResponse:
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"error": "Invalid username or password."}, status_code=401)
        self.created.append(await request.json())
        return JSONResponse({"url": f"{self.address}/me/judge"})

    async def validate(self, request: Request) -> JSONResponse:
        assert yaml.safe_load((await request.json())["content"].split("---")[1])["pipeline_tag"] == "text-generation"
        return JSONResponse({"errors": [], "warnings": []})

    async def preupload(self, request: Request) -> JSONResponse:
        asked = (await request.json())["files"]
        files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
        return JSONResponse({"files": files})

    async def commit(self, request: Request) -> JSONResponse:
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        files = [line["value"] for line in lines if line["key"] == "file"]
        self.commits.append({file["path"]: base64.b64decode(file["content"]) for file in files})
        return JSONResponse({"commitUrl": f"{self.address}/me/judge/commit/abc", "commitOid": "abc", "success": True})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub()
    with serving(fake.app) as url:
        fake.address = url
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield fake


@pytest.mark.parametrize(("public", "visibility"), [(False, "private"), (True, "public")])
def test_hub_gets_one_commit_with_what_a_folder_gets(
    store: Store,
    trained: Trained,
    hub: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    public: bool,
    visibility: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    where = publish_model(store, trained.run_id, "hub:me/judge", public=public)
    assert where == f"{hub.address}/me/judge/commit/abc"
    [created], [commit] = hub.created, hub.commits
    assert (created["organization"], created["name"], created["visibility"]) == ("me", "judge", visibility)
    publish_model(store, trained.run_id, str(tmp_path / "judge"))
    written = {path.name: path.read_bytes() for path in (tmp_path / "judge").iterdir() if path.is_file()}
    written["README.md"] = (tmp_path / "judge" / "README.md").read_bytes().replace(b"# judge", b"# me/judge")
    written["README.md"] = written["README.md"].replace(b'model_id = "judge"', b'model_id = "me/judge"')
    assert commit == written


def test_hub_that_refuses_or_is_away_says_what_to_do(
    store: Store, trained: Trained, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(
        ReasonGenRMError, match=r"hub:me/judge: the hub answers: .* HF_TOKEN \(or `hf auth login`\) may"
    ):
        publish_model(store, trained.run_id, "hub:me/judge")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ReasonGenRMError, match=r"cannot be reached: .* hf upload me/judge FOLDER \."):
        publish_model(store, trained.run_id, "hub:me/judge")
    assert hub.commits == []
