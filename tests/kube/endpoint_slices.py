"""The endpoint slice controller for the fake API server: a Service's slice names the pods that its selector selects.

A pod that is not Ready has `ready: false`. Shapes: Kubernetes 1.37, discovery.k8s.io/v1; the controller is
pkg/controller/endpointslice (reconciler and endpointslice/utils.go, podToEndpoint) of kubernetes/kubernetes.
"""

from typing import Any

from tests.kube.fake_api import FakeCluster
from tests.kube.references import matches

Item = dict[str, Any]


class EndpointSlices:
    """Follows Services and pods of one namespace while `is_up`."""

    def __init__(self, cluster: FakeCluster, namespace: str) -> None:
        self.cluster, self.namespace, self.is_up = cluster, namespace, True
        cluster.on_change("services", self._sync)
        cluster.on_change("pods", self._sync)

    def _sync(self, _event: str, _changed: Item) -> None:
        if not self.is_up:
            return
        services = {
            service["metadata"]["name"]: service for service in self.cluster.objects("services", self.namespace)
        }
        for found in self.cluster.objects("endpointslices", self.namespace):
            if found["metadata"]["labels"]["kubernetes.io/service-name"] not in services:
                self.cluster.remove("endpointslices", self.namespace, found["metadata"]["name"])
        pods = self.cluster.objects("pods", self.namespace)
        for name, service in services.items():
            chosen = [pod for pod in pods if matches(service["spec"]["selector"], pod["metadata"].get("labels", {}))]
            labels = {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "controller"}
            self.cluster.put(
                {
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {"name": f"{name}-x7k2p", "namespace": self.namespace, "labels": labels},
                    "addressType": "IPv4",
                    "endpoints": [_endpoint(pod) for pod in chosen],
                    "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
                }
            )


def _endpoint(pod: Item) -> Item:
    conditions = pod.get("status", {}).get("conditions", [])
    ready = any(found["type"] == "Ready" and found["status"] == "True" for found in conditions)
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    return {
        "addresses": [pod.get("status", {}).get("podIP", "10.0.0.1")],
        "conditions": {"ready": ready, "serving": ready, "terminating": False},
        "targetRef": {"kind": "Pod", "name": name, "namespace": namespace, "uid": pod["metadata"]["uid"]},
    }
