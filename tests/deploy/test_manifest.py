"""The rendered InferenceService: valid against KServe's published schema, and without what its webhook refuses."""

from typing import Any

import jsonschema
import pytest
import typer
import yaml
from typer.core import TyperGroup

from reasongenrm.cli import app
from reasongenrm.config import DeployConfig, JudgeServerConfig, parse_section
from reasongenrm.deploy.deploy import deploy_kserve
from reasongenrm.deploy.manifest import render_inference_service, revision_of
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.judge.judge_app import GRACE_SECONDS
from reasongenrm.store.artifacts import ArtifactRef, Store, read_file
from tests.kube.schemas import check


def settings(**changes: Any) -> DeployConfig:
    """The section `deploy` as the pipeline's last task gets it."""
    return DeployConfig(**changes).with_judge_image("registry/cpu:1")


MODEL = ArtifactRef(stage="train_dpo", key="k" * 16, digest="sha256:" + "5" * 64, uri="s3://judges/run/train_dpo/k/d")
NO_JUDGE = DeployConfig(judge=JudgeServerConfig(enabled=False))
DECISION = ArtifactRef(
    stage="select_winner",
    key="d" * 16,
    digest="sha256:" + "7" * 64,
    uri="s3://judges/run/select_winner/d/e",
    metrics={"winner": "dpo", "passed": True},
)


KEDA: dict[str, Any] = {
    "max_replicas": 4,
    "autoscaler": "keda",
    "prometheus": "http://prometheus-operated.monitoring.svc:9090",
}


@pytest.mark.parametrize(
    "config",
    [
        settings(),
        settings(gpu_count=0, max_replicas=3, cpu="500m", memory="2Gi", name="judge-2", judge_secret="key"),
        settings(autoscaler="none", strategy="Recreate"),
        settings(**KEDA),
    ],
)
def test_service_is_valid_against_the_strict_schema_of_kserve(config: DeployConfig) -> None:
    check(render_inference_service(config, MODEL, DECISION))


def test_strict_schema_refuses_a_field_that_kserve_does_not_know() -> None:
    service = render_inference_service(settings(), MODEL, DECISION)
    service["spec"]["predictor"]["model"]["storageURI"] = "s3://typo/"
    with pytest.raises(jsonschema.ValidationError, match="storageURI"):
        check(service)


def test_service_names_runtime_storage_account_resources_and_replicas() -> None:
    config = settings(gpu_count=2, min_replicas=1, max_replicas=4)
    service = render_inference_service(config, MODEL, DECISION)
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    assert service["metadata"]["annotations"]["reasongenrm.io/model-digest"] == MODEL.digest
    predictor = service["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (1, 4)
    assert predictor["serviceAccountName"] == "reasongenrm-serving"
    model = predictor["model"]
    assert model["runtime"] == "reasongenrm-vllm"
    assert model["storageUri"] == "s3://judges/run/train_dpo/k/d/"
    assert model["resources"]["limits"] == {"cpu": "4", "memory": "32Gi", "nvidia.com/gpu": "2"}
    assert model["args"] == ["--max-model-len=32768", "--served-model-name=reasongenrm", "--tensor-parallel-size=2"]


def test_service_asks_for_no_gpu_when_there_are_none() -> None:
    service = render_inference_service(settings(gpu_count=0), MODEL, DECISION)
    assert service["spec"]["predictor"]["model"]["resources"]["limits"] == {"cpu": "4", "memory": "32Gi"}


def test_service_has_nothing_that_the_webhook_refuses() -> None:
    service = render_inference_service(settings(), MODEL, DECISION)
    model = service["spec"]["predictor"]["model"]
    assert service["metadata"]["labels"]["networking.kserve.io/visibility"] == "cluster-local"
    assert not {"name", "env", "storageUris"} & model.keys()
    assert "serving.kserve.io/autoscalerClass" not in service["metadata"]["annotations"]


@pytest.mark.parametrize(("key", "quantity"), [("memory", "8GiB"), ("memory", "32 Gi"), ("cpu", "four")])
def test_quantity_that_kubernetes_cannot_read_is_refused(key: str, quantity: str) -> None:
    with pytest.raises(ConfigError, match=rf"deploy\.{key} is '{quantity}': expected a Kubernetes quantity"):
        render_inference_service(settings(**{key: quantity}), MODEL, DECISION)


def test_more_minimum_than_maximum_replicas_is_refused() -> None:
    with pytest.raises(ConfigError, match="min_replicas 3 is above max_replicas 2"):
        render_inference_service(settings(min_replicas=3, max_replicas=2), MODEL, DECISION)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"judge": {"memory": "1GiB"}}, r"deploy\.judge\.memory is '1GiB': expected a Kubernetes quantity"),
        ({"autoscaler": "keda"}, "keda needs the address of a Prometheus"),
        ({"prometheus": "http://h"}, "nothing else has a use for it"),
        ({**KEDA, "prometheus": "h:9090"}, r"prometheus is 'h:9090': expected http\(s\)://host"),
        ({**KEDA, "server": "transformers"}, "keda, which looks at vLLM's queue, but server is transformers"),
        ({"autoscaler": "none", "max_replicas": 2}, "max_replicas is 2, which has no effect with autoscaler none"),
        ({"server": "transformers", "gpu_count": 2}, "server transformers uses one GPU at most"),
        (
            {"apply": False, "golden_endpoint": "http://h"},
            "golden_endpoint is set, which has no effect with apply false",
        ),
        ({"golden_endpoint": "localhost:8000"}, "expected http\\(s\\)://host"),
        (
            {"model_registry": "http://registry:8080/api"},
            r"model_registry is 'http://registry:8080/api': expected http",
        ),
        ({"model_registry": "http://registry:80800"}, r"expected http\(s\)://host or http\(s\)://host:port"),
        ({"model_registry": "http://key@registry"}, r"expected http\(s\)://host or http\(s\)://host:port"),
        ({"namespace": "Judges"}, "namespace is 'Judges': expected lower-case letters"),
        ({"name": "a" * 40, "namespace": "b" * 20}, "has 82 characters, 63 are allowed: shorten the name"),
    ],
)
def test_settings_that_cannot_work_or_have_no_effect_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        render_inference_service(settings(**values), MODEL, DECISION)


def test_config_that_still_has_canaries_is_refused_with_its_keys() -> None:
    with pytest.raises(ConfigError, match=r"canary_percent.*canary_promote"):
        parse_section(DeployConfig, {"canary_percent": 5, "canary_promote": False}, "deploy")


def test_judges_server_without_an_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"judge\.image is not set: name the cpu image"):
        render_inference_service(DeployConfig(), MODEL, DECISION)
    assert DeployConfig(judge={"image": "mine"}).with_judge_image("other").judge.image == "mine"  # type: ignore[arg-type]


def test_name_of_the_object_has_the_revision_and_names_in_requests_do_not_change() -> None:
    service = render_inference_service(settings(), MODEL, DECISION)
    revision = revision_of(service)
    assert revision is not None
    assert service["metadata"]["name"] == f"reasongenrm-{revision[:8]}"
    assert "--served-model-name=reasongenrm" in service["spec"]["predictor"]["model"]["args"]
    assert options(service["spec"]["transformer"])["model_name"] == "reasongenrm"
    small = render_inference_service(settings(server="transformers"), MODEL, DECISION)
    assert "--name=reasongenrm" in small["spec"]["predictor"]["model"]["args"]


def test_keda_scales_the_model_by_its_own_queue_and_the_judges_server_is_left_alone() -> None:
    service = render_inference_service(settings(**KEDA), MODEL, DECISION)
    predictor = service["spec"]["predictor"]
    assert predictor["annotations"] == {"serving.kserve.io/autoscalerClass": "keda"}
    assert "serving.kserve.io/autoscalerClass" not in service["metadata"]["annotations"]
    (trigger,) = predictor["autoScaling"]["metrics"]
    assert f'pod=~"{service["metadata"]["name"]}-predictor-.*"' in trigger["external"]["metric"]["query"]
    assert trigger["external"]["target"]["value"] == "8"


def test_model_outlives_the_judges_server_which_outlives_its_requests() -> None:
    spec = render_inference_service(settings(), MODEL, DECISION)["spec"]
    stays = spec["predictor"]["model"]["lifecycle"]["preStop"]["sleep"]["seconds"]
    judge_stops = float(options(spec["transformer"])["drain-seconds"]) + GRACE_SECONDS
    assert judge_stops < spec["transformer"]["terminationGracePeriodSeconds"] < stays
    assert stays + 30 <= spec["predictor"]["terminationGracePeriodSeconds"]


def test_revision_changes_with_the_model_and_the_spec_but_not_with_the_decision() -> None:
    again = DECISION.model_copy(update={"uri": "s3://judges/another-decision"})
    other = MODEL.model_copy(update={"digest": "sha256:" + "6" * 64})
    first = revision_of(render_inference_service(settings(), MODEL, DECISION))
    assert first == revision_of(render_inference_service(settings(), MODEL, again))
    assert first != revision_of(render_inference_service(settings(), other, DECISION))
    assert first != revision_of(render_inference_service(settings(cpu="8"), MODEL, DECISION))


def test_gate_that_did_not_pass_deploys_nothing(store: Store) -> None:
    refused = DECISION.model_copy(update={"metrics": {"winner": "dpo", "passed": False}})
    with pytest.raises(InputError, match="the gate did not pass"):
        deploy_kserve(store, settings(), refused, {"dpo": MODEL})
    assert store.list("deploy_kserve") == []


def test_winner_without_a_model_is_named(store: Store) -> None:
    with pytest.raises(InputError, match="the winner is 'dpo', but only these models are here: base, sft"):
        deploy_kserve(store, settings(), DECISION, {"base": MODEL, "sft": MODEL})


def test_stage_writes_the_winners_service_once(store: Store) -> None:
    config = settings(apply=False)
    ref = deploy_kserve(store, config, DECISION, {"base": DECISION, "dpo": MODEL})
    text = read_file(ref, "inferenceservice.yaml").decode()
    assert yaml.safe_load(text) == render_inference_service(config, MODEL, DECISION)
    assert ref.metrics == {"variant": "dpo", "model_uri": MODEL.uri}
    assert deploy_kserve(store, config, DECISION, {"dpo": MODEL}) == ref


def transformer_of(config: DeployConfig, **metrics: Any) -> dict[str, Any]:
    decision = DECISION.model_copy(update={"metrics": DECISION.metrics | metrics})
    service = render_inference_service(config, MODEL, decision)
    check(service)
    spec: dict[str, Any] = service["spec"]["transformer"]
    return spec


def options(transformer: dict[str, Any]) -> dict[str, str]:
    (container,) = transformer["containers"]
    return dict(argument.removeprefix("--").split("=") for argument in container["args"])


def test_judges_server_asks_as_the_winner_was_trained() -> None:
    assert options(transformer_of(settings()))["style"] == "reason"
    assert options(transformer_of(settings(), winner="genrm"))["style"] == "verdict"
    about = options(transformer_of(settings(), winner="genrm"))["about"]
    assert about == "GenRM: base, trained to write the verdict at once, without a reason"
    assert options(transformer_of(settings(), winner="base"))["style"] == "plain"


def test_judges_server_is_told_the_winners_calibration_if_there_is_one() -> None:
    assert not [name for name in options(transformer_of(settings())) if "calibration" in name]
    told = options(transformer_of(settings(), calibration_temperature=1.5, calibration_bias=-0.25))
    assert (told["calibration-temperature"], told["calibration-bias"]) == ("1.5", "-0.25")


def test_judges_server_has_its_settings_image_and_keys() -> None:
    judge = JudgeServerConfig(image="mirror/cpu:2", replicas=3, cpu="2", memory="3Gi", max_concurrency=7, max_tokens=99)
    transformer = transformer_of(settings(judge=judge, judge_secret="keys"))
    assert (transformer["minReplicas"], transformer["maxReplicas"]) == (3, 3)
    (container,) = transformer["containers"]
    assert container["image"] == "mirror/cpu:2"
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "3Gi"}
    told = options(transformer)
    assert (told["max-concurrency"], told["max-tokens"], told["generation-seconds"]) == ("7", "99", "120.0")
    keys = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in container["env"]}
    assert keys == {name: {"name": "keys", "key": name} for name in ("JUDGE_API_KEY", "VLLM_API_KEY")}


def test_judges_server_needs_no_secret_and_takes_the_image_of_the_run_if_it_has_none() -> None:
    (container,) = transformer_of(settings())["containers"]
    assert container["image"] == "registry/cpu:1"
    assert all(entry["valueFrom"]["secretKeyRef"]["optional"] for entry in container["env"])


def test_command_of_the_judges_server_takes_its_arguments_and_those_that_kserve_appends() -> None:
    (container,) = transformer_of(settings(), calibration_temperature=1.5, calibration_bias=-0.25)["containers"]
    appended = ["--predictor_host", "reasongenrm-0a1b2c3d-predictor.reasongenrm"]  # no --model_name: there is one
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    context = command.commands["judge-server"].make_context(
        "judge-server", [*container["args"], *appended, "--http_port", "8080"]
    )
    told = context.params
    assert (told["name"], told["predictor_host"], told["port"]) == ("reasongenrm", appended[1], 8080)
    assert (told["host"], told["calibration_bias"], told["request_seconds"]) == ("0.0.0.0", -0.25, 600.0)
    assert container["command"] == ["reasongenrm", "judge-server"]


def test_change_of_the_judges_server_is_another_mark_and_none_has_the_revision_of_before() -> None:
    first = revision_of(render_inference_service(settings(), MODEL, DECISION))
    other = settings(judge=JudgeServerConfig(max_concurrency=32))
    without = revision_of(render_inference_service(NO_JUDGE, MODEL, DECISION))
    assert len({first, revision_of(render_inference_service(other, MODEL, DECISION)), without}) == 3
