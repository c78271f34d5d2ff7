"""A stage that trains in a TrainJob, against an API server and a scripted Kubeflow Trainer."""

import copy
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reasongenrm import __version__
from reasongenrm.config import SFTConfig, TrainJobConfig, parse_section
from reasongenrm.errors import ClusterError, ConfigError, TrainingError
from reasongenrm.runs.references import write_reference, write_settings
from reasongenrm.store.artifacts import ArtifactRef, Store, open_artifact
from reasongenrm.store.run_records import RunInputs
from reasongenrm.store.stage import Stage
from reasongenrm.training.job import check_config
from reasongenrm.trainjob import launch as trainjob
from reasongenrm.trainjob import node as train_node
from reasongenrm.trainjob.launch import run_as_trainjob, train_where_configured
from reasongenrm.trainjob.spec import KEY_LABEL, STORE_ANNOTATION, render_trainjob, trainjob_name
from tests.kube.fake_api import FakeCluster
from tests.training_cases import put_model, put_records, training_examples
from tests.trainjob.trainer import Job, ScriptedTrainer
from tests.waiting import HANG_SECONDS, wait_until

CONFIG = SFTConfig(
    max_length=512,
    train_batch_size=4,
    dtype="float32",
    mode="trainjob",
    trainjob=TrainJobConfig(gpus_per_node=0, cpu="2", memory="4Gi", failing_pod_seconds=0.3, report_seconds=0.2),
)
Script = Callable[[ScriptedTrainer, Job], None]


def reference(name: str) -> ArtifactRef:
    return ArtifactRef(
        stage=name, key="0" * 16, digest=f"sha256:{'1' * 64}", uri=f"s3://b/{name}", counts={}, metrics={}
    )


INPUTS = {"model": reference("import_model"), "examples": reference("select_reasons")}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainjob, "POLL_SECONDS", 0.1)
    for name in ("KFP_POD_NAME", "KFP_POD_UID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def trainer(fake: FakeCluster) -> Iterator[Callable[[Script], ScriptedTrainer]]:
    """Makes a scripted trainer of a script, and waits for it."""
    made: list[ScriptedTrainer] = []

    def make(script: Script) -> ScriptedTrainer:
        made.append(ScriptedTrainer(fake, script))
        return made[-1]

    yield make
    for each in made:
        each.finish()


def stage_of(store: Store, config: SFTConfig = CONFIG) -> Stage:
    return Stage(store, "train_sft", config, INPUTS, {"variant": "sft"})


def launch(store: Store, config: SFTConfig = CONFIG) -> ArtifactRef:
    with stage_of(store, config) as stage:
        return stage.done or run_as_trainjob(stage, config, INPUTS)


def write_artifact(store: Store) -> None:
    """What node 0 does in the end."""
    with stage_of(store) as stage:
        stage.add_bytes("model.safetensors", b"weights")
        stage.finish({"num_in": 1})


def trains(store: Store) -> Script:
    """A script of a training that goes well."""

    def script(trainer: ScriptedTrainer, job: Job) -> None:
        pod = trainer.pod(job)
        trainer.log(job, pod, "step 1", "step 2")
        write_artifact(store)
        trainer.pod(job, state={"terminated": {"exitCode": 0, "reason": "Completed"}})
        trainer.complete(job)

    return script


def waits(_: ScriptedTrainer, __: Job) -> None:
    """A script of a training that takes forever."""


def jobs(fake: FakeCluster) -> list[Job]:
    return fake.objects("trainjobs")


def put_job(fake: FakeCluster, store: Store, *, launch: str = "earlier", **changes: Any) -> Job:
    """A TrainJob that an earlier launcher left."""
    body = render_trainjob(stage_of(store), CONFIG, INPUTS, "kubeflow", launch)
    body["metadata"] |= changes
    return fake.put(body)


# What is asked of Kubeflow Trainer.


def test_spec_asks_for_nodes_processes_resources_secrets_and_queue(store: Store) -> None:
    place = TrainJobConfig(
        num_nodes=2,
        gpus_per_node=4,
        cpu="16",
        memory="128Gi",
        queue="gpus",
        image="registry.local/reasongenrm-train:1",
        node_selector={"gpu": "h100"},
        tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),  # type: ignore[arg-type]
    )
    config = CONFIG.model_copy(update={"trainjob": place, "train_batch_size": 128})
    body = render_trainjob(stage_of(store, config), config, INPUTS, "kubeflow", "launch-1")
    spec, metadata = body["spec"], body["metadata"]
    assert spec["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "TrainingRuntime",
        "name": "reasongenrm-torch",
    }
    node = spec["trainer"]
    assert (node["numNodes"], node["numProcPerNode"], node["image"]) == (2, 4, "registry.local/reasongenrm-train:1")
    resources = {"cpu": "16", "memory": "128Gi", "nvidia.com/gpu": "4"}
    assert node["resourcesPerNode"] == {"requests": resources, "limits": resources}
    secret = {"name": "reasongenrm-s3", "key": "AWS_ACCESS_KEY_ID"}
    assert node["env"][0] == {"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": secret}}
    assert all("value" not in entry for entry in node["env"])
    assert [entry["name"] for entry in node["env"] if entry["valueFrom"]["secretKeyRef"].get("optional")] == [
        "AWS_ENDPOINT_URL",
        "AWS_REGION",
        "AWS_SESSION_TOKEN",
    ]
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert metadata["labels"]["app.kubernetes.io/version"] == __version__
    [patch] = spec["runtimePatches"]
    [patched] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert patched["template"]["spec"]["template"]["spec"] == {
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    }
    assert "ownerReferences" not in metadata  # this is no pod


def test_spec_fits_the_published_schema_and_a_wrong_field_does_not(store: Store) -> None:
    schemas = pytest.importorskip("tests.kube.schemas", reason="the strict schemas are not here yet")
    place = TrainJobConfig(node_selector={"a": "b"}, tolerations=({"operator": "Exists"},), queue="q", image="x:1")  # type: ignore[arg-type]
    config = CONFIG.model_copy(update={"trainjob": place, "train_batch_size": 128})
    body = render_trainjob(stage_of(store, config), config, INPUTS, "kubeflow", "launch-1")
    schemas.check(body)
    for path in (("trainer", "numProcPerNodes"), ("podSpecOverrides",)):
        wrong = copy.deepcopy(body)
        at = wrong["spec"]
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = 1
        with pytest.raises(Exception, match=path[-1]):
            schemas.check(wrong)


def test_name_is_the_same_for_the_same_work_and_leaves_room_for_the_pods_suffixes(store: Store) -> None:
    name = trainjob_name(stage_of(store))
    assert name == trainjob_name(stage_of(store))
    assert len(f"{name}-node-0-999-abcde") <= 63
    elsewhere = CONFIG.model_copy(update={"trainjob": TrainJobConfig(num_nodes=4)})
    assert trainjob_name(stage_of(store, elsewhere)) == name  # where it is done is no part of what is done
    assert trainjob_name(stage_of(store, CONFIG.model_copy(update={"seed": 1}))) != name
    assert trainjob_name(stage_of(Store(f"{store.uri}/other"))) != name


def test_node_task_says_the_same_stage_in_pod_mode(store: Store) -> None:
    config = CONFIG.model_copy(update={"trainjob": TrainJobConfig(gpus_per_node=2)})
    stage = stage_of(store, config)
    [argument] = render_trainjob(stage, config, INPUTS, "kubeflow", "x")["spec"]["trainer"]["args"]
    task = train_node.NodeTask.model_validate_json(argument, strict=True)
    assert task.sft is not None
    assert (task.sft.mode, task.sft.num_processes, task.sft.trainjob) == ("pod", 2, TrainJobConfig())
    check_config(task.sft, "train_sft")
    assert (task.key, task.store_uri, task.variant, task.inputs) == (stage.key, store.uri, "sft", INPUTS)


def test_node_of_another_version_refuses_instead_of_training_for_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [argument] = render_trainjob(stage_of(store), CONFIG, INPUTS, "kubeflow", "x")["spec"]["trainer"]["args"]
    monkeypatch.setattr("reasongenrm.store.stage.__version__", "9.9.9")
    previous = signal.getsignal(signal.SIGTERM)
    try:
        assert train_node.main([argument]) == 2
        assert "the launcher expects" in capsys.readouterr().err
        assert train_node.main([argument.replace('"store_uri"', '"shop_uri"')]) == 2
        assert "store_uri: Field required, found" in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_batch_with_fewer_examples_than_processes_is_refused_before_anything_is_asked(
    fake: FakeCluster, store: Store
) -> None:
    place = TrainJobConfig(num_nodes=3, gpus_per_node=2)
    config = CONFIG.model_copy(update={"trainjob": place, "train_batch_size": 5})
    with pytest.raises(ConfigError, match=r"train_batch_size is 5; .* 2 processes x 3 nodes = 6. Set it to 6 or more"):
        launch(store, config)
    assert not fake.requests


def test_config_survives_kfps_floats_and_refuses_what_it_does_not_know() -> None:
    values = {
        "mode": "trainjob",
        "trainjob": {"num_nodes": 2.0, "gpus_per_node": 8.0, "tolerations": [{"tolerationSeconds": 30.0}]},
    }
    config = parse_section(SFTConfig, values, "sft")
    assert (config.trainjob.num_nodes, config.trainjob.tolerations[0].tolerationSeconds) == (2, 30)
    with pytest.raises(ConfigError, match=r"unknown key 'trainjob.num_node'; did you mean 'num_nodes'"):
        parse_section(SFTConfig, {"trainjob": {"num_node": 2}}, "sft")
    with pytest.raises(ConfigError, match=r"trainjob.memory"):
        parse_section(SFTConfig, {"trainjob": {"memory": "8GiB"}}, "sft")
    with pytest.raises(ConfigError, match="trainjob has settings, but mode is 'pod'"):
        check_config(SFTConfig(trainjob=TrainJobConfig(num_nodes=2)), "train_sft")


# How it goes.


def test_tiny_model_is_really_trained_by_the_command_of_the_trainjob(
    fake: FakeCluster,
    store: Store,
    tmp_path: Path,
    trainer: Callable[[Script], ScriptedTrainer],
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = put_model(store, tmp_path / "model")
    examples = put_records(store, "select_reasons", "examples.jsonl", training_examples(4))
    config = CONFIG.model_copy(update={"max_steps": 2, "gradient_checkpointing": False})
    trainer(ScriptedTrainer.really_run)
    ref = train_where_configured(store, config, "sft", model=model, examples=examples)
    manifest = open_artifact(ref)
    assert manifest.config["variant"] == "sft"
    assert {"model.safetensors", "training_log.json"} <= {entry.path for entry in manifest.files}
    assert f"train_sft: wrote {ref.uri}" in capfd.readouterr().out  # what the pod wrote, in the step's log
    assert [job["status"]["conditions"][0]["type"] for job in jobs(fake)] == ["Complete"]
    num_requests = len(fake.requests)
    assert train_where_configured(store, config, "sft", model=model, examples=examples) == ref  # a second run finds it
    in_pod = config.model_copy(update={"mode": "pod", "trainjob": TrainJobConfig()})
    assert (
        train_where_configured(store, in_pod, "sft", model=model, examples=examples) == ref
    )  # also one that would train here
    assert len(fake.requests) == num_requests


def test_trainjob_is_created_followed_and_its_artifact_found(
    fake: FakeCluster,
    store: Store,
    trainer: Callable[[Script], ScriptedTrainer],
    capfd: pytest.CaptureFixture[str],
) -> None:
    trainer(trains(store))
    assert launch(store).counts == {"num_in": 1}
    output = capfd.readouterr().out
    assert "step 1\nstep 2\n" in output
    assert "KFP_POD_NAME and KFP_POD_UID are not set" in output
    assert len(fake.asked("create", "trainjobs")) == 1


def test_step_in_a_pod_owns_its_trainjob_so_that_it_goes_with_it(
    fake: FakeCluster,
    store: Store,
    trainer: Callable[[Script], ScriptedTrainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = put_step(fake, "step", monkeypatch)
    trainer(trains(store))
    launch(store)
    [job] = jobs(fake)
    assert job["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "step", "uid": step["metadata"]["uid"]}
    ]
    fake.remove("pods", "kubeflow", "step")
    assert not jobs(fake)
    assert not fake.objects("pods")


def put_step(fake: FakeCluster, name: str, monkeypatch: pytest.MonkeyPatch | None = None) -> Job:
    """A step's pod; with `monkeypatch` the one that this process runs in."""
    pod = fake.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "kubeflow"},
            "spec": {"containers": [{"name": "main", "image": "x"}]},
            "status": {"phase": "Running"},
        }
    )
    if monkeypatch is not None:
        monkeypatch.setenv("KFP_POD_NAME", name)
        monkeypatch.setenv("KFP_POD_UID", pod["metadata"]["uid"])
    return pod


def test_running_trainjob_of_the_same_work_is_taken_up(
    fake: FakeCluster,
    store: Store,
    trainer: Callable[[Script], ScriptedTrainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = put_step(fake, "before")
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "before", "uid": before["metadata"]["uid"]}
    trainer(trains(store))
    put_job(fake, store, ownerReferences=[owner])
    step = put_step(fake, "step", monkeypatch)
    launch(store)
    assert not fake.asked("create", "trainjobs")
    [job] = jobs(fake)
    assert [each["uid"] for each in job["metadata"]["ownerReferences"]] == [
        before["metadata"]["uid"],
        step["metadata"]["uid"],
    ]


def test_foreign_trainjob_of_that_name_is_left_alone_and_explained(fake: FakeCluster, store: Store) -> None:
    put_job(fake, store, labels={KEY_LABEL: "f" * 16})
    with pytest.raises(
        ClusterError, match=f"exists, but is not this stage's: its label {KEY_LABEL} is 'ffff.*Rename or delete"
    ):
        launch(store)
    assert len(jobs(fake)) == 1
    fake.remove("trainjobs", "kubeflow", trainjob_name(stage_of(store)))
    put_job(fake, store, annotations={STORE_ANNOTATION: "s3://another"})
    with pytest.raises(ClusterError, match="'s3://another'"):
        launch(store)


@pytest.mark.parametrize("state", ["Failed", "Complete"])
def test_earlier_trainjob_that_left_nothing_is_made_anew_once(
    fake: FakeCluster, store: Store, trainer: Callable[[Script], ScriptedTrainer], state: str
) -> None:
    earlier = put_job(fake, store)
    scripted = trainer(trains(store))
    scripted.condition(earlier, state, "FailedJobs", "an earlier end")
    launch(store)
    [job] = jobs(fake)
    assert job["metadata"]["uid"] != earlier["metadata"]["uid"]
    assert len(fake.asked("delete", "trainjobs")) == 1


@pytest.mark.parametrize("state", ["Failed", "Complete"])
def test_trainjob_that_wrote_its_artifact_since_the_stage_looked_is_not_made_anew(
    fake: FakeCluster, store: Store, trainer: Callable[[Script], ScriptedTrainer], state: str
) -> None:
    with stage_of(store) as stage:
        assert stage.done is None
        scripted = trainer(waits)
        scripted.condition(put_job(fake, store), state, "Ended", "another step's")
        write_artifact(store)
        assert run_as_trainjob(stage, CONFIG, INPUTS).counts == {"num_in": 1}
    assert not fake.asked("create", "trainjobs")
    assert not fake.asked("delete", "trainjobs")


def test_trainjob_that_is_being_deleted_is_waited_for(
    fake: FakeCluster, store: Store, trainer: Callable[[Script], ScriptedTrainer]
) -> None:
    earlier = put_job(fake, store, finalizers=["foregroundDeletion"])
    fake.remove("trainjobs", "kubeflow", earlier["metadata"]["name"])
    scripted = trainer(trains(store))

    def end_it() -> None:
        wait_until(lambda: len(fake.asked("get", "trainjobs")) >= 3)  # it looks again and again
        marked = fake.find("trainjobs", "kubeflow", earlier["metadata"]["name"])
        assert marked is not None
        marked["metadata"].pop("finalizers")
        fake.put(marked)

    scripted.also(end_it)
    launch(store)
    assert jobs(fake)[0]["metadata"]["uid"] != earlier["metadata"]["uid"]


def test_queued_trainjob_has_no_time_out_and_says_what_it_waits_for(
    fake: FakeCluster,
    store: Store,
    trainer: Callable[[Script], ScriptedTrainer],
    capfd: pytest.CaptureFixture[str],
) -> None:
    def script(trainer: ScriptedTrainer, job: Job) -> None:
        trainer.condition(job, "Suspended", "Suspended", "TrainJob is suspended")
        fake.put(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": "e", "namespace": "kubeflow"},
                "type": "Warning",
                "involvedObject": {"uid": job["metadata"]["uid"]},
                "reason": "Pending",
                "message": "insufficient quota for nvidia.com/gpu",
            }
        )
        wait_until(lambda: len(fake.asked("list", "events")) >= 4)  # what it waits for is asked for each report
        trainer.condition(job, "Suspended", "Resumed", "TrainJob is resumed", status="False")
        trains(store)(trainer, job)

    trainer(script)
    place = CONFIG.trainjob.model_copy(update={"queue": "gpus"})
    launch(store, CONFIG.model_copy(update={"trainjob": place}))
    output = capfd.readouterr().out
    assert output.count("waits in queue gpus (kubectl get workloads -n kubeflow)") >= 3
    assert "Suspended: TrainJob is suspended. Pending: insufficient quota for nvidia.com/gpu" in output


def test_broken_log_and_busy_server_do_not_disturb(
    fake: FakeCluster,
    store: Store,
    trainer: Callable[[Script], ScriptedTrainer],
    capfd: pytest.CaptureFixture[str],
) -> None:
    def script(trainer: ScriptedTrainer, job: Job) -> None:
        pod = trainer.pod(job)
        trainer.log(job, pod, "step 0")
        for step in range(1, 5):
            wait_until(lambda: fake.num_streams(pod) == 1)
            fake.break_logs()
            fake.fail_next("get", "trainjobs", 429, headers={"Retry-After": "0"})
            fake.fail_next("list", "pods", 503)
            trainer.log(job, pod, f"step {step}")
        write_artifact(store)
        trainer.pod(job, state={"terminated": {"exitCode": 0, "reason": "Completed"}})
        trainer.complete(job)

    fake.fail_next("create", "trainjobs", 429, headers={"Retry-After": "0"})
    fake.cut_next("get", "trainjobs")
    trainer(script)
    launch(store)
    steps = [line for line in capfd.readouterr().out.splitlines() if line.startswith("step ")]
    assert steps == [f"step {number}" for number in range(5)]


def test_create_whose_answer_is_lost_makes_one_trainjob(
    fake: FakeCluster, store: Store, trainer: Callable[[Script], ScriptedTrainer]
) -> None:
    fake.cut_next("create", "trainjobs", carried_out=True)
    trainer(trains(store))
    launch(store)
    assert len(jobs(fake)) == 1


def test_two_steps_that_create_at_once_share_one_trainjob(
    fake: FakeCluster, store: Store, trainer: Callable[[Script], ScriptedTrainer]
) -> None:
    scripted = trainer(trains(store))
    fake.before_next("create", "trainjobs", lambda: put_job(fake, store))
    launch(store)
    assert len(scripted.created) == 1


# How it fails.


def test_missing_right_is_told_and_leaves_nothing(fake: FakeCluster, store: Store) -> None:
    fake.deny("create", "trainjobs")
    with pytest.raises(ClusterError, match=r"account alice may not create trainjobs.trainer.kubeflow.org"):
        launch(store)
    assert not jobs(fake)


def test_log_that_may_not_be_read_does_not_stop_the_training(
    fake: FakeCluster,
    store: Store,
    trainer: Callable[[Script], ScriptedTrainer],
    capfd: pytest.CaptureFixture[str],
) -> None:
    fake.deny("get", "pods/log")
    trainer(trains(store))
    launch(store)
    assert "the log is not followed any more; the training goes on." in capfd.readouterr().out


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("ImagePullBackOff", 'Back-off pulling image "reasongenrm-train:9"'),
        ("CreateContainerConfigError", 'secret "reasongenrm-s3" not found'),
    ],
)
def test_pod_that_cannot_start_fails_fast_with_its_own_reason(
    fake: FakeCluster, store: Store, trainer: Callable[[Script], ScriptedTrainer], reason: str, message: str
) -> None:
    waiting = {"waiting": {"reason": reason, "message": message}}

    def script(trainer: ScriptedTrainer, job: Job) -> None:
        trainer.pod(job, 1, state=waiting)

    trainer(script)
    with pytest.raises(TrainingError, match=f"node-0-1-abcde cannot start: {reason}: {message}"):
        launch(store)
    assert not jobs(fake)
    assert not fake.objects("pods")


def test_pod_that_finds_no_room_is_only_reported(
    fake: FakeCluster,
    store: Store,
    trainer: Callable[[Script], ScriptedTrainer],
    capfd: pytest.CaptureFixture[str],
) -> None:
    def script(trainer: ScriptedTrainer, job: Job) -> None:
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
        trainer.pod(job, state={}, conditions=[condition])
        wait_until(lambda: len(fake.asked("list", "pods")) >= 12)  # every 0.1 s at the most; it reports every 0.2 s
        trains(store)(trainer, job)

    trainer(script)
    launch(store)
    assert capfd.readouterr().out.count("node-0-0-abcde is Unschedulable: 0/3 nodes") >= 2


def test_failed_trainjob_tells_the_first_failed_pod_and_the_end_of_its_log(
    fake: FakeCluster, store: Store, trainer: Callable[[Script], ScriptedTrainer]
) -> None:
    def script(trainer: ScriptedTrainer, job: Job) -> None:
        first, second = trainer.pod(job, 0), trainer.pod(job, 1)
        trainer.log(job, first, "node 0 waits for the others")
        trainer.log(job, second, *[f"line {number}" for number in range(40)], "error: the loss is nan")
        for index, (code, at) in enumerate([(143, "2026-11-24T12:00:09Z"), (5, "2026-11-24T12:00:08Z")]):
            ended = {"exitCode": code, "reason": "Error", "finishedAt": at}
            trainer.pod(job, index, state={"terminated": ended})
        trainer.fail(job)

    trainer(script)
    with pytest.raises(TrainingError) as raised:
        launch(store)
    message = str(raised.value)
    assert "FailedJobs: jobset failed due to one or more job failures" in message
    assert "node-0-1-abcde (node 1) ended with exit code 5 (Error)" in message
    assert "line 39\n    error: the loss is nan\nFix the cause and run again" in message
    assert "line 10\n" not in message  # the last 30 lines alone
    assert not jobs(fake)


def test_pod_that_ran_out_of_memory_is_told_what_to_change(
    store: Store, trainer: Callable[[Script], ScriptedTrainer]
) -> None:
    def script(trainer: ScriptedTrainer, job: Job) -> None:
        trainer.pod(job, state={"terminated": {"exitCode": 137, "reason": "OOMKilled"}})
        trainer.fail(job)

    trainer(script)
    with pytest.raises(TrainingError, match=r"exit code 137 \(OOMKilled\). Raise trainjob.memory"):
        launch(store)


def test_complete_without_an_artifact_is_an_error(
    fake: FakeCluster, store: Store, trainer: Callable[[Script], ScriptedTrainer]
) -> None:
    def script(trainer: ScriptedTrainer, job: Job) -> None:
        pod = trainer.pod(job)
        trainer.log(job, pod, "wrote it elsewhere")
        trainer.pod(job, state={"terminated": {"exitCode": 0, "reason": "Completed"}})
        trainer.complete(job)

    trainer(script)
    with pytest.raises(TrainingError, match=r"is Complete, but .* holds no finished artifact(.|\n)*wrote it elsewhere"):
        launch(store)
    assert not jobs(fake)


def test_trainjob_that_someone_deletes_is_told(
    fake: FakeCluster, store: Store, trainer: Callable[[Script], ScriptedTrainer]
) -> None:
    trainer(lambda _, job: fake.remove("trainjobs", "kubeflow", job["metadata"]["name"]))
    with pytest.raises(ClusterError, match="was deleted by someone else"):
        launch(store)


def test_failed_clean_up_tells_how_and_does_not_hide_why(
    fake: FakeCluster,
    store: Store,
    trainer: Callable[[Script], ScriptedTrainer],
    capfd: pytest.CaptureFixture[str],
) -> None:
    fake.deny("delete", "trainjobs")
    trainer(lambda trainer, job: trainer.fail(job))
    with pytest.raises(TrainingError, match="failed: FailedJobs"):
        launch(store)
    name = trainjob_name(stage_of(store))
    assert f"Delete it: kubectl delete trainjob {name} -n kubeflow" in capfd.readouterr().out


# How it is stopped.

STEP = """
import json, sys
from reasongenrm.trainjob.launch import train_where_configured
from reasongenrm.runs.task import Task
told = json.loads(sys.argv[1])
with Task("train_sft (sft)", told["output"], **told["inputs"]) as task:
    task.publish(train_where_configured(task.store, task.config.sft, "sft", **task.inputs))
"""


def start_step(store: Store, folder: Path) -> "subprocess.Popen[str]":
    """The stage as a pipeline task runs it, in a process of its own."""
    folder.mkdir()
    uris = RunInputs(preferences_uri="p", benchmark_uri="b", model_uri="m", teacher_uri="t")
    settings = write_settings(store, uris, {"sft": CONFIG.model_dump(mode="json")})
    inputs = {name: write_reference(store, settings, ref) for name, ref in INPUTS.items()}
    told = {"output": str(folder / "model"), "inputs": inputs}
    command = [sys.executable, "-c", STEP, json.dumps(told)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_step_takes_its_trainjob_with_it(
    fake: FakeCluster,
    store: Store,
    tmp_path: Path,
    trainer: Callable[[Script], ScriptedTrainer],
    sent: signal.Signals,
    code: int,
) -> None:
    trainer(lambda trainer, job: trainer.log(job, trainer.pod(job), "step 1"))
    with start_step(store, tmp_path / "step") as process:
        try:
            wait_until(lambda: process.poll() is not None or bool(fake.asked("get", "pods/log")))
            process.send_signal(sent)
            output, _ = process.communicate(timeout=HANG_SECONDS)
        finally:
            process.kill()
    assert process.returncode == code, output
    assert "deleted TrainJob kubeflow/" in output
    assert not jobs(fake)
    assert not fake.objects("pods")


def test_stopped_step_leaves_a_trainjob_that_another_step_waits_for(
    fake: FakeCluster,
    store: Store,
    trainer: Callable[[Script], ScriptedTrainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = put_step(fake, "other")
    put_step(fake, "step", monkeypatch)
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "other", "uid": other["metadata"]["uid"]}
    trainer(waits)
    put_job(fake, store, ownerReferences=[owner])
    monkeypatch.setattr(trainjob.TrainPods, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch(store)
    [job] = jobs(fake)
    assert job["metadata"]["ownerReferences"] == [owner]
    fake.put({**other, "status": {"phase": "Succeeded"}})  # now nobody waits any more
    with pytest.raises(KeyboardInterrupt):
        launch(store)
    assert not jobs(fake)


def interrupted(_: Any) -> None:
    raise KeyboardInterrupt
