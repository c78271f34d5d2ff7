"""A judge is brought out, proven, or put back: over real HTTP, against a scripted KServe and a judge that really
answers."""

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.config import DeployConfig, EvaluateConfig, GateConfig, JudgeServerConfig
from reasongenrm.deploy import model_registry, rollout
from reasongenrm.deploy.change import Deployed
from reasongenrm.deploy.deploy import deploy, deploy_kserve
from reasongenrm.deploy.manifest import REPLACED, render_inference_service
from reasongenrm.deploy.replaced import load_replaced, manifest_of
from reasongenrm.errors import ClusterError, InputError
from reasongenrm.evaluation.evaluate import evaluation_files
from reasongenrm.http_client import Retries
from reasongenrm.judge.judge_app import ServerSettings, create_app
from reasongenrm.judge.pairwise import JudgeSettings
from reasongenrm.judge.server.limits import Limits
from reasongenrm.kubernetes import health
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
    name="judge", rollout_timeout_seconds=20, num_golden=3, golden_timeout_seconds=5
).with_judge_image("registry/cpu:1")
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
        settings = EvaluateConfig(num_bootstrap=100, max_tokens=50)
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
        entries = tuple(FileEntry(path=name, size=0, sha256="0" * 64) for name in files)
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
        return deploy(self.cluster, self.store, config, manifest, model, self.decision)[0]

    def service(self) -> dict[str, Any] | None:
        return self.fake.find("inferenceservices", NAMESPACE, "judge")

    def writes(self) -> list[str]:
        return [request.verb for request in self.fake.requests if request.verb not in ("get", "list")]


@pytest.fixture
def world(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[World]:
    endpoint = FakeEndpoint(lambda body, _: completion(verdict(body), reasoning="Counting decides."))
    with endpoint.running() as url, judge_server(url) as judge, FakeCluster(validate=check) as fake:
        monkeypatch.setenv("KUBECONFIG", str(fake.kubeconfig))
        monkeypatch.setattr(rollout, "POLL_SECONDS", 0.01)
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
    assert world.writes() == ["create"]
    assert len(world.endpoint.bodies) == 6  # three rows in both orders
    assert world.endpoint.bodies[0]["max_tokens"] == 2048  # asked by /v1/pairwise: the judge's server decides
    assert world.endpoint.bodies[0]["chat_template_kwargs"] == {"opening_role": "reason"}
    served = served_judge(world.store, NAMESPACE, "judge")
    assert served is not None
    assert (served.variant, served.evaluation, served.manifest) == ("dpo", world.evaluation, deployed.manifest)


def test_same_checkpoint_twice_writes_nothing_and_asks_again(world: World) -> None:
    world.deploy("good")
    before, asked = len(world.fake.requests), len(world.endpoint.bodies)
    again = world.deploy("good")
    assert not again.changed
    assert {request.verb for request in world.fake.requests[before:]} == {"get", "list"}
    assert len(world.endpoint.bodies) == asked + 6
    assert len(served_history(world.store, NAMESPACE, "judge")) == 1


def test_next_judge_replaces_it_and_notes_what_it_replaced(world: World) -> None:
    world.deploy("good")
    old = world.service()
    assert old is not None
    deployed = world.deploy("slow")  # late: reports ProgressDeadlineExceeded and then recovers
    assert deployed.manifest["spec"]["predictor"]["model"]["storageUri"] == world.uri("slow") + "/"
    note = json.loads(deployed.manifest["metadata"]["annotations"][REPLACED])
    assert note["digest"] == world.model("good").digest
    assert load_replaced(deployed.manifest) == manifest_of(old)
    assert [judge.model.uri for judge in served_history(world.store, NAMESPACE, "judge")] == [
        world.uri("good"),
        world.uri("slow"),
    ]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("no_runtime", "KServe refuses the spec: NoSupportingRuntime: Specified runtime does not support it"),
        ("bad_image", "the image judge:1 cannot be pulled: ImagePullBackOff: no such image"),
        ("bad_config", 'cannot be set up: CreateContainerConfigError: secret "x" not found'),
        ("crash", r"ended with exit code 1 \(Error\), 3 restarts. Its last lines:\s+loading\s+CUDA out of memory"),
    ],
)
def test_judge_that_cannot_start_is_taken_back(world: World, how: str, reason: str) -> None:
    world.deploy("good")
    old = world.service()
    assert old is not None
    with pytest.raises(ClusterError, match=rf"{reason}[\s\S]*served before is back. It is ready again"):
        world.deploy(how)
    now = world.service()
    assert now is not None
    assert json.dumps(now["spec"]) == json.dumps(old["spec"])
    assert now["metadata"]["annotations"] == old["metadata"]["annotations"]
    assert len(served_history(world.store, NAMESPACE, "judge")) == 1


def test_first_judge_that_fails_leaves_nothing(world: World) -> None:
    with pytest.raises(ClusterError, match=r"cannot be pulled[\s\S]*what was created is deleted"):
        world.deploy("bad_image")
    assert world.service() is None
    assert served_judge(world.store, NAMESPACE, "judge") is None


def test_pod_without_a_node_is_waited_for_until_the_time_is_over(world: World) -> None:
    config = CONFIG.model_copy(update={"rollout_timeout_seconds": 0.6})
    with pytest.raises(
        ClusterError,
        match=r"not ready after 1 s: 0 of 1 new pods ready; .*pod judge-pred.* waits for a node: 0/3 nodes",
    ):
        world.deploy("stuck", config)
    assert world.service() is None


def test_judge_that_judges_wrongly_is_taken_back(world: World) -> None:
    world.deploy("good")
    world.endpoint.reply = lambda *_: completion("[[A]]", reasoning="Always the first.")
    with pytest.raises(
        ClusterError,
        match=r"judged 0 of 3 rows as the evaluation did; expected 75% at least.*A.., expected ..B..\.\n.*is back",
    ):
        world.deploy("other")
    now = world.service()
    assert now is not None
    assert now["spec"]["predictor"]["model"]["storageUri"] == world.uri("good") + "/"


@pytest.mark.parametrize("world", [silent], indirect=True)
def test_judge_that_was_never_right_is_served_only_where_any_answer_will_do(world: World) -> None:
    world.endpoint.reply = lambda *_: completion("?", reasoning="Random weights.")
    with pytest.raises(InputError, match="dpo judged none of 8 rows rightly in both orders"):
        world.deploy("good")
    deployed = world.deploy("good", CONFIG.model_copy(update={"min_golden_agreement": 0.0}))
    assert deployed.golden is not None
    assert (deployed.changed, deployed.golden.agreement, len(world.endpoint.bodies)) == (True, 0.0, 6)


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


def test_judge_put_there_by_hand_is_saved_and_comes_back(world: World) -> None:
    by_hand = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "judge", "namespace": NAMESPACE, "annotations": {"team": "a"}},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "huggingface"}, "storageUri": "s3://b/hand/"}}},
    }
    world.fake.put(by_hand)
    with pytest.raises(ClusterError, match=r"is back. It is ready again"):
        world.deploy("crash")
    now = world.service()
    assert now is not None
    assert now["spec"] == by_hand["spec"]
    deployed = world.deploy("good")
    assert load_replaced(deployed.manifest) == by_hand
    assert deployed.manifest["metadata"]["annotations"]["team"] == "a"


def test_conflict_is_read_again(world: World) -> None:
    world.deploy("good")
    world.fake.fail_next("update", "inferenceservices", 409, times=2)
    assert world.deploy("other").changed
    assert len(world.fake.asked("update", "inferenceservices")) == 3


def test_too_many_requests_and_lost_answers_are_survived(world: World) -> None:
    resource = "inferenceservices"
    world.fake.fail_next("get", resource, 429, headers={"Retry-After": "0"})
    world.fake.cut_next("create", resource, carried_out=True)
    assert world.deploy("good").changed
    assert len(world.fake.asked("create", "inferenceservices")) == 1 + 1  # the one that was carried out, and its retry


def test_missing_right_is_named_and_nothing_is_changed(world: World) -> None:
    world.fake.deny("create", "inferenceservices")
    with pytest.raises(ClusterError, match=r"create inferenceservices[\s\S]*Nothing was changed"):
        world.deploy("good")
    assert world.service() is None


def test_runtime_that_is_missing_is_told_before_anything_is_written(world: World) -> None:
    config = CONFIG.model_copy(update={"runtime": "nobody"})
    with pytest.raises(ClusterError, match=r"ServingRuntime reasongenrm/nobody: not there \(found: reasongenrm-vllm\)"):
        world.deploy("good", config)
    assert world.writes() == []


def test_what_kserves_webhook_refuses_is_told_in_its_words_and_nothing_is_changed(world: World) -> None:
    world.deploy("good")
    refused = 'admission webhook "isvc" denied the request: update rejected: deploymentMode cannot be changed'
    world.fake.fail_next("update", "inferenceservices", 403, message=refused)
    with pytest.raises(
        ClusterError, match=r"admission rule.*deploymentMode cannot be changed[\s\S]*Nothing was changed"
    ):
        world.deploy("other")
    assert world.writes() == ["create", "update"]


def test_change_by_somebody_else_is_left_alone(world: World) -> None:
    world.deploy("good")
    other = world.service()
    assert other is not None
    other = copy.deepcopy(manifest_of(other))
    other["metadata"]["annotations"]["reasongenrm.io/rollout"] = "f" * 16
    world.kserve.step_seconds = 0.2
    config = CONFIG.model_copy(update={"rollout_timeout_seconds": HANG_SECONDS})
    seen: list[str] = []

    def interfere(_event: str, service: dict[str, Any]) -> None:
        if "stuck" in str(service["spec"]) and not seen:
            seen.append("stuck")
            world.fake.put(other)

    world.fake.on_change("inferenceservices", interfere)
    with pytest.raises(ClusterError, match=r"somebody else changed it[\s\S]*it was left as it is"):
        world.deploy("stuck", config)


def test_stage_looks_at_the_cluster_even_if_its_artifact_is_there(world: World) -> None:
    models = {"dpo": world.model("good")}
    first = deploy_kserve(world.store, CONFIG, world.decision, models)
    assert first.metrics["changed"]
    assert json.loads(read_file(first, "golden.json"))["agreement"] == 1.0
    assert next(entry["what"] for entry in json.loads(read_file(first, "rollout.json"))["timeline"]) == "created"
    asked = len(world.endpoint.bodies)
    assert deploy_kserve(world.store, CONFIG, world.decision, models) == first
    assert len(world.endpoint.bodies) == asked + 6
    world.fake.remove("inferenceservices", NAMESPACE, "judge")
    deploy_kserve(world.store, CONFIG, world.decision, models)
    assert world.service() is not None


def test_sigterm_in_the_middle_puts_the_old_judge_back(world: World) -> None:
    world.deploy("good")
    old = world.service()
    assert old is not None
    program = (
        "import signal, sys, json\n"
        "def stop(*_): raise SystemExit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "from reasongenrm.config import DeployConfig\n"
        "from reasongenrm.deploy.deploy import deploy_kserve\n"
        "from reasongenrm.store.artifacts import ArtifactRef, Store\n"
        "config, decision, model = map(json.loads, sys.argv[2:])\n"
        "deploy_kserve(Store(sys.argv[1]), DeployConfig(**config), ArtifactRef(**decision), "
        "{'dpo': ArtifactRef(**model)})\n"
    )
    arguments = [
        world.store.uri,
        *(found.model_dump_json() for found in (CONFIG, world.decision, world.model("stuck"))),
    ]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], env=dict(os.environ))
    wait_until(lambda: process.poll() is not None or "stuck" in str(world.service()))
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG_SECONDS) == 143
    now = world.service()
    assert now is not None
    assert now["spec"] == old["spec"]
    assert len(served_history(world.store, NAMESPACE, "judge")) == 1


def test_judges_server_that_crashes_is_told_and_everything_is_put_back(world: World) -> None:
    world.deploy("good")
    old = world.service()
    assert old is not None
    broken = CONFIG.model_copy(update={"judge": JudgeServerConfig(image="reasongenrm-cpu:crash")})
    with pytest.raises(ClusterError, match=r"pod judge-transformer-\d+: kserve-container ended with exit code 1"):
        world.deploy("good", broken)
    now = world.service()
    assert now is not None
    assert now["spec"] == old["spec"]


def test_judges_server_that_kserve_leaves_behind_is_named_with_the_way_to_delete_it(world: World) -> None:
    world.deploy("good")
    deployed = world.deploy("good", CONFIG.model_copy(update={"judge": NO_JUDGE}))
    said = [entry["what"] for entry in deployed.timeline.entries]
    assert any("kubectl delete -n reasongenrm deployment,service,hpa judge-transformer" in line for line in said)
    assert not any("kubectl delete" in entry["what"] for entry in world.deploy("other").timeline.entries)


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
