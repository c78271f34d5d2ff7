"""A scripted KServe and Deployment controller for the fake API server: the states that a real one goes through, in
order.

What an InferenceService's pods do is told by the last part of its storageUri ("good", "bad_image", ...), what those of
its transformer do by the tag of their image. As the real one (KServe aaac4e294) it leaves Ready=True of the old pods
standing for a while, copies annotations to the pod template, and puts the Deployment's observedGeneration where one
would expect the InferenceService's, and leaves the Deployment of a transformer that the spec has no more.
"""

import copy
import time
from typing import Any

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
    """Answers every change of an InferenceService; `model` is where its predictor is reached, `judge` its
    transformer."""

    def __init__(self, cluster: FakeCluster, model: str, judge: str, step_seconds: float = 0.02) -> None:
        self.cluster, self.model, self.judge, self.step_seconds = cluster, model, judge, step_seconds
        self._seen: dict[str, Any] = {}
        self.num_pods = 0
        cluster.on_change("inferenceservices", self.reconcile)

    def reconcile(self, event: str, service: Item) -> None:
        meta = service["metadata"]
        if event == "DELETED":
            self._seen.pop(meta["name"], None)
            for deployment in self.cluster.objects("deployments", NAMESPACE):
                self._remove_pods(deployment["metadata"]["name"])
                self.cluster.remove("deployments", NAMESPACE, deployment["metadata"]["name"])
            return
        asked = copy.deepcopy((meta.get("annotations"), service["spec"]))
        if self._seen.get(meta["name"]) == asked:
            return
        self._seen[meta["name"]] = asked
        time.sleep(self.step_seconds)  # the old status still stands
        if self.cluster.find("inferenceservices", NAMESPACE, meta["name"]) is None:
            return
        annotations = meta.get("annotations", {})
        if service["spec"].get("transformer") and not self._transform(service, annotations):
            return
        predictor = service["spec"]["predictor"]
        self._roll(service, predictor, annotations | predictor.get("annotations", {}))
        names = {self._name(service, predictor), f"{meta['name']}-transformer"}
        for deployment in self.cluster.objects("deployments", NAMESPACE):
            if deployment["metadata"]["name"] not in names:
                self._remove_pods(deployment["metadata"]["name"])
                self.cluster.remove("deployments", NAMESPACE, deployment["metadata"]["name"])

    def _name(self, service: Item, predictor: Item) -> str:
        return "-".join(filter(None, (service["metadata"]["name"], predictor.get("name", ""), "predictor")))

    def _roll(self, service: Item, predictor: Item, annotations: dict[str, str]) -> None:
        name = self._name(service, predictor)
        how = predictor.get("model", {}).get("storageUri", "s3://b/good/").rstrip("/").rsplit("/", 1)[-1]
        if how == "no_runtime":
            failure = {"reason": "NoSupportingRuntime", "message": "Specified runtime does not support it"}
            model = {"transitionStatus": "InvalidSpec", "lastFailureInfo": failure}
            self._status(service, ready="Unknown", model=model)
            return
        template = {
            "metadata": {"labels": {"app": f"isvc.{name}"}, "annotations": annotations},
            "spec": {"containers": [{"name": "kserve-container", "image": "judge:1"}]},
        }
        found = self.cluster.find("deployments", NAMESPACE, name)
        if found is not None and found["spec"]["template"] == template:
            self._status(service, ready="True")
            return
        self.cluster.put(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"replicas": 1, "selector": {"matchLabels": {"app": f"isvc.{name}"}}, "template": template},
            }
        )
        time.sleep(self.step_seconds)  # the Deployment is new, its pods and KServe's status are the old ones
        self._remove_pods(name)
        states = {
            "slow": [{}, {}, {}, None],
            "bad_image": [{"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}],
            "bad_config": [{"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}}],
            "crash": [{"waiting": {"reason": "CrashLoopBackOff"}}],
            "stuck": [{}],
        }.get(how, [{}, None])
        pod = self._pod(name, template)
        for state in states:
            self.cluster.put(pod)
            deployment = self.cluster.find("deployments", NAMESPACE, name)
            assert deployment is not None
            generation = deployment["metadata"]["generation"]
            if state is None:
                self.cluster.set_status("pods", NAMESPACE, pod["metadata"]["name"], pod_status(ready=True))
                done = {"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "readyReplicas": 1}
                self.cluster.set_status("deployments", NAMESPACE, name, {"observedGeneration": generation, **done})
                self._status(service, ready="True", generation=generation)
                return
            if how == "stuck":
                no_room = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes have nvidia.com/gpu"}
                status = {"phase": "Pending", "conditions": [no_room]}
            else:
                status = pod_status(ready=False, state=state, crashed=how == "crash")
            self.cluster.set_status("pods", NAMESPACE, pod["metadata"]["name"], status)
            late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "late"}
            waiting: Item = {"observedGeneration": generation, "replicas": 1, "updatedReplicas": 1}
            self.cluster.set_status(
                "deployments", NAMESPACE, name, waiting | ({"conditions": [late]} if how == "slow" else {})
            )
            self._status(service, ready="False", model={"transitionStatus": "InProgress"}, generation=generation)
            time.sleep(self.step_seconds * 3)

    def _transform(self, service: Item, annotations: dict[str, str]) -> bool:
        name, spec = f"{service['metadata']['name']}-transformer", service["spec"]["transformer"]
        template = {
            "metadata": {"labels": {"app": f"isvc.{name}"}, "annotations": annotations},
            "spec": {"containers": spec["containers"], "volumes": spec["volumes"]},
        }
        found = self.cluster.find("deployments", NAMESPACE, name)
        if found is not None and found["spec"]["template"] == template:
            return True
        self.cluster.put(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"replicas": 1, "selector": {"matchLabels": {"app": f"isvc.{name}"}}, "template": template},
            }
        )
        self._remove_pods(name)
        pod = self._pod(name, template)
        self.cluster.put(pod)
        crashes = spec["containers"][0]["image"].endswith(":crash")
        state = {"waiting": {"reason": "CrashLoopBackOff"}} if crashes else None
        status = pod_status(ready=not crashes, state=state, crashed=crashes)
        self.cluster.set_status("pods", NAMESPACE, pod["metadata"]["name"], status)
        deployment = self.cluster.find("deployments", NAMESPACE, name)
        assert deployment is not None
        ready = {"availableReplicas": int(not crashes), "readyReplicas": int(not crashes)}
        seen = {"observedGeneration": deployment["metadata"]["generation"], "replicas": 1, "updatedReplicas": 1}
        self.cluster.set_status("deployments", NAMESPACE, name, seen | ready)
        return not crashes

    def _pod(self, name: str, template: Item) -> Item:
        self.num_pods += 1
        meta = template["metadata"] | {"name": f"{name}-{self.num_pods}", "namespace": NAMESPACE}
        if "crash" in str(template):
            self.cluster.log(NAMESPACE, meta["name"], "kserve-container", "loading", "CUDA out of memory")
        return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}

    def _remove_pods(self, name: str) -> None:
        for pod in self.cluster.objects("pods", NAMESPACE):
            if pod["metadata"]["labels"]["app"] == f"isvc.{name}":
                self.cluster.remove("pods", NAMESPACE, pod["metadata"]["name"])

    def _status(
        self,
        service: Item,
        *,
        ready: str,
        model: Item | None = None,
        generation: int = 1,
    ) -> None:
        name = service["metadata"]["name"]
        if self.cluster.find("inferenceservices", NAMESPACE, name) is None:
            return
        status = {
            "observedGeneration": generation,
            "deploymentMode": "Standard",
            "conditions": [{"type": "Ready", "status": ready}],
            "modelStatus": model or {"transitionStatus": "UpToDate"},
            "address": {"url": self.judge if service["spec"].get("transformer") else self.model},
        }
        self.cluster.set_status("inferenceservices", NAMESPACE, name, status)


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
