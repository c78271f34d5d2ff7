"""The fake API server keeps and refuses what a real one does; what others test against it rests on this."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.kube.fake_api import FakeCluster
from tests.kube.objects import RESOURCES, matches
from tests.kube.schemas import EXCERPTS

CRDS = Path(__file__).parents[3] / "shared" / "crds"
PATH = "/api/v1/namespaces/kubeflow/configmaps"


def config_map(name: str = "a", **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "kubeflow", **metadata}}


def deployment(replicas: int = 1) -> dict[str, Any]:
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "namespace": "kubeflow"}}
    return {**body, "spec": {"replicas": replicas}}


def ask(
    cluster: FakeCluster, method: str, path: str, body: Any = None, kind: str = "application/json"
) -> httpx.Response:
    headers = {"authorization": "Bearer laptop-token", "content-type": kind}
    content = json.dumps(body) if body else None
    # Plain http: reading the certificates of the machine would be most of the time.
    return httpx.request(method, cluster.url + path, headers=headers, content=content, verify=False)


@pytest.mark.skipif(not CRDS.is_dir(), reason="the CRDs of ../shared/crds are not here")
def test_kinds_are_those_of_the_published_crds() -> None:
    for resource in RESOURCES:
        if resource.is_built_in:
            continue
        name = f"{resource.group}_{resource.plural}.yaml"
        path = next(folder / name for folder in (CRDS, EXCERPTS) if (folder / name).is_file())
        crd = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]
        assert crd["names"]["kind"] == resource.kind
        assert (crd["scope"] == "Namespaced") == resource.namespaced
        version = next(version for version in crd["versions"] if version["name"] == resource.version)
        assert version["served"]
        assert ("status" in version.get("subresources", {})) == resource.has_status, resource.kind


def test_generation_counts_changes_of_the_spec_and_resource_version_all_changes() -> None:
    with FakeCluster() as cluster:
        path = "/apis/apps/v1/namespaces/kubeflow/deployments"
        made = ask(cluster, "POST", path, {**deployment(), "status": {"replicas": 9}}).json()
        assert "status" not in made  # it has a way of its own
        assert made["metadata"]["generation"] == 1
        labelled = ask(
            cluster, "PATCH", f"{path}/a", {"metadata": {"labels": {"x": "y"}}}, "application/merge-patch+json"
        )
        assert labelled.json()["metadata"]["generation"] == 1
        scaled = ask(cluster, "PATCH", f"{path}/a", {"spec": {"replicas": 2}}, "application/merge-patch+json").json()
        assert scaled["metadata"]["generation"] == 2
        status = ask(cluster, "PUT", f"{path}/a/status", {**scaled, "status": {"replicas": 2}, "spec": {}}).json()
        assert (status["status"], status["spec"]) == ({"replicas": 2}, {"replicas": 2})
        versions = [int(item["metadata"]["resourceVersion"]) for item in (made, labelled.json(), scaled, status)]
        assert versions == sorted(set(versions))


def test_write_that_changes_nothing_makes_no_version() -> None:
    with FakeCluster() as cluster:
        made = cluster.put(config_map())
        assert ask(cluster, "PUT", f"{PATH}/a", made).json() == made


def test_object_with_a_finalizer_stays_marked_until_it_is_taken_off() -> None:
    with FakeCluster() as cluster:
        cluster.put(config_map(finalizers=["x/keep"]))
        assert ask(cluster, "DELETE", f"{PATH}/a").status_code == 200
        marked = cluster.find("configmaps", "kubeflow", "a")
        assert marked is not None
        assert marked["metadata"]["deletionTimestamp"]
        ask(cluster, "PATCH", f"{PATH}/a", {"metadata": {"finalizers": None}}, "application/merge-patch+json")
        assert cluster.find("configmaps", "kubeflow", "a") is None


def test_what_an_object_owns_goes_with_it() -> None:
    with FakeCluster() as cluster:
        owner = cluster.put(config_map("owner"))
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
        cluster.put(config_map("owned", ownerReferences=[reference]))
        cluster.put(config_map("other", ownerReferences=[{**reference, "uid": "of an earlier owner"}]))
        cluster.remove("configmaps", "kubeflow", "owner")
        assert [item["metadata"]["name"] for item in cluster.objects("configmaps")] == ["other"]


def test_what_the_validator_refuses_is_422_and_not_stored() -> None:
    def no_data(body: dict[str, Any]) -> None:
        assert "data" not in body, "data is not allowed"

    with FakeCluster(validate=no_data) as cluster:
        refused = ask(cluster, "POST", PATH, {**config_map(), "data": {}})
        assert (refused.status_code, refused.json()["reason"]) == (422, "Invalid")
        assert "data is not allowed" in refused.json()["message"]
        assert not cluster.objects("configmaps")


def test_names_labels_namespaces_and_kinds_are_checked() -> None:
    with FakeCluster() as cluster:
        bad = [config_map("Upper"), config_map(labels={"x": "not a value"}), config_map(labels={"x": 1})]
        assert [ask(cluster, "POST", PATH, body).status_code for body in bad] == [422, 422, 422]
        assert ask(cluster, "POST", PATH, {**config_map(), "kind": "Secret"}).status_code == 400
        assert ask(cluster, "GET", "/apis/none.io/v1/namespaces/kubeflow/things").text == "404 page not found\n"
        other = {**config_map(), "metadata": {"name": "a"}}
        assert ask(cluster, "POST", "/api/v1/namespaces/nowhere/configmaps", other).status_code == 404


def test_selectors_read_as_the_real_ones_do() -> None:
    item = {"metadata": {"name": "a", "labels": {"app": "x", "tier": "b"}}, "status": {"phase": "Running"}}
    fitting = ["app=x", "app==x,tier!=c", "tier in (a, b)", "tier notin (c)", "app", "!other", "other!=x", ""]
    other = ["app=y", "app=x,tier=c", "tier in (c)", "tier notin (b)", "other", "!app", "app!=x"]
    assert [matches(item, labels, "") for labels in fitting] == [True] * len(fitting)
    assert [matches(item, labels, "") for labels in other] == [False] * len(other)
    assert matches(item, "", "metadata.name=a,status.phase=Running")
    assert not matches(item, "", "metadata.name=b")


def test_error_of_a_scripted_controller_fails_the_test() -> None:
    def controller(_: str, item: dict[str, Any]) -> None:
        raise RuntimeError(item["metadata"]["name"])

    with ExitStack() as stack:
        cluster = stack.enter_context(FakeCluster())
        cluster.on_change("configmaps", controller)
        cluster.put(config_map())
        with pytest.raises(AssertionError, match="a scripted controller failed"):
            stack.close()


def test_controllers_see_every_change_in_order() -> None:
    seen = []
    with FakeCluster() as cluster:
        cluster.on_change("configmaps", lambda kind, item: seen.append((kind, item.get("data"))))
        cluster.put(config_map())
        cluster.put({**config_map(), "data": {"x": "1"}})
        cluster.remove("configmaps", "kubeflow", "a")
    assert seen == [("ADDED", None), ("MODIFIED", {"x": "1"}), ("DELETED", {"x": "1"})]


REVIEWS = "/apis/authorization.k8s.io/v1/namespaces/kubeflow/localsubjectaccessreviews"


def review(metadata: dict[str, str], verb: str = "get", resource: str = "pods", subresource: str = "") -> Any:
    asked = {"namespace": "kubeflow", "verb": verb, "group": "", "resource": resource, "subresource": subresource}
    spec = {"user": "system:serviceaccount:kubeflow:runner", "groups": [], "resourceAttributes": asked}
    kind = {"apiVersion": "authorization.k8s.io/v1", "kind": "LocalSubjectAccessReview"}
    return {**kind, "metadata": metadata, "spec": spec}


def test_review_is_answered_by_role_and_binding_and_not_kept() -> None:
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "follower", "namespace": "kubeflow"}}
    rules = [{"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get"]}]
    subjects = [{"kind": "ServiceAccount", "name": "runner", "namespace": "kubeflow"}]
    with FakeCluster() as cluster:
        place = {"namespace": "kubeflow"}
        assert ask(cluster, "POST", REVIEWS, review(place)).json()["status"] == {"allowed": False}
        cluster.put({**rbac, "kind": "Role", "rules": rules})
        binding = {**rbac, "kind": "RoleBinding", "roleRef": {"kind": "Role", "name": "follower"}}
        cluster.put({**binding, "subjects": subjects})
        answer = ask(cluster, "POST", REVIEWS, review(place, subresource="log"))
        assert (answer.status_code, answer.json()["status"]["allowed"]) == (201, True)
        assert 'RoleBinding "follower/kubeflow" of Role "follower"' in answer.json()["status"]["reason"]
        assert not ask(cluster, "POST", REVIEWS, review(place, verb="delete")).json()["status"]["allowed"]
        assert not ask(cluster, "POST", REVIEWS, review(place, subresource="exec")).json()["status"]["allowed"]
        assert cluster.objects("localsubjectaccessreviews") == []


@pytest.mark.parametrize("metadata", [{}, {"namespace": "kubeflow", "name": "a"}, {"namespace": "default"}])
def test_review_with_other_metadata_than_its_namespace_is_refused(metadata: dict[str, str]) -> None:
    with FakeCluster() as cluster:
        assert ask(cluster, "POST", REVIEWS, review(metadata)).status_code == 422


def test_proxied_service_answers_or_is_unavailable_or_not_there() -> None:
    path = "/api/v1/namespaces/kubeflow/services/web:80/proxy/healthz"
    with FakeCluster() as cluster:
        assert ask(cluster, "GET", path).json()["message"] == 'services "web" not found'
        cluster.put({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "kubeflow"}})
        silent = ask(cluster, "GET", path)
        assert (silent.status_code, silent.json()["reason"]) == (503, "ServiceUnavailable")
        cluster.answers["kubeflow", "web:80"] = {"/healthz": {"ok": True}}
        assert ask(cluster, "GET", path).json() == {"ok": True}
        cluster.deny("get", "services/proxy")
        assert ask(cluster, "GET", path).status_code == 403
