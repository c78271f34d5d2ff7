"""What a cluster run is asked: inputs that pods reach, arguments that the pipeline takes, and a Job that submits
them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from reasongenrm.config import ResourcesConfig, RunConfig, load_config, parse_section
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.runs.submit import arguments_of, is_local, reachable_inputs
from reasongenrm.runs.submit_job import CONFIG_FOLDER, submit_job
from reasongenrm.store.artifacts import Store, open_artifact, read_uri
from reasongenrm.store.run_records import RunInputs, choose_inputs
from tests.judges import row, write_rows
from tests.kube.schemas import check
from tests.tiny import tiny_checkpoint

STORE = "s3://bucket/runs"
REMOTE = RunInputs(
    preferences_uri="org/pairs",
    benchmark_uri="s3://bucket/rows.jsonl",
    model_uri="org/model",
    teacher_uri="http://teacher.models:8000/v1",
)
PAIR = {
    "chosen": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}],
    "rejected": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "3"}],
}


def given(**changes: str) -> RunInputs:
    return REMOTE.model_copy(update={f"{name}_uri": uri for name, uri in changes.items()})


# Inputs.


def test_what_pods_reach_stays_as_it_is() -> None:
    assert reachable_inputs(REMOTE, RunConfig(), STORE, upload=False) == REMOTE


@pytest.mark.parametrize(
    "uri", ["./rows.jsonl", "/data/rows", "~/rows", "rows.jsonl", "data/rows.json", "model", "a/b/c"]
)
def test_path_is_told_from_a_hub_name_by_its_form(uri: str) -> None:
    assert is_local(uri)


def test_folder_that_is_there_goes_before_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_local("org/model")
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert is_local("org/model")
    assert not is_local("s3://org/model")


def test_local_path_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [row("own", 1)])
    with pytest.raises(
        InputError, match=r"--benchmark .*rows\.jsonl: a local path, which a pod cannot see\..*--upload"
    ):
        reachable_inputs(given(benchmark=path), RunConfig(), STORE, upload=False)
    with pytest.raises(InputError, match=r"--model model: no such file here, and it is no name on the hub"):
        reachable_inputs(given(model="model"), RunConfig(), STORE, upload=True)


def test_store_of_this_machine_and_the_demos_teacher_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"store '\.reasongenrm': a pod cannot reach a folder of this machine"):
        reachable_inputs(REMOTE, RunConfig(), ".reasongenrm", upload=True)
    with pytest.raises(ConfigError, match=r"teacher 'demo'"):
        reachable_inputs(given(teacher="demo"), RunConfig(), STORE, upload=True)


def test_local_data_and_models_are_put_into_the_store_once(store: Store, tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", [PAIR])
    rows = write_rows(tmp_path / "rows.jsonl", [row("own", 1)])
    model = str(tiny_checkpoint(tmp_path / "model", "chatml"))
    inputs = given(preferences=pairs, benchmark=rows, model=model, teacher=model)
    moved = reachable_inputs(inputs, RunConfig(), store.uri, upload=True)
    assert read_uri(moved.preferences_uri) == Path(pairs).read_bytes()
    assert read_uri(moved.benchmark_uri) == Path(rows).read_bytes()
    assert moved.preferences_uri.startswith(f"{store.uri}/uploads/")
    assert moved.preferences_uri.endswith("/pairs.jsonl")
    assert moved.model_uri == moved.teacher_uri
    assert open_artifact(moved.model_uri).stage == "import_model"
    names = store.list()
    assert reachable_inputs(inputs, RunConfig(), store.uri, upload=True) == moved
    assert store.list() == names
    Path(pairs).write_text(json.dumps({**PAIR, "source": "mine"}) + "\n")
    assert reachable_inputs(inputs, RunConfig(), store.uri, upload=True).preferences_uri != moved.preferences_uri


def test_bad_row_is_found_before_anything_is_uploaded(store: Store, tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"chosen": []}])
    with pytest.raises(InputError, match=r"pairs\.jsonl line 1"):
        reachable_inputs(given(preferences=pairs), RunConfig(), store.uri, upload=True)
    assert store.list() == []


# Arguments.


def test_arguments_are_uris_and_what_the_config_changes() -> None:
    sections = {"sft": {"learning_rate": 0.5}, "resources": {"num_accelerators": 4}}
    assert arguments_of(parse_section(RunConfig, sections, "test"), REMOTE, STORE) == {
        "store_uri": STORE,
        **REMOTE.model_dump(),
        "config": {"sft": {"learning_rate": 0.5}},  # resources are compiled into the pipeline
    }


def test_model_that_is_spread_wider_than_its_task_is_refused() -> None:
    config = parse_section(RunConfig, {"distill": {"engine": {"tensor_parallel_size": 4}}}, "test")
    with pytest.raises(
        ConfigError, match=r"distill\.engine\.tensor_parallel_size is 4, but resources\.num_teacher_acc"
    ):
        arguments_of(config, given(teacher="org/teacher"), STORE)
    arguments_of(config, REMOTE, STORE)  # an endpoint spreads nothing here
    enough = config.model_copy(update={"resources": ResourcesConfig(num_teacher_accelerators=4)})
    arguments_of(enough, given(teacher="org/teacher"), STORE)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"sample": {"engine": {"tensor_parallel_size": 2, "data_parallel_size": 3}}},
            r"sample\.engine\.tensor_parallel_size is 2 and sample\.engine\.data_parallel_size is 3, but "
            r"resources\.num_accelerators is 4: .* Set resources\.num_accelerators to 6, or lower tensor",
        ),
        ({"score": {"data_parallel_size": 8}}, r"score\.data_parallel_size is 8, but resources\.num_accelerators is 4"),
    ],
)
def test_more_replicas_than_accelerators_are_refused(sections: dict[str, Any], message: str) -> None:
    resources = {"num_accelerators": 4}
    with pytest.raises(ConfigError, match=message):
        arguments_of(parse_section(RunConfig, {**sections, "resources": resources}, "test"), REMOTE, STORE)
    fits = {
        "sample": {"engine": {"tensor_parallel_size": 2, "data_parallel_size": 2}},
        "score": {"data_parallel_size": 4},
    }
    arguments_of(parse_section(RunConfig, {**fits, "resources": resources}, "test"), REMOTE, STORE)


def test_vllm_without_an_accelerator_is_refused() -> None:
    config = parse_section(RunConfig, {"resources": {"num_accelerators": 0}}, "test")
    with pytest.raises(ConfigError, match=r"sample\.engine\.tensor_parallel_size is 1 .*num_accelerators is 0"):
        arguments_of(config, REMOTE, STORE)


def test_pods_that_only_wait_for_trainjobs_hold_no_accelerators() -> None:
    trainings = {name: {"mode": "trainjob"} for name in ("genrm", "sft", "dpo")}
    config = parse_section(RunConfig, trainings, "test")
    with pytest.raises(ConfigError, match=r"resources\.num_train_accelerators is 1: the pods that wait.*Set it to 0"):
        arguments_of(config, REMOTE, STORE)
    arguments_of(config.model_copy(update={"resources": ResourcesConfig(num_train_accelerators=0)}), REMOTE, STORE)
    one = parse_section(RunConfig, {"sft": {"mode": "trainjob"}}, "test")
    arguments_of(one, REMOTE, STORE)  # the others train in their own pods


# The Job.


def job(**changes: Any) -> list[dict[str, Any]]:
    config = parse_section(RunConfig, {"sft": {"learning_rate": 3e-6}, "resources": {"num_accelerators": 2}}, "test")
    options: dict[str, Any] = {
        "name": "reasongenrm-20261124-101500-3f2a",
        "experiment": "reasongenrm",
        "namespace": "kubeflow",
        "host": "http://ml-pipeline.kubeflow:8888",
        "ui": None,
        "image": "ghcr.io/reasongenrm/reasongenrm-cpu:0.1.0",
        "service_account": "pipeline-runner",
    }
    return submit_job(config, REMOTE, STORE, **{**options, **changes})


def test_job_and_its_config_are_what_kubernetes_knows() -> None:
    documents = job()
    assert [document["kind"] for document in documents] == ["ConfigMap", "Job"]
    for document in documents:
        check(document)
        assert document["metadata"]["namespace"] == "kubeflow"


def test_job_with_a_wrong_field_is_noticed() -> None:
    documents = job()
    documents[1]["spec"]["template"]["spec"]["containers"][0]["secretContext"] = {}
    with pytest.raises(Exception, match="secretContext"):
        check(documents[1])


def test_job_meets_pod_security_restricted() -> None:
    pod = job()[1]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= {
        "configMap",
        "projected",
        "emptyDir",
    }


def test_job_submits_the_very_same_run(tmp_path: Path) -> None:
    config_map, submit = job()
    path = tmp_path / "run.yaml"
    path.write_text(config_map["data"]["run.yaml"])
    config = load_config(path)
    assert choose_inputs(config.inputs) == REMOTE
    assert config.sft.learning_rate == 3e-6
    assert config.resources.num_accelerators == 2
    arguments = submit["spec"]["template"]["spec"]["containers"][0]["args"]
    assert f"--config={CONFIG_FOLDER}/run.yaml" in arguments
    assert f"--store={STORE}" in arguments
    assert "--host=http://ml-pipeline.kubeflow:8888" in arguments
    mounted = {volume["name"]: volume for volume in submit["spec"]["template"]["spec"]["volumes"]}
    assert mounted["config"]["configMap"]["name"] == config_map["metadata"]["name"]


def test_job_is_yaml_that_loads_as_it_was() -> None:
    assert list(yaml.safe_load_all(yaml.safe_dump_all(job(), sort_keys=False))) == job()
