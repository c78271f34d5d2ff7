"""Every overlay and every addon renders, and a cluster with the real CRDs would take it; mistakes in them are found."""

import copy
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from typer.core import TyperGroup

from reasongenrm import __version__
from reasongenrm.cli import app
from reasongenrm.components.images import read_table
from reasongenrm.data.chat import REASONING_PARSER_FILE
from reasongenrm.deploy.manifest import render_inference_service
from reasongenrm.judge.server.telemetry import Telemetry
from tests.deploy.test_manifest import DECISION, KEDA, MODEL, settings
from tests.kube.pods import containers, pod_specs
from tests.kube.references import check_shipped
from tests.kube.syntax import ManifestError
from tests.manifests import ADDONS, MANIFESTS, OVERLAYS, PREDICTOR, ROOT, TRANSFORMER, prerequisites, render, rendered


def check_all(objects: list[dict[str, Any]]) -> None:
    check_shipped(objects, prerequisites(), others=[PREDICTOR, TRANSFORMER])


def named(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [item for item in objects if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return found


def test_overlays_and_addons_are_those_that_the_readme_names() -> None:
    text = (MANIFESTS / "README.md").read_text(encoding="utf-8")
    assert OVERLAYS == ["gpu", "kind", "kind-with-trainer", "production"]
    assert ADDONS == ["kueue", "llm", "model-cache", "monitoring", "network-policy", "object-store", "web"]
    assert all(f"`{overlay}`" in text for overlay in OVERLAYS)
    assert all(addon in text for addon in ADDONS)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_passes_every_check(overlay: str) -> None:
    check_all(rendered(overlay))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_image_of_ours_is_that_of_the_one_table(overlay: str) -> None:
    images = [
        container["image"]
        for item in rendered(overlay)
        for _, spec, _ in pod_specs(item)
        for _, container in containers(spec)
    ]
    ours = [image for image in images if "reasongenrm" in image]
    assert ours
    assert set(ours) <= set(read_table().values())
    assert all(image.endswith(f":{__version__}") for image in ours)
    assert "latest" not in json.dumps(images)


@pytest.mark.parametrize("addon", ADDONS)
def test_addon_alone_on_top_of_the_base_passes_every_check(addon: str, tmp_path: Path) -> None:
    objects = render(own_overlay(tmp_path, addon))
    check_all(objects)
    assert len(objects) > len(render(MANIFESTS / "base"))


def own_overlay(folder: Path, addon: str) -> Path:
    def relative(path: Path) -> str:
        return os.path.relpath(path.resolve(), folder.resolve())

    images, settings = ROOT / "components" / "images", MANIFESTS / "settings"
    kustomization = {
        "resources": [relative(MANIFESTS / part) for part in ("base", "serving", "training")],
        "components": [relative(path) for path in (MANIFESTS / "addons" / addon, settings, images)],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return folder


def copied(folder: Path) -> Path:
    """A tree whose files may be changed, with what the manifests need beside them."""
    shutil.copytree(MANIFESTS, folder / "manifests")
    shutil.copytree(ROOT / "components" / "images", folder / "components" / "images")
    return folder


def test_run_namespace_is_changed_by_one_line(tmp_path: Path) -> None:
    tree = copied(tmp_path)
    settings = tree / "manifests" / "settings" / "kustomization.yaml"
    settings.write_text(settings.read_text(encoding="utf-8").replace("=kubeflow", "=team-a"), encoding="utf-8")
    for overlay in OVERLAYS:
        if overlay == "kind-with-trainer":  # kind is KFP alone: its run namespace is always kubeflow
            continue
        text = yaml.safe_dump_all(render(tree / "manifests" / "overlays" / overlay))
        values = re.findall(r": (kubeflow)$", text, flags=re.MULTILINE)
        assert values == [], f"{overlay}: kubeflow is still a value somewhere"
        assert "team-a" in text


def test_nothing_is_a_secret_and_nothing_holds_one() -> None:
    for overlay in OVERLAYS:
        assert [item for item in rendered(overlay) if item["kind"] == "Secret"] == []


def test_prerequisites_are_exactly_what_somebody_names() -> None:
    """A row of the table that nothing needs would be a lie; teacher and hub are named by the pipeline's parameters."""
    text = json.dumps([rendered(overlay) for overlay in OVERLAYS])
    pipeline = (ROOT / "pipelines" / "compiled" / "reason_reward_model.yaml").read_text(encoding="utf-8")
    for _, _, name in prerequisites():
        assert name in text or name in pipeline, name
    assert len(prerequisites()) == 11


def test_serving_namespace_enforces_pod_security_restricted() -> None:
    for overlay in OVERLAYS:
        labels = named(rendered(overlay), "Namespace", "reasongenrm")["metadata"]["labels"]
        modes = [labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "warn", "audit")]
        assert modes == ["restricted"] * 3


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_launcher_settings_have_the_fields_that_kfp_reads(overlay: str) -> None:
    """A field that KFP does not know is ignored there, without a word. Source: kubeflow/pipelines
    backend/src/v2/config/s3.go."""
    data = named(rendered(overlay), "ConfigMap", "kfp-launcher")["data"]
    assert data["defaultPipelineRoot"].startswith("s3://reasongenrm/")
    default = yaml.safe_load(data["providers"])["s3"]["default"]
    assert default.keys() <= {"endpoint", "region", "disableSSL", "forcePathStyle", "maxRetries", "credentials"}
    assert default["credentials"].keys() == {"fromEnv", "secretRef"}
    secret = default["credentials"]["secretRef"]
    assert secret == {
        "secretName": "reasongenrm-s3",
        "accessKeyKey": "AWS_ACCESS_KEY_ID",
        "secretKeyKey": "AWS_SECRET_ACCESS_KEY",
    }
    in_cluster = overlay.startswith("kind")
    service = "reasongenrm-object-store.reasongenrm.svc:8333"
    assert (default["endpoint"] == service, default["disableSSL"]) == (in_cluster, in_cluster)


def test_production_has_no_judge_without_a_key() -> None:
    for overlay, optional in (("gpu", True), ("production", False)):
        runtime = named(rendered(overlay), "ServingRuntime", "reasongenrm-vllm")
        (key,) = [item for item in runtime["spec"]["containers"][0]["env"] if item["name"] == "VLLM_API_KEY"]
        assert key["valueFrom"]["secretKeyRef"].get("optional", False) is optional


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_runtimes_are_what_kserve_and_our_deployments_expect(overlay: str) -> None:
    runtimes = [item for item in rendered(overlay) if item["kind"] == "ServingRuntime"]
    assert len(runtimes) == 1
    spec = runtimes[0]["spec"]
    assert spec["protocolVersions"] == ["v1", "v2"]  # with v2 alone KServe does not choose it
    assert [(item["name"], item["autoSelect"]) for item in spec["supportedModelFormats"]] == [("huggingface", False)]
    (container,) = spec["containers"]
    assert container["name"] == "kserve-container"
    assert "--port=8080" in container["args"]
    assert container["ports"][0]["containerPort"] == 8080


def test_startup_probe_waits_for_a_14b_model_on_a_slow_disk() -> None:
    (container,) = named(rendered("gpu"), "ServingRuntime", "reasongenrm-vllm")["spec"]["containers"]
    probe = container["startupProbe"]
    reading_seconds = 14.8e9 * 2 / 2**20 / 40  # bf16 at 40 MiB/s
    assert probe["periodSeconds"] * probe["failureThreshold"] > reading_seconds + 300


def test_training_runtime_is_what_trainer_wants() -> None:
    runtime = named(rendered("gpu"), "TrainingRuntime", "reasongenrm-torch")
    assert runtime["metadata"]["labels"]["trainer.kubeflow.org/framework"] == "torch"
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert job["name"] == "node"
    assert job["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
    assert [item["name"] for item in job["template"]["spec"]["template"]["spec"]["containers"]] == ["node"]


# Names as vLLM's V1 engine exports them. Source: vllm-project/vllm docs/design/metrics.md and
# vllm/v1/metrics/loggers.py.
VLLM_METRICS = {
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total"),
    *("request_success_total", "prompt_tokens_total", "generation_tokens_total"),
    *("prefix_cache_hits_total", "prefix_cache_queries_total"),
    *("e2e_request_latency_seconds_bucket", "time_to_first_token_seconds_bucket"),
    *("inter_token_latency_seconds_bucket", "request_queue_time_seconds_bucket"),
    *("request_generation_tokens_bucket", "request_prompt_tokens_bucket"),
}


def test_alerts_dashboard_and_scaling_ask_for_metrics_that_vllm_has() -> None:
    objects = rendered("production")
    dashboard = json.loads(named(objects, "ConfigMap", "reasongenrm-dashboard")["data"]["reasongenrm.json"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) > 5
    rules = named(objects, "PrometheusRule", "reasongenrm")
    judge = render_inference_service(settings(**KEDA), MODEL, DECISION)
    asked = set(re.findall(r"vllm:(\w+)", json.dumps([dashboard, rules, judge])))
    assert asked - VLLM_METRICS == set()
    assert "num_requests_waiting" in asked


def test_alerts_and_dashboard_ask_for_metrics_that_the_judges_server_has() -> None:
    objects = rendered("production")
    dashboard = named(objects, "ConfigMap", "reasongenrm-dashboard")["data"]["reasongenrm.json"]
    rules = json.dumps(named(objects, "PrometheusRule", "reasongenrm"))
    families = list(Telemetry().registry.collect())
    suffixes = {"counter": ("_total",), "histogram": ("_bucket",), "gauge": ("",)}
    exported = {family.name + suffix for family in families for suffix in suffixes[family.type]}
    asked = set(re.findall(r"reasongenrm_judge_\w+", dashboard + rules))
    assert asked <= exported
    assert {f"reasongenrm_judge_{name}_total" for name in ("verdicts", "pairs", "truncated", "tokens")} <= asked


def test_web_page_runs_with_the_arguments_that_its_command_takes() -> None:
    (container,) = named(rendered("production"), "Deployment", "reasongenrm-web")["spec"]["template"]["spec"][
        "containers"
    ]
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    assert container["command"] == ["reasongenrm", "web"]
    given = command.commands["web"].make_context("web", list(container["args"])).params
    assert (given["host"], given["port"], given["store"]) == ("0.0.0.0", 7860, "s3://reasongenrm")
    assert given["judge"] == "http://reasongenrm.reasongenrm.svc"


def test_production_has_no_page_that_asks_the_judge_without_its_key() -> None:
    for overlay, optional in (("kind", True), ("production", False)):
        spec = named(rendered(overlay), "Deployment", "reasongenrm-web")["spec"]["template"]["spec"]
        (key,) = [item for item in spec["containers"][0]["env"] if item["name"] == "JUDGE_API_KEY"]
        assert key["valueFrom"]["secretKeyRef"].get("optional", False) is optional


def test_vllm_starts_with_the_parser_that_checkpoints_ship() -> None:
    (container,) = named(rendered("gpu"), "ServingRuntime", "reasongenrm-vllm")["spec"]["containers"]
    assert f"--reasoning-parser-plugin=/mnt/models/{REASONING_PARSER_FILE}" in container["args"]
    assert "--reasoning-parser=reasongenrm" in container["args"]


# Overlay, what is done to it -> what must be said.
MUTATIONS: dict[str, tuple[str, Callable[[list[dict[str, Any]]], Any], str]] = {
    "field in a runtime": (
        "gpu",
        lambda o: named(o, "ServingRuntime", "reasongenrm-vllm")["spec"].update(replica=1),
        "'replica' was unexpected",
    ),
    "field in a TrainingRuntime": (
        "gpu",
        lambda o: named(o, "TrainingRuntime", "reasongenrm-torch")["spec"]["mlPolicy"].update(nodes=2),
        "'nodes' was unexpected",
    ),
    "field in an alert": (
        "production",
        lambda o: named(o, "PrometheusRule", "reasongenrm")["spec"]["groups"][0]["rules"][0].update(expression="1"),
        "'expression' was unexpected",
    ),
    "quota": (
        "production",
        lambda o: named(o, "ClusterQueue", "reasongenrm")["spec"]["resourceGroups"][0]["flavors"][0]["resources"][
            1
        ].update(nominalQuota="2TB"),
        "2TB",
    ),
    "queue of nobody": (
        "production",
        lambda o: named(o, "LocalQueue", "reasongenrm")["spec"].update(clusterQueue="gone"),
        "ClusterQueue /gone",
    ),
    "monitor of nothing": (
        "production",
        lambda o: named(o, "ServiceMonitor", "reasongenrm")["spec"]["selector"]["matchLabels"].update(
            component="predict"
        ),
        "selects nothing",
    ),
    "policy for nobody": (
        "production",
        lambda o: named(o, "NetworkPolicy", "judge")["spec"]["podSelector"]["matchLabels"].update(component="judge"),
        "selects nothing",
    ),
    "budget of nothing": (
        "production",
        lambda o: named(o, "PodDisruptionBudget", "reasongenrm")["spec"]["selector"]["matchLabels"].update(
            component="x"
        ),
        "selects nothing",
    ),
    "account": (
        "gpu",
        lambda o: o.remove(named(o, "ServiceAccount", "reasongenrm-training")),
        "ServiceAccount kubeflow/reasongenrm-training",
    ),
    "secret that the README has not": (
        "gpu",
        lambda o: named(o, "Job", "reasongenrm-bucket")["spec"]["template"]["spec"]["containers"][0]["envFrom"][0][
            "secretRef"
        ].update(name="s3"),
        "Secret kubeflow/s3",
    ),
    "role of nobody": (
        "gpu",
        lambda o: o.remove(named(o, "Role", "reasongenrm-deployer")),
        "Role reasongenrm/reasongenrm-deployer",
    ),
    "tag": (
        "gpu",
        lambda o: named(o, "ServingRuntime", "reasongenrm-vllm")["spec"]["containers"][0].update(
            image="ghcr.io/reasongenrm/reasongenrm-vllm:latest"
        ),
        "not pinned",
    ),
    "older tag": (
        "gpu",
        lambda o: named(o, "ServingRuntime", "reasongenrm-vllm")["spec"]["containers"][0].update(
            image="ghcr.io/reasongenrm/reasongenrm-vllm:0.0.9"
        ),
        "the package's version",
    ),
    "user": (
        "kind",
        lambda o: named(o, "StatefulSet", "reasongenrm-object-store")["spec"]["template"]["spec"][
            "securityContext"
        ].update(runAsUser=0),
        "runAsUser",
    ),
    "store's selector": (
        "kind",
        lambda o: named(o, "StatefulSet", "reasongenrm-object-store")["spec"]["selector"]["matchLabels"].update(a="b"),
        "does not select its pods",
    ),
    "store's service": (
        "kind",
        lambda o: named(o, "StatefulSet", "reasongenrm-object-store")["spec"].update(serviceName="store"),
        "Service reasongenrm/store",
    ),
}


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_mistake_in_an_overlay_is_found_and_named(mistake: str) -> None:
    overlay, mutate, message = MUTATIONS[mistake]
    objects = copy.deepcopy(rendered(overlay))
    mutate(objects)
    with pytest.raises((ManifestError, jsonschema.ValidationError), match=message):
        check_all(objects)


def test_table_of_images_with_another_tag_is_found(tmp_path: Path) -> None:
    tree = copied(tmp_path)
    table = tree / "components" / "images" / "kustomization.yaml"
    table.write_text(
        table.read_text(encoding="utf-8").replace(f"newTag: {__version__}", "newTag: latest"), encoding="utf-8"
    )
    with pytest.raises(ManifestError, match="not pinned"):
        check_all(render(tree / "manifests" / "overlays" / "gpu"))
