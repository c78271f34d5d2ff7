"""A judge is brought out, proven, or put back: over real HTTP, against a scripted KServe and a judge that really
answers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.config import DeployConfig, EvaluateConfig, GateConfig, JudgeServerConfig
from reasongenrm.deploy import change, model_registry, rollout
from reasongenrm.deploy.change import Deployed
from reasongenrm.deploy.deploy import deploy, deploy_kserve
from reasongenrm.deploy.manifest import ROLLOUT, render_inference_service
from reasongenrm.errors import ClusterError, InputError, StoreError
from reasongenrm.evaluation.evaluate import evaluation_files
from reasongenrm.http_client import Retries
from reasongenrm.judge.judge_app import ServerSettings, create_app
from reasongenrm.judge.pairwise import JudgeSettings
from reasongenrm.judge.server.limits import Limits
from reasongenrm.kubernetes import health, lease
from reasongenrm.kubernetes.cluster import Cluster
from reasongenrm.store.artifacts import MANIFEST, ArtifactRef, FileEntry, Manifest, Store, read_file
from reasongenrm.store.served import served_history, served_judge
from reasongenrm.store.stage import Stage
from tests.deploy.kserve import NAMESPACE, KServe, runtime
from tests.deploy.model_registry import FakeModelRegistry
from tests.endpoints import FakeEndpoint, completion, refusal, serving
from tests.judges import Judge, benchmark_of, evaluated, judged, oracle, silent
from tests.kube.fake_api import FakeCluster
from tests.kube.schemas import check
from tests.waiting import HANG_SECONDS, wait_until

CONFIG = DeployConfig(
    name="judge",
    rollout_timeout_seconds=HANG_SECONDS,
    num_golden=3,
    golden_timeout_seconds=HANG_SECONDS,
    drain_seconds=0,
).with_judge_image("registry/cpu:1")
RECREATE = CONFIG.model_copy(update={"strategy": "Recreate"})
NO_JUDGE = JudgeServerConfig(enabled=False)
PARSER = "reasongenrm_reasoning_parser.py"


def verdict(body: dict[str, Any]) -> str:
    """The right verdict on "What is n + 1?": the answer whose sum is right stands first or second."""
    text = body["messages"][0]["content"]
    answer_a = text.split("### Answer A\n")[1].split("\n\n### Answer B")[0]
    left, right = answer_a.rstrip(".").split(" = ")
    return "[[A]]" if sum(map(int, left.split(" + "))) == int(right) else "[[B]]"


def judge_server(predictor_url: str, key: str | None = None) -> AbstractContextManager[str]:
    """The judge's own server in front of a predictor."""
    return serving(create_app(JudgeSettings(predictor_url), Limits(api_key=key), ServerSettings()))


class World:
    """A store with an evaluated winner, a cluster, a judge behind an address."""

    def __init__(
        self, store: Store, fake: FakeCluster, endpoint: FakeEndpoint, kserve: KServe, folder: Path, judge: Judge
    ) -> None:
        self.store, self.fake, self.endpoint, self.kserve = store, fake, endpoint, kserve
        self.cluster = Cluster.connect()
        benchmark = benchmark_of(folder, {"sums": 4, "more": 4})
        settings = EvaluateConfig(max_tokens=50)
        with Stage(store, "evaluate_rewardbench", settings, {}, {"variant": "dpo"}) as stage:
            for name, data in evaluation_files(
                evaluated(benchmark, judge), judged(benchmark, judge), benchmark
            ).items():
                stage.add_bytes(name, data)
            self.evaluation = stage.finish({})
        with Stage(store, "select_winner", GateConfig(), {"evaluation_dpo": self.evaluation}) as stage:
            stage.add_bytes("decision.md", b"yes")
            self.decision = stage.finish({}, {"winner": "dpo", "passed": True})

    def model(self, how: str, files: tuple[str, ...] = (PARSER,)) -> ArtifactRef:
        """A finished artifact whose folder is called `how`, with these files' names."""
        digest = "sha256:" + how.encode().hex().ljust(64, "0")
        entries = tuple(FileEntry(path=name, size=2, sha256="0" * 64) for name in files)
        for name in files:
            self.store.put_bytes(f"judges/{how}/{name}", b"{}")
        manifest = Manifest(
            stage="train_dpo",
            key="0" * 16,
            digest=digest,
            created_at="2026-11-24T10:00:00+00:00",
            files=entries,
            config={},
            inputs={},
            input_uris={},
            code_version="0",
            source_sha256="0" * 64,
            counts={},
            metrics={},
            uri=self.uri(how),
        )
        self.store.put_bytes(f"judges/{how}/{MANIFEST}", manifest.model_dump_json().encode())
        return manifest.ref()

    def uri(self, how: str) -> str:
        return self.store.uri_of(f"judges/{how}")

    def deploy(self, how: str, config: DeployConfig = CONFIG, files: tuple[str, ...] = (PARSER,)) -> Deployed:
        model = self.model(how, files)
        manifest = render_inference_service(config, model, self.decision)
        return deploy(self.cluster, self.store, config, [manifest], model, self.decision)

    def services(self) -> list[str]:
        """What the InferenceServices that are there serve, as `model` calls it."""
        found = self.fake.objects("inferenceservices", NAMESPACE)
        return sorted(item["spec"]["predictor"]["model"]["storageUri"].split("/")[-2] for item in found)

    def served(self) -> str | None:
        """What the Service leads to, as `model` calls it."""
        stable = self.fake.find("services", NAMESPACE, "judge")
        if stable is None:
            return None
        for item in self.fake.objects("inferenceservices", NAMESPACE):
            part = "transformer" if "transformer" in item["spec"] else "predictor"
            if stable["spec"]["selector"] == {"app": f"isvc.{item['metadata']['name']}-{part}"}:
                assert stable["metadata"]["annotations"][ROLLOUT] == item["metadata"]["annotations"][ROLLOUT]
                uri: str = item["spec"]["predictor"]["model"]["storageUri"]
                return uri.split("/")[-2]
        return "nothing"

    def writes(self) -> list[str]:
        """What was written, but for the lease."""
        return [
            f"{request.verb} {request.resource}"
            for request in self.fake.requests
            if request.verb not in ("get", "list") and request.resource != "leases"
        ]


@pytest.fixture
def world(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[World]:
    endpoint = FakeEndpoint(lambda body, _: completion(verdict(body), reasoning="Counting decides."))
    with endpoint.running() as url, judge_server(url) as judge, FakeCluster(validate=check) as fake:
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig))
        monkeypatch.setattr(rollout, "POLL_SECONDS", 0.01)
        monkeypatch.setattr(change, "POLL_SECONDS", 0.01)
        monkeypatch.setattr(health, "SETTLE_SECONDS", 0.6)
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        fake.put(runtime())
        kserve = KServe(fake, url.removesuffix("/v1"), judge)
        yield World(store, fake, endpoint, kserve, tmp_path, getattr(request, "param", oracle))


def test_first_judge_is_created_proven_and_recorded(world: World) -> None:
    deployed = world.deploy("good")
    assert deployed.changed
    assert deployed.golden is not None
    assert deployed.golden.agreement == 1.0
    assert world.writes() == ["create inferenceservices", "create services"]
    assert world.served() == "good"
    assert len(world.endpoint.bodies) == 6  # three rows in both orders
    assert world.endpoint.bodies[0]["max_tokens"] == 2048  # asked by /v1/pairwise: the judge's server decides
    assert world.endpoint.bodies[0]["chat_template_kwargs"] == {"opening_role": "reason"}
    served = served_judge(world.store, NAMESPACE, "judge")
    assert served is not None
    assert (served.variant, served.evaluation, served) == ("dpo", world.evaluation, deployed.judge)


def test_same_checkpoint_twice_writes_nothing_and_asks_again(world: World) -> None:
    world.deploy("good")
    before, asked = world.writes(), len(world.endpoint.bodies)
    again = world.deploy("good")
    assert not again.changed
    assert world.writes() == before
    assert len(world.endpoint.bodies) == asked + 6
    assert len(served_history(world.store, NAMESPACE, "judge")) == 1


def test_next_judge_is_switched_to_once_it_is_proven_and_then_the_one_before_goes(world: World) -> None:
    world.deploy("good")
    there: list[list[str]] = []
    reply = world.endpoint.reply
    world.endpoint.reply = lambda *asked: there.append([*world.services(), str(world.served())]) or reply(*asked)  # type: ignore[func-returns-value]
    world.deploy("slow")  # late: reports ProgressDeadlineExceeded and then recovers
    assert set(map(tuple, there)) == {("good", "slow", "good")}
    assert (world.services(), world.served()) == (["slow"], "slow")
    assert world.writes()[-3:] == ["create inferenceservices", "update services", "delete inferenceservices"]
    assert [judge.model.uri for judge in served_history(world.store, NAMESPACE, "judge")] == [
        world.uri("good"),
        world.uri("slow"),
    ]


def test_what_others_gave_the_service_stays_and_only_its_aim_changes(world: World) -> None:
    world.deploy("good")
    stable = world.fake.find("services", NAMESPACE, "judge")
    assert stable is not None
    assert stable["spec"]["ports"] == [{"name": "http1", "port": 80, "targetPort": 8080, "protocol": "TCP"}]
    stable["spec"] |= {"clusterIP": "10.0.0.7", "type": "LoadBalancer"}
    stable["metadata"]["annotations"]["team"] = "a"
    world.fake.put(stable)
    world.deploy("other")
    now = world.fake.find("services", NAMESPACE, "judge")
    assert now is not None
    assert {key: now["spec"][key] for key in ("clusterIP", "type")} == {"clusterIP": "10.0.0.7", "type": "LoadBalancer"}
    assert (now["metadata"]["annotations"]["team"], world.served()) == ("a", "other")


BAD = [
    ("no_runtime", "KServe refuses the spec: NoSupportingRuntime: Specified runtime does not support it"),
    ("bad_image", "the image judge:1 cannot be pulled: ImagePullBackOff: no such image"),
    ("bad_config", 'cannot be set up: CreateContainerConfigError: secret "x" not found'),
    ("crash", r"ended with exit code 1 \(Error\), 3 restarts. Its last lines:\s+loading\s+CUDA out of memory"),
]


@pytest.mark.parametrize(("how", "reason"), BAD)
def test_judge_that_cannot_start_never_touches_the_one_before(world: World, how: str, reason: str) -> None:
    world.deploy("good")
    before = world.fake.find("services", NAMESPACE, "judge")
    with pytest.raises(ClusterError, match=rf"{reason}[\s\S]*has answered all the time; the new one is deleted"):
        world.deploy(how)
    assert world.services() == ["good"]
    assert world.fake.find("services", NAMESPACE, "judge") == before
    assert world.writes()[2:] == ["create inferenceservices", "delete inferenceservices"]
    assert len(served_history(world.store, NAMESPACE, "judge")) == 1


@pytest.mark.parametrize(("how", "reason"), BAD[-1:])
def test_with_recreate_the_one_before_goes_first_and_comes_back(world: World, how: str, reason: str) -> None:
    world.deploy("good")
    with pytest.raises(ClusterError, match=rf"{reason}[\s\S]*served before is back. It is ready again"):
        world.deploy(how, RECREATE)
    assert (world.services(), world.served()) == (["good"], "good")
    assert world.writes()[2:] == [f"{verb} inferenceservices" for verb in ("delete", "create", "delete", "create")]
    assert world.deploy("other", RECREATE).changed
    assert (world.services(), world.served()) == (["other"], "other")


def test_first_judge_that_fails_leaves_nothing(world: World) -> None:
    with pytest.raises(ClusterError, match=r"cannot be pulled[\s\S]*what was created is deleted"):
        world.deploy("bad_image")
    assert (world.services(), world.served()) == ([], None)
    assert served_judge(world.store, NAMESPACE, "judge") is None


def test_pod_without_a_node_is_waited_for_until_the_time_is_over(world: World) -> None:
    config = CONFIG.model_copy(update={"rollout_timeout_seconds": 0.6})
    with pytest.raises(
        ClusterError,
        match=r"not ready after 1 s: 0 of 1 pods ready; .*pod judge-\w+-pred.* waits for a node: 0/3 nodes.*Recreate\.",
    ):
        world.deploy("stuck", config)
    assert world.services() == []


def test_judge_that_judges_wrongly_is_not_switched_to(world: World) -> None:
    world.deploy("good")
    world.endpoint.reply = lambda *_: completion("[[A]]", reasoning="Always the first.")
    with pytest.raises(
        ClusterError,
        match=r"judged 0 of 3 rows as the evaluation did; expected 75% at least.*A.., expected ..B..\.\n.*answered all",
    ):
        world.deploy("other")
    assert (world.services(), world.served()) == (["good"], "good")


@pytest.mark.parametrize("world", [silent], indirect=True)
def test_judge_that_was_never_right_is_served_only_where_any_answer_will_do(world: World) -> None:
    world.endpoint.reply = lambda *_: completion("?", reasoning="Random weights.")
    with pytest.raises(InputError, match="dpo judged none of 8 rows rightly in both orders"):
        world.deploy("good")
    deployed = world.deploy("good", CONFIG.model_copy(update={"min_golden_agreement": 0.0}))
    assert deployed.golden is not None
    # Three rows in both orders, each with one new sample: no verdict can be read.
    assert (deployed.changed, deployed.golden.agreement, len(world.endpoint.bodies)) == (True, 0.0, 12)


def test_key_that_the_judge_refuses_is_named(world: World) -> None:
    url = f"{world.kserve.model}/v1"
    with (
        judge_server(url, "judge-key") as world.kserve.judge,
        pytest.raises(ClusterError, match=r"JUDGE_API_KEY[\s\S]*what was created is deleted"),
    ):
        world.deploy("good")
    world.endpoint.reply = lambda *_: refusal(401, "wrong key")
    with pytest.raises(ClusterError, match=r"HTTP 401: wrong key. Set VLLM_API_KEY to a key"):
        world.deploy("good", CONFIG.model_copy(update={"judge": NO_JUDGE}))


def test_keys_of_judge_and_model_are_sent_where_they_belong(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "judge-key")
    monkeypatch.setenv("VLLM_API_KEY", "model-key")
    with judge_server(f"{world.kserve.model}/v1", "judge-key") as world.kserve.judge:
        assert world.deploy("good").golden is not None
    world.endpoint.headers.clear()
    world.deploy("other", CONFIG.model_copy(update={"judge": NO_JUDGE}))  # nothing is in front of the model
    assert {headers["authorization"] for headers in world.endpoint.headers} == {"Bearer model-key"}


def test_model_without_a_judge_in_front_is_asked_as_the_evaluation_asked(world: World) -> None:
    deployed = world.deploy("good", CONFIG.model_copy(update={"judge": NO_JUDGE}))
    assert {body["max_tokens"] for body in world.endpoint.bodies} == {50}
    with_judge = world.deploy("good")
    assert deployed.golden is not None
    assert with_judge.golden is not None
    said = [{**each.model_dump(), "p_a": None} for each in deployed.golden.judgments]
    assert [{**each.model_dump(), "p_a": None} for each in with_judge.golden.judgments] == said


def test_service_of_somebody_else_is_left_alone(world: World) -> None:
    ports = [{"port": 80, "protocol": "TCP"}]
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "judge", "namespace": NAMESPACE, "labels": {"app.kubernetes.io/managed-by": "Helm"}},
        "spec": {"selector": {"app": "theirs"}, "ports": ports},
    }
    world.fake.put(body)
    with pytest.raises(
        ClusterError, match=r"Service reasongenrm/judge: is there and not ours.*\n.*Nothing was changed"
    ):
        world.deploy("good")
    assert world.writes() == []


def test_conflict_is_read_again(world: World) -> None:
    world.deploy("good")
    world.fake.fail_next("update", "services", 409, times=2)
    assert world.deploy("other").changed
    assert len(world.fake.asked("update", "services")) == 3
    assert world.served() == "other"


def test_too_many_requests_and_lost_answers_are_survived(world: World) -> None:
    world.fake.fail_next("get", "inferenceservices", 429, headers={"Retry-After": "0"})
    for kind in ("inferenceservices", "services", "leases"):
        world.fake.cut_next("create", kind, carried_out=True)
    assert world.deploy("good").changed
    assert len(world.fake.asked("create", "inferenceservices")) == 1 + 1  # the one that was carried out, and its retry
    world.fake.cut_next("update", "services", carried_out=True)
    assert world.deploy("other").changed
    assert world.served() == "other"


def test_missing_right_is_named_and_nothing_is_changed(world: World) -> None:
    world.fake.deny("create", "inferenceservices")
    with pytest.raises(ClusterError, match=r"create inferenceservices[\s\S]*Nothing was changed"):
        world.deploy("good")
    assert world.services() == []


def test_runtime_that_is_missing_is_told_before_anything_is_written(world: World) -> None:
    config = CONFIG.model_copy(update={"runtime": "nobody"})
    with pytest.raises(ClusterError, match=r"ServingRuntime reasongenrm/nobody: not there \(found: reasongenrm-vllm\)"):
        world.deploy("good", config)
    assert world.writes() == []


def test_what_kserves_webhook_refuses_is_told_in_its_words_and_the_judge_before_serves_on(world: World) -> None:
    world.deploy("good")
    refused = 'admission webhook "isvc" denied the request: creation rejected: no such mode'
    world.fake.fail_next("create", "inferenceservices", 403, message=refused)
    with pytest.raises(ClusterError, match=r"admission rule.*no such mode[\s\S]*Nothing was changed"):
        world.deploy("other")
    assert (world.services(), world.served()) == (["good"], "good")


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        (PARSER, None, f"{PARSER}: not there; the manifest says 2 bytes"),
        (PARSER, b"{", f"{PARSER}: 1 bytes; the manifest says 2 bytes"),
        (MANIFEST, None, "no finished artifact here"),
    ],
)
def test_checkpoint_that_is_not_whole_is_told_before_anything_is_written(
    world: World, name: str, data: bytes | None, found: str
) -> None:
    world.deploy("good", RECREATE)
    before, model = world.writes(), world.model("other")
    world.store.delete([f"judges/other/{name}"])
    if data is not None:
        world.store.put_bytes(f"judges/other/{name}", data)
    manifest = render_inference_service(RECREATE, model, world.decision)
    with pytest.raises(StoreError, match=found):
        deploy(world.cluster, world.store, RECREATE, [manifest], model, world.decision)
    assert world.writes() == before


def test_endpoints_that_do_not_follow_point_the_service_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.deploy("good")
    before = world.fake.find("services", NAMESPACE, "judge")
    monkeypatch.setattr(change, "_ENDPOINT_SECONDS", 0.2)
    world.kserve.slices.is_up = False
    with pytest.raises(
        ClusterError, match=r"its endpoints are judge-\w+-transformer-1 0 s after the switch[\s\S]*all the"
    ):
        world.deploy("other")
    now = world.fake.find("services", NAMESPACE, "judge")
    assert before is not None
    assert now is not None
    assert (now["spec"], world.services()) == (before["spec"], ["good"])


def test_candidate_that_somebody_deletes_is_told(world: World) -> None:
    world.deploy("good")
    world.kserve.step_seconds = 0.1

    def interfere(event: str, service: dict[str, Any]) -> None:
        if event == "ADDED" and "stuck" in str(service["spec"]):
            world.fake.remove("inferenceservices", NAMESPACE, service["metadata"]["name"])

    world.fake.on_change("inferenceservices", interfere)
    with pytest.raises(ClusterError, match=r"somebody deleted it[\s\S]*Nothing was changed"):
        world.deploy("stuck", CONFIG.model_copy(update={"rollout_timeout_seconds": HANG_SECONDS}))
    assert world.served() == "good"


def test_two_deployments_at_once_the_second_is_refused_and_touches_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    world.deploy("good")
    asked, go_on, reply = threading.Event(), threading.Event(), world.endpoint.reply

    def wait(*question: Any) -> Any:
        asked.set()
        assert go_on.wait(HANG_SECONDS)
        return reply(*question)

    world.endpoint.reply = wait
    first = threading.Thread(target=world.deploy, args=("slow",))
    first.start()
    assert asked.wait(HANG_SECONDS)
    before = world.writes()
    with pytest.raises(ClusterError, match=r"another deployment is under way"):
        world.deploy("other")
    assert (world.writes(), world.services()) == (before, ["good", "slow"])
    go_on.set()
    first.join(HANG_SECONDS)
    assert (world.services(), world.served()) == (["slow"], "slow")
    assert world.deploy("other").changed  # and afterwards it may


def test_deployment_whose_lease_somebody_took_switches_nothing_and_deletes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    world.deploy("good")
    reply = world.endpoint.reply

    def take(*asked: Any) -> Any:
        held = world.fake.find("leases", NAMESPACE, "judge")
        assert held is not None
        if held["spec"]["holderIdentity"] != "somebody":
            held["spec"]["holderIdentity"] = "somebody"
            held["metadata"].pop("resourceVersion")
            reads = len(world.fake.asked("get", "leases"))
            world.fake.put(held)
            wait_until(
                lambda: len(world.fake.asked("get", "leases")) > reads
            )  # a renewal was refused: whose is it now?
            time.sleep(0.2)
        return reply(*asked)

    world.endpoint.reply = take
    with pytest.raises(ClusterError, match=r"has taken over before the switch[\s\S]*nothing was put back"):
        world.deploy("other")
    assert (world.services(), world.served()) == (["good", "other"], "good")


def kill(world: World, how: str, config: DeployConfig, number: int, when: Callable[[], bool], first: str = "") -> int:
    """Run the stage in a process, send it a signal once something holds, and return how it ended.

    Args:
        first: lines of Python that the process begins with.
    """
    arguments = [
        world.store.uri,
        *(found.model_dump_json() for found in (config, world.decision, world.model(how))),
    ]
    process = subprocess.Popen([sys.executable, "-c", first + PROGRAM, *arguments], env=dict(os.environ))
    wait_until(lambda: process.poll() is not None or when())
    process.send_signal(number)
    return process.wait(HANG_SECONDS)


PROGRAM = """
import signal, sys, json
def stop(*_): raise SystemExit(143)
signal.signal(signal.SIGTERM, stop)
from reasongenrm.config import DeployConfig
from reasongenrm.deploy.deploy import deploy_kserve
from reasongenrm.store.artifacts import ArtifactRef, Store
config, decision, model = map(json.loads, sys.argv[2:])
deploy_kserve(Store(sys.argv[1]), DeployConfig(**config), ArtifactRef(**decision), {'dpo': ArtifactRef(**model)})
"""


@pytest.mark.parametrize("config", [CONFIG, RECREATE])
def test_killed_deployment_is_ended_by_the_next_one(
    world: World, config: DeployConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    world.deploy("good")
    assert kill(world, "stuck", config, signal.SIGKILL, lambda: "stuck" in world.services()) == -signal.SIGKILL
    assert world.served() == ("good" if config is CONFIG else "nothing")
    short = config.model_copy(update={"rollout_timeout_seconds": 0.5})
    with pytest.raises(ClusterError, match=r"not ready after"):  # adopted, and it fails
        world.deploy("stuck", short)
    assert world.deploy("other", config).changed
    assert (world.services(), world.served()) == (["other"], "other")


def test_what_a_killed_deployment_left_goes_before_another_judge_comes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    world.deploy("good")
    kill(world, "stuck", CONFIG, signal.SIGKILL, lambda: "stuck" in world.services())
    assert (world.services(), world.served()) == (["good", "stuck"], "good")
    before = len(world.writes())
    world.deploy("other")
    assert world.writes()[before] == "delete inferenceservices"  # its GPU is free for the new one
    assert (world.services(), world.served()) == (["other"], "other")


def test_stage_looks_at_the_cluster_even_if_its_artifact_is_there(world: World) -> None:
    models = {"dpo": world.model("good")}
    first = deploy_kserve(world.store, CONFIG, world.decision, models)
    assert first.metrics["changed"]
    assert json.loads(read_file(first, "golden.json"))["agreement"] == 1.0
    assert json.loads(read_file(first, "rollout.json"))["timeline"][0]["what"].startswith("created InferenceService")
    asked = len(world.endpoint.bodies)
    assert deploy_kserve(world.store, CONFIG, world.decision, models) == first
    assert len(world.endpoint.bodies) == asked + 6
    world.fake.remove("inferenceservices", NAMESPACE, world.fake.objects("inferenceservices")[0]["metadata"]["name"])
    deploy_kserve(world.store, CONFIG, world.decision, models)
    assert world.served() == "good"


@pytest.mark.parametrize("config", [CONFIG, RECREATE])
def test_sigterm_in_the_middle_leaves_the_judge_before(world: World, config: DeployConfig) -> None:
    world.deploy("good")
    assert kill(world, "stuck", config, signal.SIGTERM, lambda: "stuck" in world.services()) == 143
    assert (world.services(), world.served()) == (["good"], "good")
    assert len(served_history(world.store, NAMESPACE, "judge")) == 1
    assert world.deploy("other").changed  # the lease was given back


def test_sigterm_after_the_switch_ends_the_judge_before_at_once(world: World) -> None:
    world.deploy("good")
    slow = CONFIG.model_copy(update={"drain_seconds": 600.0})
    switched = lambda: world.served() == "other" and len(served_history(world.store, NAMESPACE, "judge")) == 2  # noqa: E731
    assert kill(world, "other", slow, signal.SIGTERM, switched) == 143
    assert (world.services(), world.served()) == (["other"], "other")


def test_judges_server_that_crashes_is_told_and_the_judge_before_serves_on(world: World) -> None:
    world.deploy("good")
    broken = CONFIG.model_copy(update={"judge": JudgeServerConfig(image="reasongenrm-cpu:crash")})
    with pytest.raises(ClusterError, match=r"pod judge-\w+-transformer-\d+: kserve-container ended with exit code 1"):
        world.deploy("good", broken)
    assert (world.services(), world.served()) == (["good"], "good")


def test_vllm_without_a_reasoning_parser_serves_no_judge_and_is_asked_for_its_markup(world: World) -> None:
    container = {"name": "kserve-container", "image": "reasongenrm-vllm:1", "args": ["--port=8080"]}
    world.fake.put(runtime(containers=[container]))
    with pytest.raises(ClusterError, match="reasongenrm-vllm: starts vLLM without --reasoning-parser"):
        world.deploy("good")
    assert world.writes() == []
    world.deploy("good", CONFIG.model_copy(update={"judge": NO_JUDGE}), files=())
    assert {body["skip_special_tokens"] for body in world.endpoint.bodies} == {False}


def test_vllm_with_a_reasoning_parser_splits_by_itself(world: World) -> None:
    world.deploy("good")
    assert not any("skip_special_tokens" in body for body in world.endpoint.bodies)


def test_model_without_the_parser_that_its_runtime_starts_with_is_refused(world: World) -> None:
    with pytest.raises(
        ClusterError, match=r"judges/good has no reasongenrm_reasoning_parser.py: it was made by an older"
    ):
        world.deploy("good", files=("config.json",))
    assert world.writes() == []


def test_winner_is_registered_once_it_has_proven_itself(world: World) -> None:
    registry = FakeModelRegistry()
    with serving(registry.app) as url:
        config = CONFIG.model_copy(update={"model_registry": url})
        with pytest.raises(ClusterError, match="cannot be pulled"):
            deploy_kserve(world.store, config, world.decision, {"dpo": world.model("bad_image")})
        assert registry.requests == []
        done = deploy_kserve(world.store, config, world.decision, {"dpo": world.model("good")})
    assert (done.metrics["changed"], done.metrics["registered"]) == (True, True)
    assert [artifact["uri"] for artifact in registry.items["model_artifact"]] == [f"{world.uri('good')}/"]


def test_registry_that_is_away_takes_no_judge_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_registry, "RETRIES", Retries(0))
    config = CONFIG.model_copy(update={"model_registry": "http://127.0.0.1:9"})
    done = deploy_kserve(world.store, config, world.decision, {"dpo": world.model("good")})
    assert done.metrics["registered"] is False
    served = served_judge(world.store, NAMESPACE, "judge")
    assert served is not None
    assert served.model.uri == world.uri("good")
