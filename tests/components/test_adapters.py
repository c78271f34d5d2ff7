"""The adapters: small, self-contained, documented; and each one run on a real store, in the order of the data flow."""

import ast
import builtins
import dis
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.dsl import HTML, Markdown, Metrics

from reasongenrm import __version__
from reasongenrm.components import images
from reasongenrm.config import RunConfig, parse_section
from reasongenrm.demo.formats import teacher_server
from reasongenrm.pipelines.compile import compile_pipeline
from reasongenrm.pipelines.reason_reward_model import NUM_STAGES
from reasongenrm.planning.workloads import Assumptions, run_workloads
from reasongenrm.runs.references import read_reference, read_settings, write_reference
from reasongenrm.runs.task import TaskOutcome
from reasongenrm.store.artifacts import ArtifactRef, Store, input_of, read_file
from reasongenrm.store.seaweed import EmbeddedStore
from reasongenrm.training.shapes import SHAPES
from reasongenrm.variants import VARIANTS
from tests.tiny import tiny_checkpoint

COMPONENTS = Path(__file__).parents[2] / "components"
DEMO = Path(__file__).parents[2] / "examples" / "demo"
NAMES = sorted(path.parent.name for path in COMPONENTS.glob("*/component.py"))
CONFIG = Path(__file__).parents[2] / "pipelines" / "configs" / "smoke.yaml"

pytestmark = pytest.mark.timeout(900)  # one fixture runs everything: half a minute of work, which others may share


def component(name: str) -> Any:
    return vars(importlib.import_module(f"reasongenrm.components.{name}.component"))[name]


def test_there_is_one_adapter_for_every_task() -> None:
    data = ["prepare_pairs", "distill_reasons", "select_reasons", "sample_reasons", "select_preferences"]
    models = ["train_sft", "train_dpo"]
    assert sorted([*data, *models, "evaluate_rewardbench", "select_winner", "deploy_kserve"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_body_is_short_and_uses_no_name_of_its_module(name: str) -> None:
    function = component(name).python_func
    # Not inspect.getclosurevars: for it the stage's name in "import ... as stage" is the component's own.
    loaded = {found.argval for found in dis.get_instructions(function) if found.opname == "LOAD_GLOBAL"}
    assert loaded <= vars(builtins).keys()
    assert function.__closure__ is None
    source = (COMPONENTS / name / "component.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 50
    defined = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    assert sum(1 for node in ast.walk(defined) if isinstance(node, ast.stmt)) <= 15
    assert not any(isinstance(node, ast.Try | ast.While) for node in ast.walk(defined))
    assert "from __future__" not in source


@pytest.mark.parametrize("name", NAMES)
def test_task_installs_nothing_and_runs_in_an_image_of_this_version(name: str) -> None:
    container = component(name).component_spec.implementation.container
    assert container.image in (images.CPU, images.TRAIN, images.VLLM)
    assert container.image.endswith(f":{__version__}")
    assert "pip install" not in " ".join(container.command)


@pytest.mark.parametrize("name", NAMES)
def test_readme_names_every_input_and_output(name: str) -> None:
    readme = (COMPONENTS / name / "README.md").read_text(encoding="utf-8")
    spec = component(name).component_spec
    missing = [port for port in (*spec.inputs, *(spec.outputs or {})) if f"`{port}`" not in readme]
    assert missing == []
    assert {images.CPU: "`cpu`", images.TRAIN: "`train`", images.VLLM: "`vllm`"}[
        spec.implementation.container.image
    ] in readme


class Flow:
    """Calls adapters as KFP does: parameters with floats for ints, outputs as files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refs: dict[str, ArtifactRef] = {}

    def __call__(self, name: str, *outputs: str, **arguments: Any) -> Any:
        """Run an adapter; returns what its outputs hold, one or several addresses."""
        folder = self.folder / "-".join([name, str(arguments.get("variant", ""))])
        folder.mkdir()
        paths = {output: folder / output for output in outputs}
        result = component(name).python_func(**arguments, **{key: str(path) for key, path in paths.items()})
        assert result is None
        outcomes = [TaskOutcome.model_validate_json(path.read_bytes()) for path in folder.glob("*.outcome.json")]
        assert all(outcome.state == "done" for outcome in outcomes)
        self.refs |= {outcome.task: outcome.ref for outcome in outcomes if outcome.ref}
        found = [path.read_text(encoding="utf-8") for path in paths.values()]
        return found if len(found) > 1 else found[0]


@pytest.fixture(scope="module")
def done(store_env: EmbeddedStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All adapters, run once in the order of the data flow; what each published, and what the UI is shown."""
    folder = tmp_path_factory.mktemp("flow")
    values = parse_section(RunConfig, yaml.safe_load(CONFIG.read_text(encoding="utf-8")), CONFIG.name).changes()
    flow = Flow(folder)
    shown: dict[str, Any] = {
        name: kind(name=name, uri=str(folder / name))
        for name, kind in (("trained", Metrics), ("evaluated", Metrics), ("summary", Markdown), ("report", HTML))
    }
    with teacher_server() as teacher:
        base, prompts = flow(
            "prepare_pairs",
            *("base_model", "prompts"),
            store_uri=f"{store_env.uri}/adapters",
            preferences_uri=str(DEMO / "preferences.jsonl"),
            benchmark_uri=str(DEMO / "benchmark.jsonl"),
            model_uri=str(tiny_checkpoint(folder / "model", "chatml")),
            teacher_uri=teacher,
            config=json.loads(json.dumps(values), parse_int=float),
        )
        reasons = flow("distill_reasons", "reasons", prompts=prompts)
    examples = flow("select_reasons", "examples", model=base, prompts=prompts, reasons=reasons)
    given = {"model": base, "examples": examples, "metrics": shown["trained"]}
    models = {variant: flow("train_sft", "trained_model", variant=variant, **given) for variant in ("genrm", "sft")}
    sampled = flow("sample_reasons", "reasons", model=models["sft"], prompts=prompts)
    pairs = flow("select_preferences", "preferences", model=models["sft"], prompts=prompts, reasons=sampled)
    given = {"model": models["sft"], "preferences": pairs}
    models["dpo"] = flow("train_dpo", "trained_model", metrics=Metrics(uri=str(folder / "dpo")), **given)
    trained = {f"{variant}_model": model for variant, model in models.items()}
    evaluations = flow("evaluate_rewardbench", *VARIANTS, base_model=base, metrics=shown["evaluated"], **trained)
    given = dict(zip(VARIANTS, evaluations, strict=True))
    decision = flow("select_winner", "decision", summary=shown["summary"], report=shown["report"], **given)
    flow("deploy_kserve", "service", judge_image="registry/cpu:1", decision=decision)
    return {"flow": flow, "decision": decision, **shown, **flow.refs}


def test_every_stage_has_published_its_own_artifact(done: dict[str, Any]) -> None:
    refs = done["flow"].refs
    assert len(refs) == NUM_STAGES
    shapes = SHAPES["7B"], SHAPES["70B"]
    planned = run_workloads(RunConfig(), Assumptions(num_pairs=1), *shapes)
    assert {stage.stage for stage in planned} == set(refs)  # `reasongenrm plan` forgets none
    for task, ref in refs.items():
        assert ref.stage == task.partition(" (")[0]


def test_data_are_read_before_the_model_is_fetched(
    store_env: EmbeddedStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Q", "chosen": "good"}\n', encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        component("prepare_pairs").python_func(
            store_uri=f"{store_env.uri}/before",
            preferences_uri=str(DEMO / "preferences.jsonl"),
            benchmark_uri=str(tmp_path / "rows.jsonl"),
            model_uri=str(tmp_path / "no-such-model"),
            teacher_uri="demo",
            config={},
            base_model=str(tmp_path / "base_model"),
            prompts=str(tmp_path / "prompts"),
        )
    assert ended.value.code == 2
    assert "rows.jsonl line 1: column 'rejected' is missing" in capsys.readouterr().err


def test_prompts_are_counted_by_cause(done: dict[str, Any]) -> None:
    assert done["prepare_pairs"].counts == {"num_in": 240, "num_out": 4, "num_dropped_over_limit": 236}


def test_both_variants_are_trained_apart(done: dict[str, Any]) -> None:
    assert done["train_sft (genrm)"].digest != done["train_sft (sft)"].digest
    assert done["trained"].metadata


def test_reasons_are_scored_by_who_is_to_learn_from_them(done: dict[str, Any]) -> None:
    base, sft = done["import_model"], done["train_sft (sft)"]
    assert input_of(done["score_reasons (of the teacher)"], "model") == base
    assert input_of(done["score_reasons (of the policy)"], "model") == sft
    assert input_of(done["sample_reasons"], "model") == input_of(done["train_dpo"], "model") == sft


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_evaluated_as_itself(done: dict[str, Any], variant: str) -> None:
    ref = done[f"evaluate_rewardbench ({variant})"]
    assert (ref.metrics["variant"], ref.counts["num_out"]) == (variant, 8)
    trained = {"base": "import_model", "dpo": "train_dpo"}.get(variant, f"train_sft ({variant})")
    assert input_of(ref, "model") == done[trained]
    assert done["evaluated"].metadata[f"{variant}_accuracy"] == ref.metrics["accuracy"]


def test_gate_shows_its_pages(done: dict[str, Any]) -> None:
    assert Path(done["summary"].path).read_bytes() == read_file(done["select_winner"], "decision.md")
    assert Path(done["report"].path).read_bytes() == read_file(done["select_winner"], "report.html")


def test_service_serves_the_winner(done: dict[str, Any]) -> None:
    service = yaml.safe_load(read_file(done["deploy_kserve"], "inferenceservice.yaml"))
    winner = done["select_winner"].metrics["winner"]
    model = done["train_dpo"] if winner == "dpo" else done[f"train_sft ({winner})"]
    assert service["spec"]["predictor"]["model"]["storageUri"] == f"{model.uri}/"
    assert service["spec"]["transformer"]["containers"][0]["image"] == "registry/cpu:1"


def test_nothing_is_deployed_when_the_gate_did_not_pass(done: dict[str, Any], tmp_path: Path) -> None:
    found = read_reference(done["decision"])
    refused = found.artifact.model_copy(update={"metrics": {**found.artifact.metrics, "passed": False}})
    store = Store(read_settings(found.settings_uri).store_uri)
    decision = write_reference(store, found.settings_uri, refused)
    flow = Flow(tmp_path)
    said = flow("deploy_kserve", "service", judge_image="registry/cpu:1", decision=decision)
    assert said == "the gate did not pass, so nothing is deployed"
    assert flow.refs == {}


def test_pod_runs_the_component_that_its_image_has(done: dict[str, Any], tmp_path: Path) -> None:
    """As KFP's launcher starts it: the command of the compiled pipeline, {{$}} replaced."""
    (spec, _) = yaml.safe_load_all(compile_pipeline().ir)
    container = spec["deploymentSpec"]["executors"]["exec-deploy-kserve"]["container"]
    executor_input = {
        "inputs": {"parameterValues": {"judge_image": "registry/cpu:1", "decision": done["decision"]}},
        "outputs": {
            "parameters": {"service": {"outputFile": str(tmp_path / "service")}},
            "outputFile": str(tmp_path / "output_metadata.json"),
        },
    }
    words = [sys.executable, *container["command"][1:], *container["args"]]
    command = [json.dumps(executor_input) if word == "{{$}}" else word for word in words]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("reasongenrm task started: deploy_kserve\n")
    address = (tmp_path / "service").read_text(encoding="utf-8")
    assert read_reference(address).artifact == done["deploy_kserve"]
