"""Who reaches whom in the serving namespace, read from the rendered policies as the API defines them.

A connection is let through if the caller's policies let it out and the called pod's policies let it in; a pod that no
policy chooses for a direction may do everything in it. A Service has no policies: its traffic is judged at the pods
behind it, whatever the Service or its InferenceService is called. What cannot be shown here is that a cluster's network
plugin enforces them.

Source: Kubernetes 1.36, staging/src/k8s.io/api/networking/v1/types.go (NetworkPolicySpec, NetworkPolicyPeer).
"""

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.kube.references import matches
from tests.manifests import PREDICTOR, TRANSFORMER, rendered
from tests.manifests.test_overlays import named

SERVING, RUN = "reasongenrm", "kubeflow"


@dataclass(frozen=True)
class Pod:
    """A pod with its namespace's name and labels; without a namespace, an address outside the cluster."""

    namespace: str
    labels: dict[str, str]
    namespace_labels: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> dict[str, str]:
        return {"kubernetes.io/metadata.name": self.namespace, **self.namespace_labels}


def later(labels: dict[str, str]) -> dict[str, str]:
    """The labels of the same pod of another judge, whose InferenceService has another name."""
    name = "reasongenrm-f5ef49cc"
    other = {"serving.kserve.io/inferenceservice": name, "app": f"isvc.{name}-{labels['component']}"}
    return labels | other


JUDGE, MODEL = Pod(SERVING, TRANSFORMER), Pod(SERVING, PREDICTOR)
NEW_JUDGE, NEW_MODEL = Pod(SERVING, later(TRANSFORMER)), Pod(SERVING, later(PREDICTOR))
TASK = Pod(RUN, {"pipelines.kubeflow.org/v2_component": "true"})
CLIENT = Pod("training", {"reasongenrm.io/judge-client": "true"})
STRANGER = Pod("training", {"app": "other"})
GATEWAY = Pod("gateways", {"app": "gateway"}, {"reasongenrm.io/gateway": "true"})
PROMETHEUS = Pod("monitoring", {"app": "prometheus"}, {"reasongenrm.io/prometheus": "true"})
DNS = Pod("kube-system", {"k8s-app": "kube-dns"})
OUTSIDE = Pod("", {})


def of_workload(overlay: str, kind: str, name: str) -> Pod:
    return Pod(SERVING, named(rendered(overlay), kind, name)["spec"]["template"]["metadata"]["labels"])


def is_let_through(overlay: str, caller: Pod, called: Pod, port: int, protocol: str = "TCP") -> bool:
    found = [item for item in rendered(overlay) if item["kind"] == "NetworkPolicy"]
    return all(
        _lets(found, direction, own, peer, port, protocol)
        for direction, own, peer in (("Egress", caller, called), ("Ingress", called, caller))
    )


def _lets(policies: list[dict[str, Any]], direction: str, own: Pod, peer: Pod, port: int, protocol: str) -> bool:
    chosen = [
        item
        for item in policies
        if item["metadata"]["namespace"] == own.namespace
        and direction in item["spec"]["policyTypes"]
        and matches(item["spec"]["podSelector"], own.labels)
    ]
    key, side = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    return not chosen or any(
        (side not in rule or any(_is(selector, item["metadata"]["namespace"], peer) for selector in rule[side]))
        and ("ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"])
        for item in chosen
        for rule in item["spec"].get(key, [])
    )


def _is(selector: dict[str, Any], namespace: str, peer: Pod) -> bool:
    """Whether a peer of a rule names this pod. Without a namespaceSelector it is one of the policy's own namespace."""
    assert selector.keys() <= {"namespaceSelector", "podSelector"}, selector
    near = peer.namespace == namespace
    there = matches(selector["namespaceSelector"], peer.place) if "namespaceSelector" in selector else near
    return peer != OUTSIDE and there and matches(selector.get("podSelector", {}), peer.labels)


PAGE = of_workload("production", "Deployment", "reasongenrm-web")

FLOWS: dict[str, tuple[Pod, Pod, int, bool]] = {
    "golden judgments of the deploy step": (TASK, JUDGE, 8080, True),
    "golden judgments of a later deployment": (TASK, NEW_JUDGE, 8080, True),
    "a client of the Service, before a rollout": (CLIENT, JUDGE, 8080, True),
    "a client of the Service, after a rollout": (CLIENT, NEW_JUDGE, 8080, True),
    "the web page": (PAGE, NEW_JUDGE, 8080, True),
    "the gateway": (GATEWAY, NEW_JUDGE, 8080, True),
    "metrics of the judge": (PROMETHEUS, NEW_JUDGE, 8080, True),
    "metrics of the model": (PROMETHEUS, NEW_MODEL, 8080, True),
    "a judge and its model": (NEW_JUDGE, NEW_MODEL, 8080, True),
    "a judge and the model of an LLMInferenceService": (NEW_JUDGE, NEW_MODEL, 8000, True),
    "a client and the model of an LLMInferenceService": (CLIENT, MODEL, 8000, False),
    "a checkpoint from a store outside": (NEW_MODEL, OUTSIDE, 443, True),
    "the gateway and the page": (GATEWAY, PAGE, 7860, True),
    "the page and a store outside": (PAGE, OUTSIDE, 443, True),
    "a pod without the label": (STRANGER, JUDGE, 8080, False),
    "another port of the judge": (CLIENT, JUDGE, 9000, False),
    "a client and the model": (CLIENT, MODEL, 8080, False),
    "the page and the model": (PAGE, MODEL, 8080, False),
    "a task and the model": (TASK, MODEL, 8080, False),
    "the gateway and the model": (GATEWAY, MODEL, 8080, False),
    "a pod and the page": (STRANGER, PAGE, 7860, False),
    "a judge and the world": (JUDGE, OUTSIDE, 443, False),
    "a judge and the page": (JUDGE, PAGE, 7860, False),
    "a model and the judges": (MODEL, JUDGE, 8080, False),
}


@pytest.mark.parametrize("flow", FLOWS)
def test_production_lets_through_what_a_judge_needs_and_nothing_else(flow: str) -> None:
    caller, called, port, expected = FLOWS[flow]
    assert is_let_through("production", caller, called, port) == expected


@pytest.mark.parametrize("protocol", ["UDP", "TCP"])
@pytest.mark.parametrize("caller", [JUDGE, MODEL, PAGE], ids=["judge", "model", "page"])
def test_every_pod_of_the_serving_namespace_finds_names(caller: Pod, protocol: str) -> None:
    assert is_let_through("production", caller, DNS, 53, protocol)
    assert not is_let_through("production", caller, STRANGER, 53, protocol)


def test_pod_that_no_policy_names_is_shut_off_in_production() -> None:
    other = Pod(SERVING, {"app": "other"})
    assert not is_let_through("production", CLIENT, other, 8080)
    assert not is_let_through("production", other, OUTSIDE, 443)


def test_object_store_of_kind_is_reached_by_tasks_and_judges_and_reaches_nobody() -> None:
    store = of_workload("kind", "StatefulSet", "reasongenrm-object-store")
    for caller in (TASK, NEW_MODEL, of_workload("kind", "Deployment", "reasongenrm-web")):
        assert is_let_through("kind", caller, store, 8333)
    assert not is_let_through("kind", STRANGER, store, 8333)
    assert not is_let_through("kind", TASK, store, 9333)  # its master, which has no authentication
    assert not is_let_through("kind", store, OUTSIDE, 443)
