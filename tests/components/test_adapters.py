"""The adapters: small, self-contained, documented; and each one run on a real store, in the order of the data flow."""

import ast
import builtins
import dis
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.dsl import HTML, Artifact, ClassificationMetrics, Dataset, Markdown, Metrics, Model

from reasongenrm import __version__
from reasongenrm.components import images
from reasongenrm.config import RunConfig, parse_section
from reasongenrm.demo.formats import teacher_server
from reasongenrm.store.artifacts import ArtifactRef, read_file
from reasongenrm.store.seaweed import EmbeddedStore
from tests.tiny import tiny_checkpoint

COMPONENTS = Path(__file__).parents[2] / "components"
DEMO = Path(__file__).parents[2] / "examples" / "demo"
NAMES = sorted(path.parent.name for path in COMPONENTS.glob("*/component.py"))
CONFIG = Path(__file__).parents[2] / "pipelines" / "configs" / "smoke.yaml"

pytestmark = pytest.mark.timeout(900)  # one fixture runs everything: half a minute of work, which others may share


def component(name: str) -> Any:
    return vars(importlib.import_module(f"reasongenrm.components.{name}.component"))[name]


def test_there_is_one_adapter_for_every_stage() -> None:
    data = [
        "prepare_pairs",
        "distill_reasons",
        "score_reasons",
        "select_reasons",
        "sample_reasons",
        "select_preferences",
    ]
    models = ["import_model", "train_sft", "train_dpo"]
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
    assert not any(isinstance(node, ast.If | ast.For | ast.Try) for node in ast.walk(defined))
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


SUMMARISED = {name for name in NAMES if "summary" in (component(name).component_spec.outputs or {})} - {"select_winner"}


class Flow:
    """Calls adapters as KFP does: parameters with floats for ints, artifacts as files below a folder."""

    def __init__(self, folder: Path, store_uri: str) -> None:
        self.folder, self.store_uri = folder, store_uri
        values = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        sections = parse_section(RunConfig, values, CONFIG.name).model_dump(mode="json", exclude_none=True)
        self.sections = json.loads(json.dumps(sections), parse_int=float)

    def output(self, kind: type[Artifact], task: str, name: str) -> Any:
        (self.folder / task).mkdir(exist_ok=True)
        return kind(name=name, uri=str(self.folder / task / name))

    def __call__(self, name: str, section: str, main: Any, **arguments: Any) -> ArtifactRef:
        if name in SUMMARISED:
            arguments["summary"] = self.output(Markdown, Path(main.path).parent.name, "summary")
        result = component(name).python_func(
            store_uri=self.store_uri, config=self.sections[section], **{main.name: main}, **arguments
        )
        assert result is None or name == "select_winner"
        return ArtifactRef.read(main.path)


@pytest.fixture(scope="module")
def done(store_env: EmbeddedStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """All adapters, run once in the order of the data flow; the artifacts and references that they left."""
    folder = tmp_path_factory.mktemp("flow")
    model_uri = str(tiny_checkpoint(folder / "model", "chatml"))
    flow = Flow(folder, f"{store_env.uri}/adapters")
    out = flow.output
    made: dict[str, Any] = {"flow": flow}
    base, prompts, reasons = out(Model, "0", "base_model"), out(Dataset, "1", "prompts"), out(Dataset, "2", "reasons")
    made["import_model"] = flow("import_model", "model", base, model_uri=model_uri)
    made["prepare_pairs"] = flow(
        "prepare_pairs", "pairs", prompts, preferences_uri=str(DEMO / "preferences.jsonl"), model=base
    )
    with teacher_server() as teacher:
        made["distill_reasons"] = flow("distill_reasons", "distill", reasons, teacher_uri=teacher, prompts=prompts)
    scored, examples = out(Dataset, "3", "scored"), out(Dataset, "4", "examples")
    made["score_reasons"] = flow("score_reasons", "score", scored, model=base, prompts=prompts, reasons=reasons)
    made["select_reasons"] = flow("select_reasons", "select", examples, prompts=prompts, scored=scored)
    models: dict[str, Any] = {"base": base}
    for variant in ("genrm", "sft"):
        models[variant] = out(Model, variant, "trained_model")
        made[f"train_sft {variant}"] = flow(
            "train_sft",
            variant,
            models[variant],
            variant=variant,
            model=base,
            examples=examples,
            metrics=(metrics := out(Metrics, variant, "metrics")),
        )
    made["training metrics"] = metrics
    sampled, rescored, preferred = (
        out(Dataset, "5", "reasons"),
        out(Dataset, "6", "scored"),
        out(Dataset, "7", "preferences"),
    )
    made["sample_reasons"] = flow("sample_reasons", "sample", sampled, model=models["sft"], prompts=prompts)
    flow("score_reasons", "score", rescored, model=models["sft"], prompts=prompts, reasons=sampled)
    made["select_preferences"] = flow("select_preferences", "preferences", preferred, prompts=prompts, scored=rescored)
    models["dpo"] = out(Model, "8", "trained_model")
    made["train_dpo"] = flow(
        "train_dpo",
        "dpo",
        models["dpo"],
        model=models["sft"],
        preferences=preferred,
        metrics=out(Metrics, "8", "metrics"),
    )
    evaluations = {}
    for variant, model in models.items():
        evaluations[variant] = out(Dataset, f"evaluate {variant}", "evaluation")
        made[f"evaluate_rewardbench {variant}"] = flow(
            "evaluate_rewardbench",
            "evaluate",
            evaluations[variant],
            variant=variant,
            benchmark_uri=str(DEMO / "benchmark.jsonl"),
            model=model,
            metrics=(metrics := out(Metrics, f"evaluate {variant}", "metrics")),
            verdicts=(verdicts := out(ClassificationMetrics, f"evaluate {variant}", "verdicts")),
        )
    made["evaluation metrics"], made["verdicts"] = metrics, verdicts
    trained = {f"{variant}_model": model for variant, model in models.items() if variant != "base"}
    decision = out(Dataset, "9", "decision")
    made["summary"], made["report"] = out(Markdown, "9", "summary"), out(HTML, "9", "report")
    made["passed"] = component("select_winner").python_func(
        store_uri=flow.store_uri,
        config=flow.sections["gate"],
        deploy=flow.sections["deploy"],
        decision=decision,
        summary=made["summary"],
        report=made["report"],
        **trained,
        **{f"{variant}_evaluation": found for variant, found in evaluations.items()},
    )
    made["select_winner"] = ArtifactRef.read(decision.path)
    made["deploy_kserve"] = flow(
        "deploy_kserve",
        "deploy",
        out(Artifact, "10", "service"),
        judge_image="registry/cpu:1",
        decision=decision,
        base_model=base,
        **trained,
    )
    return made


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("train_sft", "evaluate_rewardbench")])
def test_adapter_publishes_the_artifact_of_its_own_stage(done: dict[str, Any], name: str) -> None:
    assert done[name].stage == name
    assert done[name].uri.startswith(f"{done['flow'].store_uri}/{name}/")


def test_prompts_are_counted_by_cause(done: dict[str, Any]) -> None:
    assert done["prepare_pairs"].counts == {"num_in": 240, "num_out": 4, "num_dropped_over_limit": 236}


@pytest.mark.parametrize("variant", ["genrm", "sft"])
def test_both_variants_are_trained_apart(done: dict[str, Any], variant: str) -> None:
    assert done[f"train_sft {variant}"].stage == "train_sft"
    assert done["train_sft genrm"].digest != done["train_sft sft"].digest
    assert done["training metrics"].metadata


@pytest.mark.parametrize("variant", ["base", "genrm", "sft", "dpo"])
def test_every_variant_is_evaluated_as_itself(done: dict[str, Any], variant: str) -> None:
    ref = done[f"evaluate_rewardbench {variant}"]
    assert (ref.stage, ref.metrics["variant"], ref.counts["num_out"]) == ("evaluate_rewardbench", variant, 8)
    assert done["evaluation metrics"].metadata["accuracy"] == done["evaluate_rewardbench dpo"].metrics["accuracy"]


def test_confusion_matrix_counts_every_judgment_by_label_and_verdict(done: dict[str, Any]) -> None:
    matrix = done["verdicts"].metadata["confusionMatrix"]
    assert [spec["displayName"] for spec in matrix["annotationSpecs"]] == ["[[A]]", "[[B]]", "unparsed"]
    rows = [row["row"] for row in matrix["rows"]]
    # Each of the 4 rows is judged in both orders: 4 judgments whose label is [[A]], 4 whose label is [[B]].
    assert [sum(row) for row in rows] == [4, 4, 0]
    ref = done["evaluate_rewardbench dpo"]
    assert rows[0][2] + rows[1][2] == ref.counts["num_unparsed"]
    row_accuracy = json.loads(read_file(ref, "evaluation.json"))["row_accuracy"]
    assert row_accuracy == pytest.approx((rows[0][0] + rows[1][1] + 0.5 * ref.counts["num_unparsed"]) / 8)


def test_stages_without_numbers_show_what_they_kept_and_dropped(done: dict[str, Any]) -> None:
    flow = done["flow"]
    assert {
        "prepare_pairs",
        "distill_reasons",
        "score_reasons",
        "select_reasons",
        "sample_reasons",
        "select_preferences",
        "deploy_kserve",
    } == SUMMARISED
    shown = (flow.folder / "4" / "summary").read_text(encoding="utf-8")  # of select_reasons
    ref = done["select_reasons"]
    assert shown.startswith(f"# select_reasons: {ref.counts['num_in']} in, {ref.counts['num_out']} out")
    assert ref.uri in shown
    assert "| min_score |" in shown


def test_gate_returns_a_plain_value_and_shows_its_pages(done: dict[str, Any]) -> None:
    assert done["passed"] is True
    assert Path(done["summary"].path).read_bytes() == read_file(done["select_winner"], "decision.md")
    assert Path(done["report"].path).read_bytes() == read_file(done["select_winner"], "report.html")


def test_service_serves_the_winner(done: dict[str, Any]) -> None:
    service = yaml.safe_load(read_file(done["deploy_kserve"], "inferenceservice.yaml"))
    winner = done["select_winner"].metrics["winner"]
    model = done["train_dpo"] if winner == "dpo" else done[f"train_sft {winner}"]
    assert service["spec"]["predictor"]["model"]["storageUri"] == f"{model.uri}/"
    assert service["spec"]["transformer"]["containers"][0]["image"] == "registry/cpu:1"
