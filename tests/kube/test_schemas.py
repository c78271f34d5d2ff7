"""The checks of objects: a small good world passes, and each single mistake in it is found by name."""

import copy
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import yaml

from reasongenrm import __version__
from tests.kube.references import check_references, check_selectors, check_shipped, matches
from tests.kube.schemas import check, is_custom, validator
from tests.kube.syntax import QUANTITY, ManifestError

WORLD = """
apiVersion: v1
kind: Namespace
metadata: {name: judges}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: worker, namespace: judges}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: judges}
data: {mode: fast}
---
apiVersion: v1
kind: Service
metadata: {name: worker, namespace: judges, labels: {app: worker}}
spec:
  selector: {app: worker}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: worker, namespace: judges, annotations: {example.com/Note: "1"}}
spec:
  selector: {matchLabels: {app: worker}}
  template:
    metadata: {labels: {app: worker}}
    spec:
      serviceAccountName: worker
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: main
          image: registry.example.com/team/reasongenrm-cpu:VERSION
          env:
            - {name: MODE, valueFrom: {configMapKeyRef: {name: settings, key: mode}}}
            - {name: KEY, valueFrom: {secretKeyRef: {name: key, key: value}}}
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /health, port: http}}
          resources: {requests: {cpu: 500m, memory: 1Gi, nvidia.com/gpu: 1}, limits: {memory: 2Gi, nvidia.com/gpu: "1"}}
          securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
          volumeMounts: [{name: scratch, mountPath: /tmp}]
      volumes: [{name: scratch, emptyDir: {sizeLimit: 1Gi}}]
---
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {name: runtime, namespace: judges}
spec:
  supportedModelFormats: [{name: huggingface, version: "1"}]
  containers:
    - name: kserve-container
      image: vllm/vllm-openai:v0.22.0
      resources: {requests: {cpu: 1, memory: 1Gi}, limits: {memory: 1Gi}}
      securityContext:
        {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}, runAsNonRoot: true,
         seccompProfile: {type: RuntimeDefault}}
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: judge, namespace: judges}
spec:
  predictor:
    minReplicas: 1
    model: {modelFormat: {name: huggingface}, runtime: runtime, storageUri: s3://bucket/model/}
"""
PREREQUISITES = [("Secret", "judges", "key")]


def world() -> dict[str, Any]:
    objects = yaml.safe_load_all(WORLD.replace("VERSION", __version__))
    return {obj["kind"]: obj for obj in objects}


def pod(objects: dict[str, Any]) -> Any:
    return objects["Deployment"]["spec"]["template"]["spec"]


def main(objects: dict[str, Any]) -> Any:
    return pod(objects)["containers"][0]


def test_good_world_passes_every_check() -> None:
    check_shipped(world().values(), PREREQUISITES)


# What is done to the world -> what must be said of it.
MUTATIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    # schemas, built-in and custom
    "unknown field": (lambda w: main(w).update(imagePullPolcy="Always"), "imagePullPolcy"),
    "unknown metadata": (lambda w: w["ConfigMap"]["metadata"].update(label={}), "'label' was unexpected"),
    "metadata of a custom kind": (lambda w: w["InferenceService"]["metadata"].update(nam="x"), "'nam' was unexpected"),
    "wrong type": (lambda w: w["Deployment"]["spec"].update(replicas="two"), "'two' is not of type"),
    "number as data": (lambda w: w["ConfigMap"]["data"].update(mode=1), "1 is not of type"),
    "unknown field in KServe": (
        lambda w: w["InferenceService"]["spec"]["predictor"]["model"].update(storageURI="s3://typo/"),
        "storageURI",
    ),
    "missing field in KServe": (lambda w: w["InferenceService"]["spec"].pop("predictor"), "'predictor' is a required"),
    "unknown field in a runtime": (lambda w: w["ServingRuntime"]["spec"].update(autoSelect=False), "autoSelect"),
    "no such kind": (lambda w: w["Deployment"].update(kind="Deploiment"), "unknown kind Deploiment"),
    "no such custom kind": (
        lambda w: w["InferenceService"].update(kind="InferenceServer"),
        "unknown kind InferenceSer",
    ),
    "no such version": (
        lambda w: w["InferenceService"].update(apiVersion="serving.kserve.io/v1"),
        "unknown kind Infer",
    ),
    "old API": (lambda w: w["Deployment"].update(apiVersion="apps/v1beta1"), "unknown kind Deployment"),
    # syntax
    "quantity": (lambda w: main(w)["resources"]["limits"].update(memory="8GiB"), "8GiB"),
    "size limit": (lambda w: pod(w)["volumes"][0]["emptyDir"].update(sizeLimit="1 Gi"), "1 Gi"),
    "quantity in a runtime": (
        lambda w: w["ServingRuntime"]["spec"]["containers"][0]["resources"]["limits"].update(memory="1GB"),
        "1GB",
    ),
    "upper case": (
        lambda w: w["ConfigMap"]["metadata"].update(name="Settings"),
        "'Settings'; expected an RFC 1123 sub",
    ),
    "dotted service": (lambda w: w["Service"]["metadata"].update(name="a.b"), "'a.b'; expected an RFC 1123 label"),
    "digit first": (lambda w: w["InferenceService"]["metadata"].update(name="1st"), "begins with a letter"),
    "long name": (lambda w: w["Service"]["metadata"].update(name="a" * 64), "at most 63"),
    "namespace": (lambda w: w["ConfigMap"]["metadata"].update(namespace="a_b"), "metadata.namespace is 'a_b'"),
    "label value": (lambda w: w["Service"]["metadata"]["labels"].update(app="a b"), "metadata.labels.app is 'a b'"),
    "label key": (lambda w: w["Service"]["metadata"]["labels"].update({"a/b/c": "x"}), "key 'a/b/c'"),
    "annotation": (lambda w: w["Deployment"]["metadata"]["annotations"].update({"-x": "1"}), "key '-x'"),
    # pods
    "variable twice": (lambda w: main(w)["env"].append({"name": "MODE"}), "MODE more than once"),
    "volume twice": (lambda w: pod(w)["volumes"].append({"name": "scratch", "emptyDir": {}}), "scratch more than once"),
    "container twice": (lambda w: pod(w)["containers"].append(copy.deepcopy(main(w))), "main more than once"),
    "mount of nothing": (lambda w: pod(w).pop("volumes"), "names the volume 'scratch'"),
    "port name": (lambda w: main(w)["ports"][0].update(name="a-name-of-sixteen"), "at most 15"),
    "probed port": (lambda w: main(w)["readinessProbe"]["httpGet"].update(port="htp"), "asks the port 'htp'"),
    "mount twice": (lambda w: main(w)["volumeMounts"].append(main(w)["volumeMounts"][0]), "/tmp more than once"),
    "half a GPU's limit": (lambda w: main(w)["resources"]["requests"].update({"nvidia.com/gpu": 2}), "must be equal"),
    "GPU without limit": (lambda w: main(w)["resources"]["limits"].pop("nvidia.com/gpu"), "without a limit"),
    # Pod Security and our own rules
    "host network": (lambda w: pod(w).update(hostNetwork=True), "hostNetwork is set"),
    "host path": (lambda w: pod(w)["volumes"].append({"name": "h", "hostPath": {"path": "/"}}), "of kind hostPath"),
    "host port": (lambda w: main(w)["ports"][0].update(hostPort=80), "hostPort 80"),
    "root": (lambda w: pod(w)["securityContext"].update(runAsUser=0), "runAsUser not as"),
    "maybe root": (lambda w: pod(w)["securityContext"].pop("runAsNonRoot"), "runAsNonRoot not as"),
    "root again": (lambda w: main(w)["securityContext"].update(runAsNonRoot=False), "runAsNonRoot not as"),
    "no seccomp": (lambda w: pod(w)["securityContext"].pop("seccompProfile"), "seccompProfile not as"),
    "escalation": (lambda w: main(w)["securityContext"].pop("allowPrivilegeEscalation"), "allowPrivilegeEscalation"),
    "privileged": (lambda w: main(w)["securityContext"].update(privileged=True), "privileged not as"),
    "capabilities": (
        lambda w: main(w)["securityContext"].update(capabilities={"drop": ["CHOWN"]}),
        "capabilities.drop",
    ),
    "more capabilities": (
        lambda w: main(w)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
        "capabilities.add",
    ),
    "writable root": (lambda w: main(w)["securityContext"].pop("readOnlyRootFilesystem"), "readOnlyRootFilesystem"),
    "init container": (
        lambda w: pod(w).update(initContainers=[{"name": "init", "image": "a:1"}]),
        r"initContainers\[0\]",
    ),
    "runtime without seccomp": (
        lambda w: w["ServingRuntime"]["spec"]["containers"][0]["securityContext"].pop("seccompProfile"),
        "ServingRuntime judges/runtime: spec.containers.0..securityContext: seccompProfile",
    ),
    "predictor's container": (
        lambda w: w["InferenceService"]["spec"].update(predictor={"containers": [{"name": "main", "image": "a:1"}]}),
        "InferenceService judges/judge: spec.predictor.containers",
    ),
    "no request": (lambda w: main(w)["resources"]["requests"].pop("cpu"), "requests: no cpu"),
    "no limit": (lambda w: main(w)["resources"]["limits"].pop("memory"), "limits: no memory"),
    # images
    "latest": (lambda w: main(w).update(image="team/tool:latest"), "is not pinned"),
    "no tag": (lambda w: main(w).update(image="registry:5000/tool"), "is not pinned"),
    "tag of our image": (lambda w: main(w).update(image="x/reasongenrm-cpu:0.0.1"), f"expected .* :{__version__}"),
    # references
    "secret": (lambda w: main(w)["env"][1]["valueFrom"]["secretKeyRef"].update(name="ky"), "Secret judges/ky, which"),
    "key": (lambda w: w["ConfigMap"]["data"].pop("mode"), "asks ConfigMap settings for mode"),
    "config map": (lambda w: w["ConfigMap"]["metadata"].update(name="set"), "ConfigMap judges/settings, which"),
    "account": (lambda w: pod(w).update(serviceAccountName="robot"), "ServiceAccount judges/robot, which"),
    "claim": (
        lambda w: pod(w)["volumes"].append({"name": "d", "persistentVolumeClaim": {"claimName": "data"}}),
        "PersistentVolumeClaim judges/data, which",
    ),
    "runtime": (lambda w: w["ServingRuntime"]["metadata"].update(name="other"), "ServingRuntime judges/runtime, which"),
    "other namespace": (
        lambda w: w["ServiceAccount"]["metadata"].update(namespace="default"),
        "Namespace /default, which",
    ),
    "no namespace": (lambda w: w["ConfigMap"]["metadata"].pop("namespace"), "no namespace"),
    "no namespace object": (lambda w: w.pop("Namespace"), "Namespace /judges, which"),
    "twice": (lambda w: w.update(again=copy.deepcopy(w["ConfigMap"])), "is there twice"),
    # selectors
    "workload's selector": (
        lambda w: w["Deployment"]["spec"]["selector"]["matchLabels"].update(app="w"),
        "not select its",
    ),
    "service's selector": (lambda w: w["Service"]["spec"]["selector"].update(app="w"), "selects nothing"),
}


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_one_mistake_is_found_and_named(mistake: str) -> None:
    mutate, message = MUTATIONS[mistake]
    objects = world()
    mutate(objects)
    with pytest.raises((ManifestError, jsonschema.ValidationError), match=message):
        check_shipped(objects.values(), PREREQUISITES)


def test_optional_secret_needs_a_documented_name_but_no_key() -> None:
    objects = world()
    main(objects)["env"][0]["valueFrom"]["configMapKeyRef"].update(key="gone", optional=True)
    check_references(objects.values(), PREREQUISITES)


def test_scale_target_queue_and_subject_must_exist() -> None:
    named = {
        "ScaledObject judges/s": (
            {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "spec": {"scaleTargetRef": {"name": "gone"}}},
            "Deployment judges/gone",
        ),
        "LocalQueue judges/s": (
            {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue", "spec": {"clusterQueue": "gone"}},
            "ClusterQueue /gone",
        ),
        "RoleBinding judges/s": (
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "gone"},
            },
            "Role judges/gone",
        ),
    }
    for obj, message in named.values():
        obj["metadata"] = {"name": "s", "namespace": "judges"}
        with pytest.raises(ManifestError, match=message):
            check_references([*world().values(), obj], PREREQUISITES)


def test_policy_may_select_pods_that_a_controller_makes() -> None:
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "judges"},
        "spec": {"podSelector": {"matchLabels": {"component": "predictor"}}},
    }
    check(policy)
    check_selectors([policy], others=[{"component": "predictor", "app": "x"}])
    with pytest.raises(ManifestError, match="selects nothing"):
        check_selectors([policy], others=[{"component": "transformer"}])


@pytest.mark.parametrize(
    ("expression", "labels", "chosen"),
    [
        ({"key": "a", "operator": "In", "values": ["1", "2"]}, {"a": "2"}, True),
        ({"key": "a", "operator": "NotIn", "values": ["1"]}, {}, True),
        ({"key": "a", "operator": "Exists"}, {"b": "1"}, False),
        ({"key": "a", "operator": "DoesNotExist"}, {"a": "1"}, False),
    ],
)
def test_expressions_select_as_kubernetes_says(
    expression: dict[str, Any], labels: dict[str, str], chosen: bool
) -> None:
    assert matches({"matchExpressions": [expression]}, labels) is chosen


def test_groups_of_kubernetes_itself_are_told_from_custom_ones() -> None:
    assert [is_custom(group) for group in ("v1", "apps/v1", "rbac.authorization.k8s.io/v1")] == [False] * 3
    assert all(is_custom(group) for group in ("kueue.x-k8s.io/v1beta2", "keda.sh/v1"))


def test_validator_of_a_kind_is_made_once() -> None:
    assert validator("apps/v1", "Deployment") is validator("apps/v1", "Deployment")


def test_quantities_as_kubernetes_reads_them() -> None:
    good, bad = (
        ["1", "0.5", ".5", "1.", "500m", "1e3", "-1", "2Ki", "3E"],
        ["8GiB", "1 Gi", "", "Gi", "1KiB", "1K", "0x1"],
    )
    assert [text for text in good if not re.fullmatch(QUANTITY, text)] == []
    assert [text for text in bad if re.fullmatch(QUANTITY, text)] == []
