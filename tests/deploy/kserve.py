"""A scripted KServe and Deployment controller for the fake API server: the states that a real one goes through, in
order.

What an InferenceService's pods do is told by the last part of its storageUri ("good", "bad_image", ...), what those of
its transformer do by the tag of their image. As the real one (KServe aaac4e294) it makes a Deployment and a Service of
each component, which the InferenceService owns (raw_kube_reconciler.go, Reconcile), with the selector `app:
isvc.<component>` and port 80 (service_reconciler.go, createDefaultSvc), copies annotations to the pod template, puts
the Deployment's observedGeneration where one would expect the InferenceService's, and is Ready once both components
are. It makes no Service called as the InferenceService (only the Knative mode has one: ingress_reconciler.go,
ExternalName).
"""

import time
from collections.abc import Sequence
from typing import Any

from tests.kube.endpoint_slices import EndpointSlices
from tests.kube.fake_api import FakeCluster

NAMESPACE = "reasongenrm"
Item = dict[str, Any]


def runtime(name: str = "reasongenrm-vllm", **spec: Any) -> Item:
    args = ["--reasoning-parser-plugin=/mnt/models/reasongenrm_reasoning_parser.py", "--reasoning-parser=reasongenrm"]
    container = {"name": "kserve-container", "image": "reasongenrm-vllm:1", "args": args}
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"supportedModelFormats": [{"name": "huggingface"}], "containers": [container]} | spec,
    }


class KServe:
    """Answers every new InferenceService; `model` is where its predictor is reached, `judge` its transformer."""

    def __init__(self, cluster: FakeCluster, model: str, judge: str, step_seconds: float = 0.02) -> None:
        self.cluster, self.model, self.judge, self.step_seconds = cluster, model, judge, step_seconds
        self._seen: set[str] = set()
        self.num_pods = 0
        cluster.on_change("inferenceservices", self.reconcile)
        self.slices = EndpointSlices(cluster, NAMESPACE)

    def reconcile(self, event: str, service: Item) -> None:
        if event == "DELETED" or service["metadata"]["uid"] in self._seen:
            return
        self._seen.add(service["metadata"]["uid"])
        time.sleep(self.step_seconds)
        if self.is_there(service) and self.transform(service):
            self.predict(service)

    def is_there(self, service: Item) -> bool:
        found = self.cluster.find("inferenceservices", NAMESPACE, service["metadata"]["name"])
        return found is not None and found["metadata"]["uid"] == service["metadata"]["uid"]

    def predict(self, service: Item) -> None:
        predictor = service["spec"]["predictor"]
        how = predictor["model"]["storageUri"].rstrip("/").rsplit("/", 1)[-1]
        if how == "no_runtime":
            failure = {"reason": "NoSupportingRuntime", "message": "Specified runtime does not support it"}
            model = {"transitionStatus": "InvalidSpec", "lastFailureInfo": failure}
            self._status(service, ready="Unknown", model=model)
            return
        pod = self._component(service, "predictor", {"containers": [{"name": "kserve-container", "image": "judge:1"}]})
        deployment = pod["metadata"]["ownerReferences"][0]["name"]
        states = {
            "slow": [{}, {}, {}, None],
            "bad_image": [{"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}],
            "bad_config": [{"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}}],
            "crash": [{"waiting": {"reason": "CrashLoopBackOff"}}],
            "stuck": [{}],
        }.get(how, [{}, None])
        for state in states:
            if not self.is_there(service):
                return
            if state is None:
                self._pod_is(pod, pod_status(ready=True))
                self._deployment_is(deployment, available=1)
                self._status(service, ready="True")
                return
            if how == "stuck":
                no_room = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes have nvidia.com/gpu"}
                status: Item = {"phase": "Pending", "conditions": [no_room]}
            else:
                status = pod_status(ready=False, state=state, crashed=how == "crash")
            if how == "crash":
                container = status["containerStatuses"][0]["name"]
                self.cluster.log(NAMESPACE, pod["metadata"]["name"], container, "loading", "CUDA out of memory")
            self._pod_is(pod, status)
            late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "late"}
            self._deployment_is(deployment, available=0, conditions=[late] if how == "slow" else [])
            self._status(service, ready="False", model={"transitionStatus": "InProgress"})
            time.sleep(self.step_seconds * 3)

    def transform(self, service: Item) -> bool:
        """Whether the judge's server starts, or there is to be none."""
        spec = service["spec"].get("transformer")
        if spec is None:
            return True
        pod = self._component(service, "transformer", {key: spec[key] for key in ("containers", "volumes")})
        crashes = spec["containers"][0]["image"].endswith(":crash")
        state = {"waiting": {"reason": "CrashLoopBackOff"}} if crashes else None
        self._pod_is(pod, pod_status(ready=not crashes, state=state, crashed=crashes))
        self._deployment_is(pod["metadata"]["ownerReferences"][0]["name"], available=int(not crashes))
        return not crashes

    def address(self, service: Item) -> str:
        """Of the entry point, as `status.address` has it."""
        return self.judge if service["spec"].get("transformer") else self.model

    def _component(self, service: Item, part: str, pod_spec: Item) -> Item:
        """A component's Service and Deployment, and its one pod."""
        meta, spec = service["metadata"], service["spec"][part]
        name = f"{meta['name']}-{part}"
        labels = {
            **meta.get("labels", {}),
            **spec.get("labels", {}),
            "serving.kserve.io/inferenceservice": meta["name"],
            "component": part,
        }
        selector = {"app": f"isvc.{name}"}
        annotations = meta.get("annotations", {}) | spec.get("annotations", {})
        port = {"name": "http1", "port": 80, "targetPort": 8080, "protocol": "TCP"}
        mine = {"name": name, "namespace": NAMESPACE, "labels": labels, "ownerReferences": [owner_of(service)]}
        self.cluster.put(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": mine,
                "spec": {"selector": selector, "ports": [port]},
            }
        )
        template = {"metadata": {"labels": labels | selector, "annotations": annotations}, "spec": pod_spec}
        deployment = self.cluster.put(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": mine,
                "spec": {"replicas": 1, "selector": {"matchLabels": selector}, "template": template},
            }
        )
        self.num_pods += 1
        owned = {"name": f"{name}-{self.num_pods}", "namespace": NAMESPACE, "ownerReferences": [owner_of(deployment)]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"] | owned, "spec": template["spec"]}
        return self.cluster.put(body)

    def _pod_is(self, pod: Item, status: Item) -> None:
        if self.cluster.find("pods", NAMESPACE, pod["metadata"]["name"]) is not None:
            self.cluster.set_status("pods", NAMESPACE, pod["metadata"]["name"], status)

    def _deployment_is(self, name: str, *, available: int, conditions: Sequence[Item] = ()) -> None:
        found = self.cluster.find("deployments", NAMESPACE, name)
        if found is not None:
            status = {"observedGeneration": found["metadata"]["generation"], "replicas": 1, "updatedReplicas": 1}
            status |= {"availableReplicas": available, "readyReplicas": available, "conditions": [*conditions]}
            self.cluster.set_status("deployments", NAMESPACE, name, status)

    def _status(self, service: Item, *, ready: str, model: Item | None = None) -> None:
        if not self.is_there(service):
            return
        status = {
            "observedGeneration": 1,  # of the Deployment
            "deploymentMode": "Standard",
            "conditions": [{"type": "Ready", "status": ready}],
            "modelStatus": model or {"transitionStatus": "UpToDate"},
            "address": {"url": self.address(service)},
        }
        self.cluster.set_status("inferenceservices", NAMESPACE, service["metadata"]["name"], status)


def owner_of(item: Item) -> Item:
    """A controller's reference to what it made something for."""
    reference = {key: item[key] for key in ("apiVersion", "kind")}
    reference |= {key: item["metadata"][key] for key in ("name", "uid")}
    return reference | {"controller": True, "blockOwnerDeletion": True}


def pod_status(*, ready: bool, state: Item | None = None, crashed: bool = False) -> Item:
    container: Item = {
        "name": "kserve-container",
        "image": "judge:1",
        "imageID": "",
        "ready": ready,
        "restartCount": 3 if crashed else 0,
        "state": state or {"running": {"startedAt": "2026-11-24T10:00:00Z"}},
    }
    if crashed:
        container["lastState"] = {"terminated": {"exitCode": 1, "reason": "Error"}}
    return {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": str(ready)}],
        "containerStatuses": [container],
    }
