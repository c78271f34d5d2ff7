"""The one pipeline: its golden YAML, its graph, its parameters and what it keeps secret."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compile import compile_to, is_up_to_date
from pipelines.reason_reward_model import parameters
from pipelines.resources import S3_KEYS
from reasongenrm.config import RunConfig, Section, parse_section

GOLDEN = Path(__file__).parents[2] / "pipelines" / "compiled" / "reason_reward_model.yaml"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The pipeline's spec and its platform spec, compiled now."""
    path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    compile_to(path)
    assert path.read_bytes() == GOLDEN.read_bytes(), "run `make compile`"
    spec, platform = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    return spec, platform


def dags(spec: Any) -> Iterator[tuple[Any, Any]]:
    """Every graph with the inputs that it is given: the pipeline's own and that of each condition."""
    yield spec["root"], spec["root"]["dag"]
    for component in spec["components"].values():
        if "dag" in component:
            yield component, component["dag"]


def stages(spec: Any) -> dict[str, str]:
    """Task name -> the stage whose adapter it runs."""
    return {
        task: details["componentRef"]["name"].removeprefix("comp-").rstrip("-0123456789").replace("-", "_")
        for _, dag in dags(spec)
        for task, details in dag["tasks"].items()
    }


def test_golden_pipeline_is_what_compiling_gives(compiled: tuple[Any, Any]) -> None:
    assert compiled[0]["pipelineInfo"]["name"] == "reason-reward-model"


def test_changed_golden_pipeline_is_noticed(tmp_path: Path) -> None:
    changed = tmp_path / "pipeline.yaml"
    assert not is_up_to_date(changed)
    changed.write_bytes(GOLDEN.read_bytes().replace(b"nvidia.com/gpu", b"amd.com/gpu"))
    assert not is_up_to_date(changed)


def test_scores_twice_trains_sft_twice_and_evaluates_four_times(compiled: tuple[Any, Any]) -> None:
    counts = Counter(stages(compiled[0]).values())
    assert counts.pop("condition") == 1
    assert counts == {
        "import_model": 1,
        "prepare_pairs": 1,
        "distill_reasons": 1,
        "score_reasons": 2,
        "select_reasons": 1,
        "train_sft": 2,
        "sample_reasons": 1,
        "select_preferences": 1,
        "train_dpo": 1,
        "evaluate_rewardbench": 4,
        "select_winner": 1,
        "deploy_kserve": 1,
    }


def test_on_policy_reasons_are_written_and_scored_by_the_sft_model(compiled: tuple[Any, Any]) -> None:
    tasks = compiled[0]["root"]["dag"]["tasks"]
    variants = {
        name: task["inputs"]["parameters"]["variant"]["runtimeValue"]["constant"]
        for name, task in tasks.items()
        if name.startswith("train-sft")
    }
    sft = next(name for name, variant in variants.items() if variant == "sft")

    def model_of(task: str) -> str:
        return str(tasks[task]["inputs"]["artifacts"]["model"]["taskOutputArtifact"]["producerTask"])

    assert model_of("score-reasons") == "import-model"
    assert model_of("sample-reasons") == model_of("score-reasons-2") == model_of("train-dpo") == sft


def test_deployment_hangs_on_the_plain_return_value_of_the_gate(compiled: tuple[Any, Any]) -> None:
    condition = compiled[0]["root"]["dag"]["tasks"]["condition-1"]["triggerPolicy"]["condition"]
    assert "pipelinechannel--select-winner-Output'] == true" in condition


def test_every_graph_is_given_every_input_that_its_tasks_name(compiled: tuple[Any, Any]) -> None:
    for owner, dag in dags(compiled[0]):
        given = owner.get("inputDefinitions", {})
        for name, task in dag["tasks"].items():
            inputs = task.get("inputs", {})
            wanted = {value.get("componentInputParameter") for value in inputs.get("parameters", {}).values()} - {None}
            assert wanted <= given.get("parameters", {}).keys(), name
            wanted = {value.get("componentInputArtifact") for value in inputs.get("artifacts", {}).values()} - {None}
            assert wanted <= given.get("artifacts", {}).keys(), name


def test_kfp_never_answers_from_its_own_cache(compiled: tuple[Any, Any]) -> None:
    for _, dag in dags(compiled[0]):
        assert [
            name
            for name, task in dag["tasks"].items()
            if task.get("cachingOptions") and not task["componentRef"]["name"].startswith("comp-condition")
        ] == []


def test_credentials_come_from_secrets_by_name_and_nowhere_else(compiled: tuple[Any, Any]) -> None:
    spec, platform = compiled
    names = spec["root"]["inputDefinitions"]["parameters"].keys()
    assert not [name for name in names if any(word in name for word in ("token", "key", "password", "credential"))]
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert len(executors) == 17
    for name, executor in executors.items():
        keys = {key["secretKey"] for secret in executor["secretAsEnv"] for key in secret["keyToEnv"]}
        assert keys >= set(S3_KEYS), name
        assert ("OPENAI_API_KEY" in keys) == name.startswith("exec-distill"), name
        assert ("HF_TOKEN" in keys) == name.startswith("exec-import"), name
        assert executor["securityContext"] == {"runAsNonRoot": True}, name


def test_only_heavy_tasks_ask_for_accelerators(compiled: tuple[Any, Any]) -> None:
    executors = compiled[0]["deploymentSpec"]["executors"]
    heavy = {
        name.removeprefix("exec-").rstrip("-0123456789")
        for name, executor in executors.items()
        if "accelerator" in executor["container"]["resources"]
    }
    assert heavy == {
        "distill-reasons",
        "score-reasons",
        "train-sft",
        "sample-reasons",
        "train-dpo",
        "evaluate-rewardbench",
    }


def test_sections_are_parameters_whose_defaults_are_the_configs(compiled: tuple[Any, Any]) -> None:
    definitions = compiled[0]["root"]["inputDefinitions"]["parameters"]
    sections = {name: definitions[name]["defaultValue"] for name in RunConfig.model_fields}
    as_kfp_hands_them_over = json.loads(json.dumps(sections), parse_int=float)
    assert parse_section(RunConfig, as_kfp_hands_them_over, "the pipeline") == RunConfig()


def _fields_that_may_be_none(section: type[Section], where: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _fields_that_may_be_none(field.annotation, f"{where}{name}.")
        elif type(None) in getattr(field.annotation, "__args__", ()):
            yield f"{where}{name}", field.default


def test_nothing_is_lost_where_a_key_that_is_none_is_left_out() -> None:
    may_be_none = dict(_fields_that_may_be_none(RunConfig))
    assert "sample.engine.max_model_len" in may_be_none
    assert [name for name, default in may_be_none.items() if default is not None] == []
    assert "limit" not in parameters(RunConfig().pairs)
