"""The one pipeline: its golden YAML, its graph, its resources and what it keeps secret."""

import importlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from reasongenrm import __version__
from reasongenrm.components import images
from reasongenrm.config import ResourcesConfig, RunConfig, load_config, parse_section
from reasongenrm.pipelines.compile import Compiled, compile_pipeline, compile_to, stale_files
from reasongenrm.pipelines.reason_reward_model import reason_reward_model
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
    assert len(found) == 11
    return found


HEAVY = ("exec-distill", "exec-sample", "exec-select-reasons", "exec-select-pref", "exec-train", "exec-evaluate")


def adapter(key: str) -> str:
    """The adapter's name of a task or an executor."""
    return key.removeprefix("comp-").removeprefix("exec-").rstrip("-0123456789").replace("-", "_")


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
    pipeline = reason_reward_model(ResourcesConfig())
    Compiler().compile(pipeline, str(path), kubernetes_manifest_options=options, kubernetes_manifest_format=True)
    theirs = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    ours = list(yaml.safe_load_all(written.kubernetes))
    executors = ours[1]["spec"]["pipelineSpec"]["deploymentSpec"]["executors"]
    for name, executor in theirs[1]["spec"]["pipelineSpec"]["deploymentSpec"]["executors"].items():
        container = executor["container"]
        assert container["args"] == ["--executor_input", "{{$}}", "--function_to_execute", adapter(name)]
        assert executors[name]["container"].pop("command") == ["python3", "-m", "reasongenrm.components"]
        assert executors[name]["container"].pop("args") == [adapter(name), "{{$}}"]
        del container["command"], container["args"]
    assert ours == theirs


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
    assert compile_pipeline(ResourcesConfig(cpu_image="registry.example/judge-cpu:2")).version != written.version
    # A namespace says where the objects are, not what the pipeline is.
    assert compile_pipeline(namespace="team-a").version == written.version


def test_objects_are_where_kfp_sees_them(written: Compiled) -> None:
    for compiled, namespace in ((written, "kubeflow"), (compile_pipeline(namespace="team-a"), "team-a")):
        documents = list(yaml.safe_load_all(compiled.kubernetes))
        assert [document["metadata"]["namespace"] for document in documents] == [namespace, namespace]


def test_tasks_run_in_the_images_of_their_adapters(compiled: tuple[Any, Any]) -> None:
    for key, executor in compiled[0]["deploymentSpec"]["executors"].items():
        name = adapter(key)
        component = vars(importlib.import_module(f"reasongenrm.components.{name}.component"))[name]
        assert executor["container"]["image"] == component.component_spec.implementation.container.image, key


def test_another_image_changes_its_tasks_and_nothing_else(written: Compiled) -> None:
    other = compile_pipeline(ResourcesConfig(vllm_image="registry.example/judge:7"))
    assert other.ir == written.ir.replace(images.VLLM, "registry.example/judge:7")
    assert written.ir.count(images.VLLM) == 3


def test_judges_image_is_the_cpu_image() -> None:
    (spec, _) = yaml.safe_load_all(compile_pipeline(ResourcesConfig(cpu_image="registry.example/cpu:7")).ir)
    given = spec["root"]["dag"]["tasks"]["deploy-kserve"]["inputs"]["parameters"]["judge_image"]
    assert given == {"runtimeValue": {"constant": "registry.example/cpu:7"}}


def test_trains_sft_twice_and_everything_else_once(compiled: tuple[Any, Any]) -> None:
    counts = Counter(adapter(task) for task in compiled[0]["root"]["dag"]["tasks"])
    assert counts.pop("train_sft") == 2
    assert counts == dict.fromkeys(
        [
            *("prepare_pairs", "distill_reasons", "select_reasons", "sample_reasons", "select_preferences"),
            *("train_dpo", "evaluate_rewardbench", "select_winner", "deploy_kserve"),
        ],
        1,
    )


def test_on_policy_reasons_are_written_and_scored_by_the_sft_model(compiled: tuple[Any, Any]) -> None:
    tasks = compiled[0]["root"]["dag"]["tasks"]

    def given(task: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = tasks[task]["inputs"]["parameters"][name]
        return found

    (sft,) = (
        name
        for name in tasks
        if name.startswith("train-sft") and given(name, "variant") == {"runtimeValue": {"constant": "sft"}}
    )

    def model_of(task: str, name: str = "model") -> str:
        return str(given(task, name)["taskOutputParameter"]["producerTask"])

    assert model_of("select-reasons") == model_of("evaluate-rewardbench", "base_model") == "prepare-pairs"
    assert model_of("sample-reasons") == model_of("select-preferences") == model_of("train-dpo") == sft
    assert model_of("evaluate-rewardbench", "sft_model") == sft


def test_pipeline_takes_addresses_and_one_config(compiled: tuple[Any, Any]) -> None:
    definitions = compiled[0]["root"]["inputDefinitions"]["parameters"]
    uris = ("store_uri", "preferences_uri", "benchmark_uri", "model_uri", "teacher_uri")
    assert definitions == {
        **{name: {"parameterType": "STRING"} for name in uris},
        "config": {"defaultValue": {}, "isOptional": True, "parameterType": "STRUCT"},
    }


def test_no_task_but_the_first_is_given_more_than_addresses(compiled: tuple[Any, Any]) -> None:
    """KFP repeats what a task is given some six times in the state of a run."""
    for name, component in compiled[0]["components"].items():
        kinds = {each["parameterType"] for each in component["inputDefinitions"]["parameters"].values()}
        assert kinds == ({"STRING", "STRUCT"} if name == "comp-prepare-pairs" else {"STRING"}), name
        assert "artifacts" not in component["inputDefinitions"], name


def test_kfp_never_answers_from_its_own_cache(compiled: tuple[Any, Any]) -> None:
    tasks = compiled[0]["root"]["dag"]["tasks"]
    assert [name for name, task in tasks.items() if task["cachingOptions"]] == []


def test_credentials_come_from_secrets_by_name_and_nowhere_else(executors: dict[str, Any]) -> None:
    for name, executor in executors.items():
        assert "secretAsEnv" not in executor, name
        mounted = {secret["mountPath"]: secret for secret in executor["secretAsVolume"]}
        s3 = mounted.pop("/var/run/secrets/reasongenrm/s3")
        assert (s3["secretName"], s3.get("optional", False)) == ("reasongenrm-s3", False), name
        expected = set()
        if name.startswith(("exec-prepare", "exec-distill", "exec-evaluate")):
            expected |= {"reasongenrm-hub"}
        if name.startswith("exec-distill"):
            expected |= {"reasongenrm-teacher"}
        if name.startswith("exec-deploy"):
            expected |= {"reasongenrm-judge"}
        assert {secret["secretName"] for secret in mounted.values()} == expected, name
        assert all(secret["optional"] for secret in mounted.values()), name


def test_one_secret_for_two_purposes_is_refused() -> None:
    with pytest.raises(ValueError, match="everything is named for several of s3_secret, teacher_secret"):
        ResourcesConfig(s3_secret="everything", hub_secret="everything")


def test_every_pod_is_non_root_and_heavy_ones_have_shared_memory(executors: dict[str, Any]) -> None:
    for name, executor in executors.items():
        assert executor["securityContext"] == {"runAsNonRoot": True}, name
        mounts = [mount["mountPath"] for mount in executor.get("emptyDirMounts", ())]
        assert mounts == (["/dev/shm"] if name.startswith(HEAVY) else []), name


def test_nodes_and_pull_secret_are_those_of_the_resources() -> None:
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    resources = ResourcesConfig(
        accelerator_node_selector={"gpu": "h100"},
        accelerator_tolerations=(taint,),  # type: ignore[arg-type]
        node_selector={"pool": "cpu"},
        image_pull_secret="mine",
    )
    (_, platform) = yaml.safe_load_all(compile_pipeline(resources).ir)
    for name, executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items():
        heavy = name.startswith(HEAVY)
        assert executor["nodeSelector"]["labels"] == ({"gpu": "h100"} if heavy else {"pool": "cpu"}), name
        assert executor.get("tolerations", []) == ([taint] if heavy else []), name
        assert [secret["secretName"] for secret in executor["imagePullSecret"]] == ["mine"], name


def test_long_tasks_are_tried_again_and_light_ones_have_a_limit(
    compiled: tuple[Any, Any], executors: dict[str, Any]
) -> None:
    retried = set()
    for name, task in compiled[0]["root"]["dag"]["tasks"].items():
        if "retryPolicy" in task:
            assert task["retryPolicy"]["maxRetryCount"] == 2
            assert task["retryPolicy"]["backoffDuration"] == "60s"
            retried.add(name)
    limited = {name.removeprefix("exec-") for name, each in executors.items() if "activeDeadlineSeconds" in each}
    assert {executors[f"exec-{name}"]["activeDeadlineSeconds"] for name in limited} == {"21600"}
    assert limited == {"prepare-pairs", "select-winner", "deploy-kserve"}
    assert len(retried) == 8
    assert retried.isdisjoint(limited)


def test_each_class_of_tasks_has_its_own_resources() -> None:
    resources = ResourcesConfig(
        num_accelerators=1,
        num_teacher_accelerators=0,
        num_train_accelerators=8,
        accelerator="amd.com/gpu",
        accelerator_cpu="9",
        train_memory="900Gi",
        cpu="1500m",
    )
    (spec, _) = yaml.safe_load_all(compile_pipeline(resources).ir)
    found = {}
    for key, executor in spec["deploymentSpec"]["executors"].items():
        asked = executor["container"]["resources"]
        limits = [asked["resourceCpuRequest"], asked["resourceMemoryLimit"]]
        accelerator = asked.get("accelerator")
        given = [accelerator["resourceCount"], accelerator["resourceType"]] if accelerator else []
        found[adapter(key)] = [*limits, *given]
    assert found == {
        "prepare_pairs": ["1500m", "8Gi"],
        "distill_reasons": ["9", "64Gi"],
        "select_reasons": ["9", "64Gi", "1", "amd.com/gpu"],
        "train_sft": ["8", "900Gi", "8", "amd.com/gpu"],
        "sample_reasons": ["9", "64Gi", "1", "amd.com/gpu"],
        "select_preferences": ["9", "64Gi", "1", "amd.com/gpu"],
        "train_dpo": ["8", "900Gi", "8", "amd.com/gpu"],
        "evaluate_rewardbench": ["9", "64Gi", "1", "amd.com/gpu"],
        "select_winner": ["1500m", "8Gi"],
        "deploy_kserve": ["100m", "512Mi"],
    }


def test_changes_of_the_defaults_are_all_that_a_run_is_given() -> None:
    assert RunConfig().changes() == {}
    for path in sorted((GOLDEN.parents[1] / "configs").rglob("*.yaml")):
        config = load_config(path)
        as_kfp_hands_it_over = json.loads(json.dumps(config.changes()), parse_int=float)
        assert parse_section(RunConfig, as_kfp_hands_it_over, "the pipeline").stages() == config.stages(), path
        assert None not in config.changes().values()
