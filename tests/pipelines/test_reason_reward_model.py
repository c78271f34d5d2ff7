"""The one pipeline: its golden YAML, its graph, its parameters and what it keeps secret."""

import importlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from reasongenrm import __version__
from reasongenrm.components import images
from reasongenrm.config import ResourcesConfig, RunConfig, Section, parse_section
from reasongenrm.pipelines.compile import Compiled, compile_pipeline, compile_to, stale_files
from reasongenrm.pipelines.reason_reward_model import parameters, reason_reward_model
from reasongenrm.pipelines.resources import S3_KEYS
from tests.kube.schemas import check

GOLDEN = Path(__file__).parents[2] / "pipelines" / "compiled" / "reason_reward_model.yaml"


@pytest.fixture(scope="module")
def written() -> Compiled:
    """The pipeline, compiled now."""
    return compile_pipeline()


@pytest.fixture(scope="module")
def compiled(written: Compiled) -> tuple[Any, Any]:
    """The pipeline's spec and its platform spec."""
    spec, platform = yaml.safe_load_all(written.ir)
    return spec, platform


@pytest.fixture(scope="module")
def executors(compiled: tuple[Any, Any]) -> dict[str, Any]:
    """Executor -> what Kubernetes is told about its pod."""
    found: dict[str, Any] = compiled[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert len(found) == 17
    return found


IMAGES = {f"{name}_image" for name in images.NAMES}  # None in the config: the compiled default


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


def test_golden_files_are_what_compiling_gives(written: Compiled) -> None:
    for path, text in written.files(GOLDEN).items():
        assert path.read_text(encoding="utf-8") == text, "run `make compile`"


def test_changed_or_absent_golden_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    beside = tmp_path / "pipeline.kubernetes.yaml"
    assert stale_files(path) == [path, beside]
    compile_to(path)
    assert stale_files(path) == []
    beside.write_text(beside.read_text(encoding="utf-8").replace("nvidia.com/gpu", "amd.com/gpu"), encoding="utf-8")
    assert stale_files(path) == [beside]


def test_manifests_are_those_of_kfps_own_compiler(written: Compiled, tmp_path: Path) -> None:
    from kfp.compiler import Compiler
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    options = KubernetesManifestOptions(
        pipeline_version_name=written.version_name.replace(".", "-"),
        pipeline_version_display_name=written.version_name,
        include_pipeline_manifest=True,
        namespace="kubeflow",
    )
    path = tmp_path / "kfp.yaml"
    Compiler().compile(
        reason_reward_model, str(path), kubernetes_manifest_options=options, kubernetes_manifest_format=True
    )
    assert list(yaml.safe_load_all(written.kubernetes)) == list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def test_manifests_are_what_the_kinds_of_kfp_know(written: Compiled) -> None:
    pipeline, version = yaml.safe_load_all(written.kubernetes)
    # The kind takes anything as a platform spec, and what KFP calls a nodeSelector in there is not Kubernetes' own.
    assert version["spec"].pop("platformSpec")["platforms"].keys() == {"kubernetes"}
    check(pipeline)
    check(version)
    del version["spec"]["pipelineSpec"]
    with pytest.raises(Exception, match="pipelineSpec"):
        check(version)
    pipeline["spec"]["displayname"] = "x"
    with pytest.raises(Exception, match="displayname"):
        check(pipeline)


def test_version_is_ours_and_changes_with_the_content(written: Compiled) -> None:
    _, version = yaml.safe_load_all(written.kubernetes)
    name = version["spec"]["displayName"]
    assert re.fullmatch(rf"reason-reward-model-{re.escape(__version__)}-[0-9a-f]{{8}}", name)
    assert name == written.version_name
    assert version["metadata"]["name"] == name.replace(".", "-")  # a label as well as a name
    assert compile_pipeline().version == written.version
    assert compile_pipeline({"cpu": "registry.example/judge-cpu:2"}).version != written.version
    # A namespace says where the objects are, not what the pipeline is.
    assert compile_pipeline(namespace="team-a").version == written.version


def test_objects_are_where_kfp_sees_them(written: Compiled) -> None:
    for compiled, namespace in ((written, "kubeflow"), (compile_pipeline(namespace="team-a"), "team-a")):
        documents = list(yaml.safe_load_all(compiled.kubernetes))
        assert [document["metadata"]["namespace"] for document in documents] == [namespace, namespace]


def test_images_are_parameters_with_the_tables_images_as_defaults(compiled: tuple[Any, Any]) -> None:
    definitions = compiled[0]["root"]["inputDefinitions"]["parameters"]
    assert {name: definitions[f"{name}_image"]["defaultValue"] for name in images.NAMES} == images.read_table()
    used = {
        name.removeprefix("exec-").rstrip("-0123456789"): executor["container"]["image"]
        for name, executor in compiled[0]["deploymentSpec"]["executors"].items()
    }
    image = "{{$.inputs.parameters['pipelinechannel--%s_image']}}"
    expected = {images.CPU: image % "cpu", images.TRAIN: image % "train", images.VLLM: image % "vllm"}
    for stage, found in used.items():
        name = stage.replace("-", "_")
        adapter = vars(importlib.import_module(f"reasongenrm.components.{name}.component"))[name]
        assert found == expected[adapter.component_spec.implementation.container.image], stage


def test_another_image_changes_its_default_and_nothing_else(written: Compiled) -> None:
    other = compile_pipeline({"vllm": "registry.example/judge:7"})
    assert other.ir == written.ir.replace(images.VLLM, "registry.example/judge:7")
    assert written.ir.count(images.VLLM) == 1


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


def test_credentials_come_from_secrets_by_name_and_nowhere_else(
    compiled: tuple[Any, Any], executors: dict[str, Any]
) -> None:
    names = compiled[0]["root"]["inputDefinitions"]["parameters"].keys()
    assert not [name for name in names if any(word in name for word in ("token", "key", "password", "credential"))]
    hub = ("exec-import", "exec-prepare", "exec-distill", "exec-evaluate")
    for name, executor in executors.items():
        keys = {key["secretKey"] for secret in executor["secretAsEnv"] for key in secret["keyToEnv"]}
        assert keys >= set(S3_KEYS), name
        assert ("OPENAI_API_KEY" in keys) == name.startswith("exec-distill"), name
        assert ("HF_TOKEN" in keys) == name.startswith(hub), name
        deploy = {"JUDGE_API_KEY", "VLLM_API_KEY", "MODEL_REGISTRY_TOKEN"}
        assert (deploy & keys) == (deploy if name.startswith("exec-deploy") else set()), name
        needed = [secret for secret in executor["secretAsEnv"] if not secret.get("optional")]
        assert [key["secretKey"] for secret in needed for key in secret["keyToEnv"]] == list(S3_KEYS), name


def test_every_pod_is_non_root_and_has_scratch_of_its_own(executors: dict[str, Any]) -> None:
    for name, executor in executors.items():
        assert executor["securityContext"] == {"runAsNonRoot": True}, name
        mounts = {mount["mountPath"]: mount for mount in executor["emptyDirMounts"]}
        assert "/tmp" in mounts, name
        heavy = name.startswith(("exec-distill", "exec-sample", "exec-score", "exec-train", "exec-evaluate"))
        assert ("/dev/shm" in mounts) == heavy, name


def test_pods_that_make_objects_in_the_cluster_know_who_they_are(executors: dict[str, Any]) -> None:
    for name, executor in executors.items():
        told = {field["name"]: field["fieldPath"] for field in executor.get("fieldPathAsEnv", [])}
        if name.startswith(("exec-train", "exec-deploy")):
            assert told == {
                "POD_NAME": "metadata.name",
                "POD_UID": "metadata.uid",
                "POD_NAMESPACE": "metadata.namespace",
            }
        else:
            assert told == {}, name


def test_nodes_are_chosen_by_parameters_apart_for_tasks_with_accelerators(executors: dict[str, Any]) -> None:
    for name, executor in executors.items():
        heavy = name.startswith(("exec-distill", "exec-sample", "exec-score", "exec-train", "exec-evaluate"))
        start = "accelerator_" if heavy else ""
        if name.startswith("exec-deploy"):  # inside the condition, parameters come under KFP's own names
            start = "pipelinechannel--"
        selector = executor["nodeSelector"]["nodeSelectorJson"]
        assert selector == {"componentInputParameter": f"{start}node_selector"}, name
        assert [given["tolerationJson"] for given in executor["tolerations"]] == [
            {"componentInputParameter": f"{start}tolerations"}
        ], name
        assert len(executor["imagePullSecret"]) == 1, name


def test_long_tasks_are_tried_again_and_light_ones_have_a_limit(
    compiled: tuple[Any, Any], executors: dict[str, Any]
) -> None:
    retried, limited = set(), set()
    for _, dag in dags(compiled[0]):
        for name, task in dag["tasks"].items():
            if "retryPolicy" in task:
                assert task["retryPolicy"]["maxRetryCount"] == 2
                assert task["retryPolicy"]["backoffDuration"] == "60s"
                retried.add(name)
    for name, executor in executors.items():
        if "activeDeadlineSeconds" in executor:
            assert executor["activeDeadlineSeconds"] == "21600"
            limited.add(name.removeprefix("exec-"))
    assert len(retried) == 11
    assert limited == {
        "import-model",
        "prepare-pairs",
        "select-reasons",
        "select-preferences",
        "select-winner",
        "deploy-kserve",
    }
    assert retried.isdisjoint(limited)


def test_each_class_of_tasks_has_its_own_number_of_accelerators(compiled: tuple[Any, Any]) -> None:
    counts = {
        name.removeprefix("exec-").rstrip("-0123456789"): executor["container"]["resources"]["accelerator"][
            "resourceCount"
        ]
        for name, executor in compiled[0]["deploymentSpec"]["executors"].items()
        if "accelerator" in executor["container"]["resources"]
    }
    count = "{{$.inputs.parameters['pipelinechannel--num_%saccelerators']}}"
    assert counts == {
        "distill-reasons": count % "teacher_",
        "score-reasons": count % "",
        "sample-reasons": count % "",
        "evaluate-rewardbench": count % "",
        "train-sft": count % "train_",
        "train-dpo": count % "train_",
    }


def test_resources_are_parameters_whose_defaults_are_the_configs(compiled: tuple[Any, Any]) -> None:
    definitions = compiled[0]["root"]["inputDefinitions"]["parameters"]
    inputs = {"store_uri", "preferences_uri", "benchmark_uri", "model_uri", "teacher_uri"}
    assert definitions.keys() - RunConfig().stages().keys() - inputs == ResourcesConfig.model_fields.keys()
    defaults = {name: definitions[name]["defaultValue"] for name in ResourcesConfig.model_fields}
    as_kfp_hands_them_over = json.loads(json.dumps(defaults), parse_int=float)
    found = parse_section(ResourcesConfig, as_kfp_hands_them_over, "the pipeline")
    assert found.model_dump(exclude=IMAGES) == ResourcesConfig().model_dump(exclude=IMAGES)


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
    sections = {name: definitions[name]["defaultValue"] for name in RunConfig().stages()}
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
