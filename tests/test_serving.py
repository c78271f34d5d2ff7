"""The rendered InferenceService: valid against KServe's published schema, and without what its webhook refuses."""

import jsonschema
import pytest
import yaml

from reasongenrm.config import DeployConfig
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.serving import deploy_kserve, render_inference_service
from reasongenrm.store import ArtifactRef, Store, read_file
from tests.kube.schemas import check

MODEL = ArtifactRef(stage="train_dpo", key="k" * 16, digest="sha256:" + "5" * 64, uri="s3://judges/run/train_dpo/k/d")
DECISION = ArtifactRef(
    stage="select_winner",
    key="d" * 16,
    digest="sha256:" + "7" * 64,
    uri="s3://judges/run/select_winner/d/e",
    metrics={"winner": "dpo", "passed": True},
)


@pytest.mark.parametrize(
    "config",
    [
        DeployConfig(),
        DeployConfig(gpu_count=0, min_replicas=0, max_replicas=3, cpu="500m", memory="2Gi", name="judge-2"),
    ],
)
def test_service_is_valid_against_the_strict_schema_of_kserve(config: DeployConfig) -> None:
    check(render_inference_service(config, MODEL, DECISION))


def test_strict_schema_refuses_a_field_that_kserve_does_not_know() -> None:
    service = render_inference_service(DeployConfig(), MODEL, DECISION)
    service["spec"]["predictor"]["model"]["storageURI"] = "s3://typo/"
    with pytest.raises(jsonschema.ValidationError, match="storageURI"):
        check(service)


def test_service_names_runtime_storage_account_resources_and_replicas() -> None:
    config = DeployConfig(gpu_count=2, min_replicas=1, max_replicas=4)
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
    assert model["args"] == ["--max-model-len=32768"]


def test_service_asks_for_no_gpu_when_there_are_none() -> None:
    service = render_inference_service(DeployConfig(gpu_count=0), MODEL, DECISION)
    assert service["spec"]["predictor"]["model"]["resources"]["limits"] == {"cpu": "4", "memory": "32Gi"}


def test_service_has_nothing_that_the_webhook_refuses() -> None:
    service = render_inference_service(DeployConfig(), MODEL, DECISION)
    model = service["spec"]["predictor"]["model"]
    assert not {"name", "env", "storageUris"} & model.keys()
    assert "serving.kserve.io/autoscalerClass" not in service["metadata"]["annotations"]


@pytest.mark.parametrize(("key", "quantity"), [("memory", "8GiB"), ("memory", "32 Gi"), ("cpu", "four")])
def test_quantity_that_kubernetes_cannot_read_is_refused(key: str, quantity: str) -> None:
    with pytest.raises(ConfigError, match=rf"deploy\.{key} is '{quantity}': expected a Kubernetes quantity"):
        render_inference_service(DeployConfig(**{key: quantity}), MODEL, DECISION)


def test_more_minimum_than_maximum_replicas_is_refused() -> None:
    with pytest.raises(ConfigError, match="min_replicas 3 is above max_replicas 2"):
        render_inference_service(DeployConfig(min_replicas=3, max_replicas=2), MODEL, DECISION)


def test_gate_that_did_not_pass_deploys_nothing(store: Store) -> None:
    refused = DECISION.model_copy(update={"metrics": {"winner": "dpo", "passed": False}})
    with pytest.raises(InputError, match="the gate did not pass"):
        deploy_kserve(store, DeployConfig(), refused, {"dpo": MODEL})
    assert store.list("deploy_kserve") == []


def test_winner_without_a_model_is_named(store: Store) -> None:
    with pytest.raises(InputError, match="the winner is 'dpo', but only these models are here: base, sft"):
        deploy_kserve(store, DeployConfig(), DECISION, {"base": MODEL, "sft": MODEL})


def test_stage_writes_the_winners_service_once(store: Store) -> None:
    ref = deploy_kserve(store, DeployConfig(), DECISION, {"base": DECISION, "dpo": MODEL})
    text = read_file(ref, "inferenceservice.yaml").decode()
    assert yaml.safe_load(text) == render_inference_service(DeployConfig(), MODEL, DECISION)
    assert ref.metrics == {"variant": "dpo", "model_uri": MODEL.uri}
    assert deploy_kserve(store, DeployConfig(), DECISION, {"dpo": MODEL}) == ref
