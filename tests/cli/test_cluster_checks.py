"""`doctor --cluster` against an API server that holds what our manifests and the third-party software really put there.

Shapes: KFP's ConfigMap, Service and healthz are those of kubeflow/pipelines at 2.17.0 (manifests/kustomize/base,
backend/src/apiserver/main.go); managedFields as the API server writes them for `kubectl apply`; the StorageClass is
kind v0.30.0's (pkg/build/nodeimage/const_storage.go).
"""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from reasongenrm import __version__
from reasongenrm.cli import app, cluster_checks
from reasongenrm.cli.cluster_checks import APPLY, KINDS, examine_cluster
from reasongenrm.cli.findings import Finding
from reasongenrm.components.images import read_table
from reasongenrm.errors import ConfigError
from reasongenrm.kubernetes import kinds, rights
from reasongenrm.kubernetes.cluster import Cluster
from tests.kube.fake_api import FakeCluster
from tests.manifests import ROOT, rendered

RUN, SERVING = "kubeflow", "reasongenrm"
HEALTH = {"commit_sha": "4a3592cb2d", "tag_name": "2.17.0", "multi_user": False, "pipeline_store": "database"}
KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_ENDPOINT_URL": "https://s3.example"}


def named(kind: str, name: str, namespace: str = "", **rest: Any) -> dict[str, Any]:
    place = {"namespace": namespace} if namespace else {}
    group = {"StorageClass": "storage.k8s.io/v1", "CustomResourceDefinition": "apiextensions.k8s.io/v1"}
    metadata = {"name": name, **place, **rest.pop("metadata", {})}
    return {"apiVersion": group.get(kind, "v1"), "kind": kind, "metadata": metadata, **rest}


def secret(name: str, namespace: str, values: dict[str, str], **annotations: str) -> dict[str, Any]:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return named("Secret", name, namespace, type="Opaque", data=data, metadata={"annotations": annotations})


def definition(kind: kinds.Kind, *versions: str) -> dict[str, Any]:
    served = [{"name": version, "served": True, "storage": version == versions[-1]} for version in versions]
    names = {"plural": kind.plural, "kind": kind.kind}
    spec = {"group": kind.group, "names": names, "scope": "Namespaced", "versions": served}
    return named("CustomResourceDefinition", kind.resource, spec=spec)


def applied_by_kfp(data: dict[str, str]) -> dict[str, Any]:
    """The ConfigMap after `kubectl apply` of KFP's manifests."""
    fields = {"f:data": {"f:defaultPipelineRoot": {}}, "f:metadata": {"f:labels": {"f:application-crd-id": {}}}}
    entry = {
        "manager": "kubectl-client-side-apply",
        "operation": "Update",
        "apiVersion": "v1",
        "time": "2026-11-30T12:00:00Z",
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }
    labels = {"application-crd-id": "kubeflow-pipelines"}
    return named("ConfigMap", "kfp-launcher", RUN, data=data, metadata={"labels": labels, "managedFields": [entry]})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """A cluster with everything that overlays/gpu needs and brings."""
    with FakeCluster() as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        for kind in KINDS:
            cluster.put(definition(kind, kind.version))
        wanted = {"ServiceAccount", "Role", "RoleBinding", "ConfigMap", "ServingRuntime"}
        for item in rendered("gpu"):
            if item["kind"] in wanted:
                cluster.put(item)
        cluster.put(named("ServiceAccount", "pipeline-runner", RUN))
        cluster.put(named("Service", "ml-pipeline", RUN, spec={"ports": [{"name": "http", "port": 8888}]}))
        cluster.answers[RUN, "ml-pipeline:8888"] = {"/apis/v2beta1/healthz": HEALTH}
        default = {"storageclass.kubernetes.io/is-default-class": "true"}
        cluster.put(
            named("StorageClass", "standard", metadata={"annotations": default}, provisioner="rancher.io/local-path")
        )
        cluster.put(secret("reasongenrm-s3", RUN, KEYS))
        cluster.put(secret("reasongenrm-s3", SERVING, KEYS, **{"serving.kserve.io/s3-endpoint": "s3.example"}))
        for namespace in (RUN, SERVING):
            cluster.put(secret("reasongenrm-judge", namespace, {"JUDGE_API_KEY": "a", "VLLM_API_KEY": "b"}))
        images = [{"names": [f"{image}@sha256:{'0' * 64}", image]} for image in read_table().values()]
        cluster.put(named("Node", "node-1", status={"images": images}))
        cluster.put(named("Node", "node-2", status={"images": []}))
        yield cluster


def look(run: str = RUN) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine_cluster(Cluster.connect(), run, SERVING)}


def failing(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if finding.needed and not finding.ok}


@pytest.mark.usefixtures("fake")
def test_cluster_that_has_everything_passes() -> None:
    findings = look()
    wrong = {name for name, finding in findings.items() if not finding.ok}
    assert wrong == {"Secret kubeflow/reasongenrm-teacher", "Secret kubeflow/reasongenrm-hub"}  # optional
    assert failing(findings) == set()
    assert findings["Kubeflow Pipelines"].found == "kubeflow/ml-pipeline answers: version 2.17.0, one user"
    assert findings["ConfigMap kubeflow/kfp-launcher"].found == "s3://reasongenrm/kfp with Secret reasongenrm-s3"
    assert findings["image cpu"].found.startswith(f"{read_table()['cpu']} on 1 of 2 nodes")
    verbs = sum(map(len, rights.SERVING.values()))
    assert findings["rights of pipeline-runner in reasongenrm"].found == f"all {verbs} verbs"


def test_nothing_is_written_but_reviews_and_no_value_of_a_secret_is_shown(fake: FakeCluster) -> None:
    fake.put(secret("reasongenrm-hub", RUN, {"HF_TOKEN": "a-very-secret-word"}))
    fake.requests.clear()
    shown = json.dumps([vars(finding) for finding in look().values()])
    written = {request.resource for request in fake.requests if request.verb not in ("get", "list")}
    assert written == {"localsubjectaccessreviews", "selfsubjectaccessreviews"}
    for value in ("a-very-secret-word", "https://s3.example", base64.b64encode(b"a-very-secret-word").decode()):
        assert value not in shown


@pytest.mark.parametrize("providers", [False, True])
def test_launcher_settings_that_kfp_has_reset_are_found_with_the_command(fake: FakeCluster, providers: bool) -> None:
    """Without providers: ours were under the manager "kubectl"; with them: under one of their own."""
    (ours,) = [item["data"] for item in rendered("gpu") if item["metadata"]["name"] == "kfp-launcher"]
    fake.remove("configmaps", RUN, "kfp-launcher")
    fake.put(applied_by_kfp({"defaultPipelineRoot": "", **({"providers": ours["providers"]} if providers else {})}))
    findings = look()
    assert failing(findings) == {"ConfigMap kubeflow/kfp-launcher"}
    found = findings["ConfigMap kubeflow/kfp-launcher"]
    assert "defaultPipelineRoot is '', written by kubectl-client-side-apply at 2026-11-30T12:00:00Z" in found.found
    assert ("providers names no credentials" in found.found) != providers
    assert "--server-side --field-manager=reasongenrm --force-conflicts" in found.advice


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "defaultPipelineRoot is None"),
        ({"defaultPipelineRoot": "minio://mlpipeline/v2"}, "is 'minio://mlpipeline/v2'"),
        (
            {"defaultPipelineRoot": "s3://b/kfp", "providers": "s3: [not, a, provider]"},
            "providers names no credentials",
        ),
        ({"defaultPipelineRoot": "s3://b/kfp", "providers": "{"}, "providers names no credentials"),
    ],
)
def test_launcher_settings_that_are_not_ours_are_found(
    fake: FakeCluster, data: dict[str, str] | None, message: str
) -> None:
    fake.remove("configmaps", RUN, "kfp-launcher")
    if data is not None:
        fake.put(named("ConfigMap", "kfp-launcher", RUN, data=data))
    assert message in look()["ConfigMap kubeflow/kfp-launcher"].found


def test_launcher_may_take_its_credentials_from_the_environment(fake: FakeCluster) -> None:
    """As with roles for service accounts on AWS."""
    providers = "s3: {default: {endpoint: s3.amazonaws.com, region: eu-west-1, credentials: {fromEnv: true}}}"
    fake.put(
        named("ConfigMap", "kfp-launcher", RUN, data={"defaultPipelineRoot": "s3://b/kfp", "providers": providers})
    )
    found = look()["ConfigMap kubeflow/kfp-launcher"]
    assert (found.ok, found.found) == (True, "s3://b/kfp with the credentials of the pods' environment")


def test_right_that_a_role_lost_is_named(fake: FakeCluster) -> None:
    role = next(item for item in fake.objects("roles", SERVING) if item["metadata"]["name"] == "reasongenrm-deployer")
    role["rules"] = [rule for rule in role["rules"] if "pods/log" not in rule["resources"]]
    next(rule for rule in role["rules"] if "inferenceservices" in rule["resources"])["verbs"].remove("create")
    fake.put(role)
    findings = look()
    assert failing(findings) == {"rights of pipeline-runner in reasongenrm"}
    shown = findings["rights of pipeline-runner in reasongenrm"].found
    kinds_named = ("inferenceservices", "llminferenceservices")  # one rule for both
    refused = ", ".join(f"create {kind}.serving.kserve.io" for kind in kinds_named)
    assert shown == f"may not {refused}, get pods/log"


def test_account_that_is_bound_nowhere_may_nothing(fake: FakeCluster) -> None:
    """As in a profile whose overlay still has the runNamespace kubeflow."""
    fake._objects.namespaces.add("team-a")
    fake.put(named("ServiceAccount", "default-editor", "team-a"))
    findings = look("team-a")
    assert findings["accounts in team-a"].found == "default-editor"
    for namespace, table in (("team-a", rights.RUN), (SERVING, rights.SERVING)):
        found = findings[f"rights of default-editor in {namespace}"]
        assert not found.ok
        assert found.found.count(" ") >= 2 * sum(map(len, table.values()))


def test_namespace_without_an_account_of_kfp_is_no_run_namespace(fake: FakeCluster) -> None:
    fake.remove("serviceaccounts", RUN, "pipeline-runner")
    findings = look()
    assert failing(findings) == {"accounts in kubeflow"}
    assert findings["accounts in kubeflow"].found == "neither pipeline-runner nor default-editor"


def test_reviews_that_the_caller_may_not_create_are_not_checked_and_no_fault(fake: FakeCluster) -> None:
    fake.deny("create", "localsubjectaccessreviews")
    findings = look()
    assert failing(findings) == set()
    found = findings["rights of pipeline-runner in reasongenrm"]
    assert found.found == "not checked: your account may not create localsubjectaccessreviews there"
    assert found.advice.startswith("kubectl auth can-i --list -n reasongenrm --as system:serviceaccount:kubeflow:")


@pytest.mark.parametrize(
    ("verb", "resource", "name"),
    [
        ("get", "customresourcedefinitions", "kind inferenceservices.serving.kserve.io"),
        ("get", "services/proxy", "Kubeflow Pipelines"),
        ("get", "secrets", "Secret reasongenrm/reasongenrm-s3"),
        ("list", "storageclasses", "default StorageClass"),
        ("list", "nodes", "images"),
        ("get", "configmaps", "ConfigMap kubeflow/kfp-launcher"),
    ],
)
def test_what_the_caller_may_not_see_is_not_checked_and_no_fault(
    fake: FakeCluster, verb: str, resource: str, name: str
) -> None:
    fake.deny(verb, resource)
    findings = look()
    assert failing(findings) == set()
    assert not findings[name].ok
    assert findings[name].found.startswith(f"not checked: cannot {verb} {resource}")
    assert "--context" in findings[name].advice


def test_own_account_without_the_rights_of_a_command_is_told(fake: FakeCluster) -> None:
    fake.deny("update", "services")
    found = look()["your own account: rollback, in reasongenrm"]
    assert (found.ok, found.needed) == (False, False)
    assert found.found == "may not update services"


def test_kind_that_is_not_installed_or_served_in_another_version_is_found(fake: FakeCluster) -> None:
    fake.remove("customresourcedefinitions", "", kinds.INFERENCE_SERVICE.resource)
    fake.put(definition(kinds.WORKFLOW, "v1alpha2"))
    for optional in (kinds.TRAIN_JOB, kinds.LLM_INFERENCE_SERVICE):
        fake.remove("customresourcedefinitions", "", optional.resource)
    findings = look()
    assert failing(findings) == {"kind inferenceservices.serving.kserve.io", "kind workflows.argoproj.io"}
    assert findings["kind workflows.argoproj.io"].found == "served as v1alpha2"
    assert "all but mode: trainjob works" in findings["kind trainjobs.trainer.kubeflow.org"].advice


def test_cluster_without_kserve_is_looked_at_to_the_end(fake: FakeCluster) -> None:
    """The API server answers 404 without a Status for a kind that it does not know: seen on Kubernetes 1.36.2."""
    fake.uninstall("servingruntimes")
    findings = look()
    assert failing(findings) == {"ServingRuntimes in reasongenrm"}
    assert "the API server does not know servingruntimes" in findings["ServingRuntimes in reasongenrm"].advice
    assert findings["image cpu"].ok


def test_pipelines_that_are_not_there_do_not_answer_or_are_old(
    fake: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    within = Cluster.within
    monkeypatch.setattr(Cluster, "within", lambda cluster, _seconds: within(cluster, 0.1))
    fake.answers[RUN, "ml-pipeline:8888"] = {"/apis/v2beta1/healthz": HEALTH | {"tag_name": "2.5.0"}}
    old = look()["Kubeflow Pipelines"]
    assert (old.ok, old.needed, "version 2.5.0" in old.found) == (False, False, True)
    fake.answers.clear()
    silent = look()["Kubeflow Pipelines"]
    assert (silent.needed, silent.found) == (True, "kubeflow/ml-pipeline does not answer")
    assert "no endpoints available for service" in silent.advice
    fake.remove("services", RUN, "ml-pipeline")
    assert 'services "ml-pipeline" not found' in look()["Kubeflow Pipelines"].advice


@pytest.mark.parametrize(
    ("values", "annotations", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "id"}, {}, "no AWS_SECRET_ACCESS_KEY"),
        (KEYS | {"AWS_SECRET_ACCESS_KEY": ""}, {"serving.kserve.io/s3-endpoint": "x"}, "no AWS_SECRET_ACCESS_KEY"),
        (KEYS, {}, "AWS_ENDPOINT_URL, but no annotation serving.kserve.io/s3-endpoint"),
    ],
)
def test_secret_that_is_not_whole_is_found(
    fake: FakeCluster, values: dict[str, str], annotations: dict[str, str], message: str
) -> None:
    fake.put(secret("reasongenrm-s3", SERVING, values, **annotations))
    findings = look()
    assert failing(findings) == {"Secret reasongenrm/reasongenrm-s3"}
    assert findings["Secret reasongenrm/reasongenrm-s3"].found == message


def test_optional_secret_must_be_whole_where_it_is_there(fake: FakeCluster) -> None:
    fake.put(secret("reasongenrm-judge", SERVING, {"VLLM_API_KEY": "b"}))
    assert failing(look()) == {"Secret reasongenrm/reasongenrm-judge"}
    fake.remove("secrets", SERVING, "reasongenrm-judge")
    assert failing(look()) == set()


def test_account_of_the_judge_without_its_secret_is_found(fake: FakeCluster) -> None:
    fake.put(named("ServiceAccount", "reasongenrm-serving", SERVING))
    findings = look()
    assert failing(findings) == {"account reasongenrm/reasongenrm-serving"}
    assert findings["account reasongenrm/reasongenrm-serving"].found == "secrets none; pull secrets none"


def test_cluster_without_a_default_storage_class_is_found(fake: FakeCluster) -> None:
    fake.put(named("StorageClass", "standard", provisioner="rancher.io/local-path"))
    found = look()["default StorageClass"]
    assert (found.ok, found.found) == (False, "none; there are standard")


def test_runtime_that_is_not_there_or_of_another_version_is_found(fake: FakeCluster) -> None:
    (runtime,) = fake.objects("servingruntimes", SERVING)
    image = runtime["spec"]["containers"][0]["image"]
    assert image.endswith(f":{__version__}")
    runtime["spec"]["containers"][0]["image"] = image.replace(__version__, "0.0.9")
    fake.put(runtime)
    old = look()["ServingRuntime reasongenrm/reasongenrm-vllm"]
    assert (old.ok, old.needed, old.found.endswith(":0.0.9")) == (False, False, True)
    fake.remove("servingruntimes", SERVING, "reasongenrm-vllm")
    assert failing(look()) == {"ServingRuntimes in reasongenrm"}


def test_image_that_no_node_has_is_told_with_the_command_that_tries_it(fake: FakeCluster) -> None:
    fake.remove("nodes", "", "node-1")
    found = look()["image vllm"]
    assert (found.ok, found.needed) == (False, False)
    assert found.found.endswith("on 0 of 1 nodes; pull secret reasongenrm-registry not there")
    assert f"--image={read_table()['vllm']} -- doctor --image vllm" in found.advice


def test_command_prints_json_and_fails_for_what_is_needed_only(fake: FakeCluster) -> None:
    done = CliRunner().invoke(app, ["doctor", "--cluster", "--json"])
    assert done.exit_code == 0, done.output
    assert {"name", "ok", "found", "advice", "needed"} == json.loads(done.stdout)[0].keys()
    fake.remove("configmaps", RUN, "kfp-launcher")
    shown = CliRunner().invoke(app, ["doctor", "--cluster", "--context", "fake", "--serving-namespace", SERVING])
    assert shown.exit_code == 1
    assert "kfp-launcher" in shown.stdout


@pytest.mark.parametrize("options", [["--context", "x"], ["-n", "kubeflow"], ["--cluster", "--image", "cpu"]])
def test_options_that_do_not_go_together_are_refused(options: list[str]) -> None:
    done = CliRunner().invoke(app, ["doctor", *options])
    assert isinstance(done.exception, ConfigError) or "go with --cluster" in done.output


def test_names_are_those_of_the_manifests_and_of_the_pages() -> None:
    (ours,) = [item["data"] for item in rendered("gpu") if item["metadata"]["name"] == "kfp-launcher"]
    secret_ref = yaml.safe_load(ours["providers"])["s3"]["default"]["credentials"]["secretRef"]
    assert (secret_ref["accessKeyKey"], secret_ref["secretKeyKey"]) == cluster_checks.S3_KEYS
    install = " ".join((ROOT / "docs" / "install.md").read_text(encoding="utf-8").split())
    assert APPLY.partition(" (")[0] in install
    assert f"{cluster_checks.S3_ENDPOINT}=" in install
    assert f"{cluster_checks.S3_ENDPOINT_KEY}=" in install
