"""deploy.target llminferenceservice: its objects are valid, it is brought out and replaced as any judge is."""

from typing import Any

import jsonschema
import pytest
import typer
from typer.core import TyperGroup

from reasongenrm.cli import app
from reasongenrm.config import DeployConfig, JudgeServerConfig
from reasongenrm.deploy.deploy import deploy, render
from reasongenrm.deploy.llm import render_llm
from reasongenrm.deploy.manifest import revision_of
from reasongenrm.errors import ClusterError, ConfigError
from tests.deploy.kserve import NAMESPACE, Item, owner_of, pod_status
from tests.deploy.test_deploy import CONFIG, World, world
from tests.deploy.test_manifest import DECISION, MODEL, options, settings
from tests.kube.fake_api import FakeCluster
from tests.kube.schemas import check
from tests.manifests import MANIFESTS
from tests.manifests import render as kustomize

__all__ = ["world"]

LLM: dict[str, Any] = {"target": "llminferenceservice"}


class LLMController:
    """KServe's controller of LLMInferenceServices and the Deployment controller, scripted.

    Makes the Deployment `<name>-kserve` and the Service `<name>-kserve-workload-svc` with port 8000, which the object
    owns, and the conditions of `apis.NewLivingConditionSet(PresetsCombined, WorkloadsReady, RouterReady)`; without
    spec.router RouterReady is True. Source: kserve/kserve aaac4e294, pkg/controller/v1alpha2/llmisvc (workload.go,
    workload_single_node.go), pkg/apis/serving/v1alpha2/llm_inference_service_lifecycle.go.
    """

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        cluster.on_change("llminferenceservices", self._reconcile)
        cluster.on_change("deployments", self._run)

    def _reconcile(self, event: str, service: Item) -> None:
        meta = service["metadata"]
        if event != "ADDED":
            return
        labels = {
            "app.kubernetes.io/name": meta["name"],
            "app.kubernetes.io/part-of": "llminferenceservice",
            "kserve.io/component": "workload",
        }
        mine = {"namespace": NAMESPACE, "labels": labels, "ownerReferences": [owner_of(service)]}
        port = {"name": "http", "appProtocol": "http", "port": 8000, "targetPort": 8000, "protocol": "TCP"}
        self.cluster.put(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": mine | {"name": f"{meta['name']}-kserve-workload-svc"},
                "spec": {"selector": labels, "ports": [port], "type": "ClusterIP"},
            }
        )
        spec = service["spec"]
        image = "crash" if "crash" in spec["model"]["uri"] else "vllm:1"
        container = {key: spec["template"]["containers"][0][key] for key in ("name", "args")} | {"image": image}
        template = {"metadata": {"labels": labels | spec["labels"]}, "spec": {"containers": [container]}}
        self.cluster.put(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": mine | {"name": f"{meta['name']}-kserve"},
                "spec": {"replicas": spec["replicas"], "selector": {"matchLabels": labels}, "template": template},
            }
        )

    def _run(self, event: str, deployment: Item) -> None:
        """Start the pods of a new Deployment, KServe's or our own; then the object is Ready."""
        meta, spec = deployment["metadata"], deployment["spec"]
        owners = [owner["kind"] for owner in meta["ownerReferences"]]
        if event != "ADDED" or owners != ["LLMInferenceService"]:
            return
        if self.cluster.find("deployments", NAMESPACE, meta["name"]) is None:
            return
        crashes = spec["template"]["spec"]["containers"][0]["image"] == "crash"
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": spec["template"]["metadata"]
            | {"name": f"{meta['name']}-x", "namespace": NAMESPACE, "ownerReferences": [owner_of(deployment)]},
            "spec": spec["template"]["spec"],
        }
        self.cluster.put(body)
        state = {"waiting": {"reason": "CrashLoopBackOff"}} if crashes else None
        self.cluster.set_status(
            "pods", NAMESPACE, f"{meta['name']}-x", pod_status(ready=not crashes, state=state, crashed=crashes)
        )
        status = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": int(not crashes)}
        self.cluster.set_status("deployments", NAMESPACE, meta["name"], status)
        for service in self.cluster.objects("llminferenceservices", NAMESPACE):
            kinds = ("PresetsCombined", "WorkloadsReady", "RouterReady", "Ready")
            conditions = [{"type": kind, "status": "False" if crashes else "True"} for kind in kinds]
            self.cluster.set_status(
                "llminferenceservices", NAMESPACE, service["metadata"]["name"], {"conditions": conditions}
            )


@pytest.fixture
def llm_world(world: World) -> World:
    (config,) = [item for item in kustomize(MANIFESTS / "addons" / "llm") if item["kind"].startswith("LLM")]
    world.fake.put(config)
    LLMController(world.fake)
    return world


def bring(world: World, how: str, config: DeployConfig) -> Any:
    model = world.model(how)
    return deploy(world.cluster, world.store, config, render(config, model, world.decision), model, world.decision)


def test_objects_are_valid_against_the_strict_schemas() -> None:
    for body in render_llm(settings(**LLM, gpu_count=2, judge_secret="keys"), MODEL, DECISION):
        check(body)
    service, *_ = render_llm(settings(**LLM), MODEL, DECISION)
    service["spec"]["model"]["storageUri"] = "s3://typo/"
    with pytest.raises(jsonschema.ValidationError, match="storageUri"):
        check(service)


def test_model_and_judge_of_one_revision_find_each_other() -> None:
    service, deployment, entry = render_llm(settings(**LLM), MODEL, DECISION)
    name = service["metadata"]["name"]
    assert name == f"reasongenrm-{(revision_of(service) or '')[:8]}"
    assert service["spec"]["model"] == {"uri": "s3://judges/run/train_dpo/k/d/", "name": "reasongenrm"}
    assert "router" not in service["spec"]
    pod = deployment["spec"]["template"]
    assert entry["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    told = options(pod["spec"])
    assert told["predictor_host"] == f"{name}-kserve-workload-svc.reasongenrm:8000"
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    arguments = pod["spec"]["containers"][0]["args"]
    assert command.commands["judge-server"].make_context("judge-server", list(arguments)).params["port"] == 8080
    other = render_llm(settings(**LLM, max_model_len=4096), MODEL, DECISION)[0]
    assert revision_of(other) != revision_of(service)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"judge": JudgeServerConfig(enabled=False)}, "which has vLLM behind the judge's server"),
        ({"server": "transformers"}, "which has vLLM behind the judge's server"),
        ({"max_replicas": 2}, r"replicas are fixed: set max_replicas to min_replicas \(1\)"),
        ({"autoscaler": "none"}, "replicas are fixed"),
        ({"name": "a" * 40}, "has 69 characters, 63 are allowed"),
    ],
)
def test_settings_without_effect_there_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        render_llm(settings(**LLM, **values), MODEL, DECISION)


def test_judge_of_one_target_replaces_that_of_the_other_and_a_bad_one_never_does(llm_world: World) -> None:
    config = CONFIG.model_copy(update={**LLM, "golden_endpoint": llm_world.kserve.judge})
    llm_world.deploy("good")
    first = bring(llm_world, "other", config)
    assert (first.changed, llm_world.services()) == (True, [])  # the InferenceService is gone
    stable = llm_world.fake.find("services", NAMESPACE, "judge")
    name = first.judge.manifests[0]["metadata"]["name"]
    assert stable is not None
    assert stable["spec"]["selector"]["app"] == f"{name}-judge"
    with pytest.raises(ClusterError, match=r"-kserve-x: kserve-container ended with[\s\S]*has answered all the time"):
        bring(llm_world, "crash", config)
    assert [item["metadata"]["name"] for item in llm_world.fake.objects("llminferenceservices")] == [name]
    assert not bring(llm_world, "other", config).changed
    assert llm_world.deploy("good").changed  # and back
    assert llm_world.fake.objects("llminferenceservices") == []
    assert not [item for item in llm_world.fake.objects("deployments") if "judge" in item["metadata"]["name"][-6:]]


def test_cluster_without_the_kind_is_told_and_serves_the_other_one(world: World) -> None:
    world.fake.uninstall("llminferenceservices")
    world.fake.uninstall("llminferenceserviceconfigs")
    assert world.deploy("good").changed
    with pytest.raises(ClusterError, match=r"does not know llminferenceserviceconfigs\.serving"):
        bring(world, "other", CONFIG.model_copy(update=LLM))


def test_config_that_is_missing_is_told_before_anything_is_written(world: World) -> None:
    config = CONFIG.model_copy(update=LLM)
    with pytest.raises(ClusterError, match=r"LLMInferenceServiceConfig reasongenrm/reasongenrm-vllm: not there"):
        bring(world, "good", config)
    assert world.writes() == []
