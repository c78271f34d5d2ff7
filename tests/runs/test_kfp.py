"""Kubeflow Pipelines over HTTP: versions, runs, tasks, logs, and what goes wrong on the way."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from reasongenrm.config import ResourcesConfig, RunConfig
from reasongenrm.errors import ClusterError, ConfigError
from reasongenrm.kubernetes import connection, waiting
from reasongenrm.kubernetes.connection import NotFoundError, UnavailableError
from reasongenrm.pipelines.compile import PIPELINE_NAME, Compiled, compile_pipeline
from reasongenrm.runs import kfp
from reasongenrm.runs.kfp import PipelineServer
from reasongenrm.runs.kfp_runs import task_names
from reasongenrm.runs.submit import arguments_of
from reasongenrm.store.run_records import RunInputs
from tests.kube.fake_kfp import FakeKfp, FakeRun, login_page

INPUTS = RunInputs(
    preferences_uri="org/pairs", benchmark_uri="allenai/reward-bench", model_uri="org/model", teacher_uri="http://t/v1"
)
ARGUMENTS = arguments_of(RunConfig(), INPUTS, "s3://bucket/runs")


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compile_pipeline()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (kfp.TOKEN_ENV, kfp.COOKIE_ENV, kfp.HOST_ENV, kfp.UI_ENV):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(kfp.TOKEN_PATH_ENV, str(tmp_path / "token"))


@pytest.fixture
def server() -> Iterator[FakeKfp]:
    with FakeKfp().running() as fake:
        yield fake


def started(fake: FakeKfp, compiled: Compiled, name: str = "first") -> tuple[PipelineServer, FakeRun]:
    """A run that has just been started."""
    client = PipelineServer.connect(fake.url)
    version = client.ensure_version(PIPELINE_NAME, compiled.version_name, compiled.ir)
    run_id = client.start(version, "judges", name, ARGUMENTS)
    return client, fake.runs[run_id]


# Starting.


def test_run_is_started_with_every_argument_that_the_pipeline_takes(server: FakeKfp, compiled: Compiled) -> None:
    _, run = started(server, compiled)
    assert run.body["display_name"] == "first"
    assert run.body["runtime_config"]["parameters"] == ARGUMENTS
    (experiment,) = server.experiments.values()
    assert run.body["experiment_id"] == experiment["experiment_id"]
    assert experiment["display_name"] == "judges"


def test_page_of_a_run_is_in_the_ui_which_may_have_to_be_reached_first(
    server: FakeKfp, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = PipelineServer.connect(server.url)  # of the API alone, which has no pages
    assert client.link("r1") is None
    forward = "kubectl port-forward -n {} svc/ml-pipeline-ui 8080:80"
    assert client.page("r1") == f"http://127.0.0.1:8080/#/runs/details/r1 after `{forward.format('kubeflow')}`"
    client.host = "http://ml-pipeline.kfp.svc.cluster.local:8888"
    assert forward.format("kfp") in client.page("r1")
    monkeypatch.setenv(kfp.UI_ENV, "https://kfp.example/pipeline/")
    assert client.link("r1") == client.page("r1") == "https://kfp.example/pipeline/#/runs/details/r1"
    monkeypatch.delenv(kfp.UI_ENV)
    with FakeKfp(ui=True).running() as ui:
        assert PipelineServer.connect(ui.url).page("r1") == f"{ui.url}/#/runs/details/r1"


def test_ui_without_its_api_server_is_told() -> None:
    fake = FakeKfp(multi_user=True, ui=True)
    fake.api_is_ready = False
    with fake.running(), pytest.raises(UnavailableError, match=r"the UI answers, but the API server behind it does"):
        PipelineServer.connect(fake.url)


def test_version_that_is_there_is_used_and_another_content_is_another_version(
    server: FakeKfp, compiled: Compiled
) -> None:
    client, _ = started(server, compiled)
    first = client.ensure_version(PIPELINE_NAME, compiled.version_name, compiled.ir)
    other = compile_pipeline(ResourcesConfig(cpu_image="registry.example/judge:2"))
    second = client.ensure_version(PIPELINE_NAME, other.version_name, other.ir)
    assert server.seen.count("POST /apis/v2beta1/pipelines/upload_version") == 2
    assert (len(server.pipelines), len(server.versions), len(server.experiments)) == (1, 2, 1)
    assert first.pipeline_id == second.pipeline_id
    assert first.version_id != second.version_id


def test_version_that_another_process_uploads_at_the_same_time_is_used(server: FakeKfp, compiled: Compiled) -> None:
    client = PipelineServer.connect(server.url)

    def other_was_faster(kind: str) -> None:
        server.on_create = lambda _kind: None
        items = {"pipeline": server.pipelines}[kind]
        items["theirs"] = {"pipeline_id": "theirs", "display_name": PIPELINE_NAME}

    server.on_create = other_was_faster
    version = client.ensure_version(PIPELINE_NAME, compiled.version_name, compiled.ir)
    assert version.pipeline_id == "theirs"


def test_argument_that_the_pipeline_does_not_take_is_the_servers_error(server: FakeKfp, compiled: Compiled) -> None:
    client, _ = started(server, compiled)
    version = client.ensure_version(PIPELINE_NAME, compiled.version_name, compiled.ir)
    with pytest.raises(ClusterError, match=r"cannot start run 'x' \(400\): InvalidInputError: unknown \['colour'\]"):
        client.start(version, "judges", "x", {**ARGUMENTS, "colour": "red"})


# Looking at runs.


def states_of(client: PipelineServer, run: FakeRun) -> dict[str, str]:
    return {task.name: task.state for task in client.run(run.run_id).tasks}


def test_tasks_have_the_uis_names_and_states(server: FakeKfp, compiled: Compiled) -> None:
    client, run = started(server, compiled)
    run.set("prepare-pairs", "Succeeded")
    run.set("distill-reasons", "Running")
    run.set("select-reasons", "Pending", message="Unschedulable: 0/3 nodes:\n3 Insufficient nvidia.com/gpu.")
    found = client.run(run.run_id)
    assert (found.name, found.state, found.has_ended, found.namespace) == ("first", "running", False, "kubeflow")
    assert len(found.tasks) == 11
    tasks = {task.name: task for task in found.tasks}
    assert tasks["prepare_pairs"].state == "succeeded"
    assert tasks["distill_reasons"].state == "running"
    assert tasks["select_reasons"].state == "pending"
    assert tasks["select_reasons"].message == "Unschedulable: 0/3 nodes: 3 Insufficient nvidia.com/gpu."
    assert tasks["train_sft (sft)"].state == tasks["deploy_kserve"].state == "pending"
    first = found.tasks[0]
    assert first.started_at
    assert first.ended_at
    assert (first.ended_at - first.started_at).total_seconds() == 90
    assert found.tasks[1].ended_at is None


def test_run_that_argo_has_not_looked_at_is_pending(server: FakeKfp, compiled: Compiled) -> None:
    client, run = started(server, compiled)
    for _ in range(2):  # as KFP made it, and as its agent reports it
        assert client.run(run.run_id).state == client.runs(PIPELINE_NAME, 1)[0].state == "pending"
        assert set(states_of(client, run).values()) == {"pending"}
        run.report()
    assert run.state == "RUNTIME_STATE_UNSPECIFIED"


@pytest.mark.parametrize("stock_retries", [True, False])
def test_task_whose_driver_failed_has_failed_and_what_never_ran_was_skipped(
    compiled: Compiled, stock_retries: bool
) -> None:
    with FakeKfp(stock_retries=stock_retries).running() as server:
        client, run = started(server, compiled)
        run.workflow.fail_driver("train-sft-2", "main: Error (exit code 1)")
        run.end("Failed")
        found = client.run("first")
    assert found.state == "failed"
    tasks = {task.name: task for task in found.tasks}
    failed = tasks.pop("train_sft (sft)")
    assert (failed.state, failed.message) == ("failed", "main: Error (exit code 1)")
    assert {task.state for task in tasks.values()} == {"skipped"}
    assert {task.started_at for task in tasks.values()} == {None}


def test_view_goes_on_when_argo_compresses_the_nodes(server: FakeKfp, compiled: Compiled) -> None:
    """A smoke run of an earlier pipeline had 90 nodes of 11.5 kB, 1,041,211 bytes, at its 12th task."""
    client, run = started(server, compiled)
    run.workflow.node_bytes = 17_000  # this pipeline has fewer nodes
    flow = [task.key for task in client.run("first").tasks]
    for number, task in enumerate(flow[:-1]):
        run.set(task, "Succeeded")
        assert [task.state for task in client.run("first").tasks[: number + 1]] == ["succeeded"] * (number + 1)
    status = json.loads(run.manifests["workflow_manifest"])["status"]
    assert "nodes" not in status
    assert status["compressedNodes"]
    run.set(flow[-1], "Running")
    run.end("Succeeded")
    assert client.run("first").state == "succeeded"


# Cancelled runs.


@pytest.mark.parametrize("stock_retries", [True, False])
@pytest.mark.parametrize("agent_is_slow", [False, True])
def test_cancelled_run_is_told_from_a_failed_one_and_its_tasks_too(
    compiled: Compiled, stock_retries: bool, agent_is_slow: bool
) -> None:
    with FakeKfp(stock_retries=stock_retries).running() as server:
        client, run = started(server, compiled)
        run.set("prepare-pairs", "Succeeded")
        run.set("train-sft", "Failed", message="main: Error (exit code 1)")
        run.set("evaluate-rewardbench", "Pending")
        run.set("train-sft-2", "Running")
        run.workflow.run_driver("distill-reasons")
        client.cancel(run.run_id)
        assert client.run("first").state == "canceling"
        run.stop(agent_is_slow=agent_is_slow)
        assert run.state == "FAILED"  # KFP has no other word for it
        found = client.run("first")
        (listed,) = client.runs(PIPELINE_NAME, 10)
    assert (found.state, found.error) == ("canceled", None)
    # A list has only KFP's history, in which the wish is missing if its agent did not see it in time.
    assert listed.state == ("failed" if agent_is_slow else "canceled")
    states = {task.name: task.state for task in found.tasks}
    assert states.pop("prepare_pairs") == "succeeded"
    assert states.pop("train_sft (genrm)") == "failed"  # before anybody cancelled
    assert states.pop("train_sft (sft)") == "canceled"
    assert set(states.values()) == {"skipped"}  # also the one whose pod no node had taken, and the one whose driver ran
    assert {task.started_at for task in found.tasks if task.state == "skipped"} == {None}


def test_run_that_failed_after_an_earlier_cancellation_has_failed(server: FakeKfp, compiled: Compiled) -> None:
    client, run = started(server, compiled)
    run.set("train-sft-2", "Running")
    client.cancel(run.run_id)
    run.stop()
    run.workflow.deadline = None  # a retry in the UI takes it away (backend/src/common/util/workflow.go)
    run.workflow.phase = "Running"
    run.report()
    run.set("train-sft-2", "Failed", message="main: OOMKilled (exit code 137)")
    run.end("Failed", "child 'x' failed")
    found = client.run("first")
    assert (found.state, found.error) == ("failed", "child 'x' failed")


def test_task_names_are_those_of_the_pipeline_in_the_order_of_its_data_flow(compiled: Compiled) -> None:
    spec, platform = yaml.safe_load_all(compiled.ir)
    names = task_names({"pipeline_spec": spec, "platform_spec": platform})
    assert names == task_names(spec)
    assert names["train-sft-2"] == "train_sft (sft)"
    assert names["deploy-kserve"] == "deploy_kserve"
    order = list(names)
    flow = ["prepare-pairs", "distill-reasons", "select-reasons", "train-sft-2", "sample-reasons"]
    flow += ["select-preferences", "train-dpo", "evaluate-rewardbench", "select-winner", "deploy-kserve"]
    assert [key for key in order if key in flow] == flow


def test_runs_of_other_pipelines_are_left_out_and_pages_are_read_on(
    server: FakeKfp, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, run = started(server, compiled)
    for number in range(5):
        body = {**run.body, "pipeline_version_reference": {"pipeline_id": "x"}}
        other = FakeRun(f"other-{number}", body, run.workflow)
        server.runs[other.run_id] = other
    monkeypatch.setattr(kfp, "_PAGE_SIZE", 2)
    assert [found.run_id for found in client.runs(PIPELINE_NAME, 10)] == [run.run_id]
    assert server.seen.count("GET /apis/v2beta1/runs") == 3
    assert client.runs("another pipeline", 10) == []


def test_run_that_is_not_there_or_not_the_only_one_is_told(server: FakeKfp, compiled: Compiled) -> None:
    client, run = started(server, compiled)
    with pytest.raises(NotFoundError, match=r"no run 'second'\. `reasongenrm runs --host` lists"):
        client.run("second")
    with pytest.raises(NotFoundError, match=r"cannot find run 0.*\(404\).*Run 0.* not found"):
        client.run("00000000-0000-0000-0000-000000000000")
    started(server, compiled)
    with pytest.raises(ClusterError, match=rf"2 runs are called 'first'\. Give the id of one: .*{run.run_id}"):
        client.run("first")


def test_run_is_followed_to_its_end_through_an_outage(
    server: FakeKfp, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kfp, "_NUM_RETRIES", 0)
    monkeypatch.setattr(kfp, "POLL_SECONDS", 0.01)
    client, run = started(server, compiled)

    def starts_in_an_outage() -> None:
        run.start()
        server.fail_next(503, times=2)

    steps = iter([lambda: None, starts_in_an_outage, lambda: None, lambda: run.end("Succeeded")])
    server.on_get = lambda _run: next(steps)()
    assert [found.state for found in client.follow(run.run_id)] == ["pending", "running", "succeeded"]
    assert not server.failing


def test_server_that_stays_away_ends_the_following(
    server: FakeKfp, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kfp, "_NUM_RETRIES", 0)
    monkeypatch.setattr(kfp, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "OUTAGE_SECONDS", 0.05)
    monkeypatch.setattr(connection, "FIRST_WAIT_SECONDS", 0.01)
    client, run = started(server, compiled)
    server.fail_next(500, "database is gone", times=1000)
    with pytest.raises(UnavailableError, match=r"\(500\): database is gone\. Try again"):
        list(client.follow(run.run_id))


def test_run_is_cancelled_once(server: FakeKfp, compiled: Compiled) -> None:
    client, run = started(server, compiled)
    client.cancel(run.run_id)
    assert run.state == "CANCELING"
    with pytest.raises(ClusterError, match=r"cannot cancel run .* \(400\): Failed to terminate"):
        client.cancel(run.run_id)


def test_log_that_the_server_answers_with_200_and_an_error_is_no_log(server: FakeKfp, compiled: Compiled) -> None:
    client, run = started(server, compiled)
    run.logs["pod-1"] = 'line one\n{"metric": 1}\n'
    found = client.run(run.run_id)
    assert client.log(found, "pod-1") == 'line one\n{"metric": 1}\n'
    with pytest.raises(NotFoundError, match=r"no log of pod-2: BadRequestError: Failed to read logs"):
        client.log(found, "pod-2")


def test_run_of_which_kfp_keeps_no_workflow_is_told(server: FakeKfp, compiled: Compiled) -> None:
    client, run = started(server, compiled)
    run.manifests.clear()
    with pytest.raises(ClusterError, match=r"no Workflow is kept of run .*expected what Kubeflow Pipelines 2\.17 has"):
        client.run("first")


# Getting in.


def test_host_is_asked_for_and_must_be_a_url(monkeypatch: pytest.MonkeyPatch, server: FakeKfp) -> None:
    with pytest.raises(ConfigError, match=r"no Kubeflow Pipelines host\. Give --host URL or set KF_PIPELINES_ENDPOINT"):
        PipelineServer.connect(None)
    with pytest.raises(ConfigError, match=r"--host ml-pipeline:8888: expected a URL"):
        PipelineServer.connect("ml-pipeline:8888")
    monkeypatch.setenv(kfp.HOST_ENV, f"{server.url}/")
    assert PipelineServer.connect(None).host == server.url


def test_nobody_answers_is_said_with_the_address() -> None:
    with pytest.raises(UnavailableError, match=r"http://127\.0\.0\.1:9: cannot see whether it is well: .*port-forward"):
        PipelineServer.connect("http://127.0.0.1:9")


def test_login_page_is_no_api() -> None:
    with (
        login_page() as url,
        pytest.raises(ClusterError, match=r"answers with text/html.*most often it is a login page"),
    ):
        PipelineServer.connect(url)


def test_token_comes_from_the_environment_or_from_the_pods_file_which_is_read_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with FakeKfp(token="secret-1").running() as server:
        with pytest.raises(ClusterError, match=r"\(401\).*no user identity header.*KF_PIPELINES_TOKEN"):
            PipelineServer.connect(server.url)
        (tmp_path / "token").write_text("secret-1\n")
        client = PipelineServer.connect(server.url)
        server.token = "secret-2"
        (tmp_path / "token").write_text("secret-2")
        assert client.runs(PIPELINE_NAME, 1) == []
        server.token = "secret-3"
        monkeypatch.setenv(kfp.TOKEN_ENV, "secret-3")
        assert client.runs(PIPELINE_NAME, 1) == []


def test_refusal_names_the_namespace_and_the_role() -> None:
    fake = FakeKfp(multi_user=True)
    fake.forbidden_namespaces.add("team-b")
    with fake.running() as server:
        with pytest.raises(ConfigError, match=r"this KFP has several users\. Say with --namespace"):
            PipelineServer.connect(server.url)
        client = PipelineServer.connect(server.url, "team-b")
        with pytest.raises(ClusterError, match=r"\(403\): PermissionDenied.*namespace team-b.*kubeflow-pipelines-edit"):
            client.runs(PIPELINE_NAME, 1)


def test_everything_is_done_in_the_profile_where_there_are_profiles(compiled: Compiled) -> None:
    with FakeKfp(multi_user=True).running() as server:
        client = PipelineServer.connect(server.url, "team-a")
        version = client.ensure_version(PIPELINE_NAME, compiled.version_name, compiled.ir)
        client.start(version, "judges", "first", ARGUMENTS)
        for items in (server.pipelines, server.experiments):
            assert [item["namespace"] for item in items.values()] == ["team-a"]


def test_reading_is_tried_again_and_starting_is_not(server: FakeKfp, compiled: Compiled) -> None:
    client, run = started(server, compiled)
    server.fail_next(503)
    assert client.run(run.run_id).name == "first"
    version = client.ensure_version(PIPELINE_NAME, compiled.version_name, compiled.ir)
    seen: list[Any] = []
    server.on_create = seen.append
    before = server.seen.count("POST /apis/v2beta1/runs")
    real = client._ensure  # the experiment is found first; then the start itself fails

    def found(*calls: Any) -> str:
        experiment = real(*calls)
        server.fail_next(503)
        return experiment

    client._ensure = found  # type: ignore[method-assign]
    with pytest.raises(UnavailableError, match=r"cannot start run 'second' \(503\)"):
        client.start(version, "judges", "second", ARGUMENTS)
    assert server.seen.count("POST /apis/v2beta1/runs") == before + 1
