"""What keeps a pod from starting, read from its state, and how long each cause may last.

In go an InferenceService, its Deployment and pods as the API server gives them, out come troubles in words. Pure.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Item = Mapping[str, Any]

MAX_RESTARTS = 2  # a container that died so often dies again: weights, arguments and GPU stay the same
SETTLE_SECONDS = 60.0  # a registry that hiccups, a Secret or a quota that comes a little later
_NEVER = float("inf")

# Reasons of a waiting container that pass only if someone fixes the cause: Kubernetes, pkg/kubelet/images/types.go and
# pkg/kubelet/kuberuntime/kuberuntime_container.go.
_BAD_IMAGE = {
    *("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"),
    *("ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"),
}
_BAD_CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
CANNOT_START = _BAD_IMAGE | _BAD_CONFIG


@dataclass(frozen=True)
class Trouble:
    """One cause."""

    cause: str  # the same for the same cause at every look
    text: str
    patience: float  # seconds that it may last; infinite for what may pass by itself (no room on any node)
    pod: str | None = None  # whose log says more; with its container, and whether of the container's run before
    container: str | None = None
    previous: bool = False


def container_states(pod: Item) -> dict[str, Item]:
    """Container name -> its state, those of init containers first; empty before the kubelet has taken up the pod."""
    return {entry["name"]: entry.get("state", {}) for entry in _containers(pod)}


def _containers(pod: Item) -> list[Item]:
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]


def condition(item: Item | None, kind: str) -> Item:
    """One condition of an object's status; empty if it has none of this type."""
    found = (item or {}).get("status", {}).get("conditions", ())
    return next((entry for entry in found if entry["type"] == kind), {})


def service_troubles(service: Item, deployment: Item | None, component: str = "Predictor") -> Iterator[Trouble]:
    """What KServe and the Deployment of one component say.

    `modelStatus.lastFailureInfo` is never taken back (KServe aaac4e294, inference_service_status.go), so a failure
    counts while there is no Deployment. Later the pods speak for themselves. ProgressDeadlineExceeded is no trouble:
    the deadline is fixed at 600 s, and a large model takes longer to load.

    Args:
        component: Predictor or Transformer; a condition's name begins with it, and modelStatus is the predictor's.
    """
    status = service.get("status", {}).get("modelStatus", {})
    failure = status.get("lastFailureInfo")
    if component == "Predictor" and deployment is None and failure and status.get("transitionStatus") == "InvalidSpec":
        text = f"KServe refuses the spec: {failure.get('reason')}: {failure.get('message', '')}"
        # Not at once: a runtime may be written a little later.
        yield Trouble(f"spec/{failure.get('reason')}", text, SETTLE_SECONDS / 6)
    ready = condition(service, f"{component}Ready")
    if deployment is None and ready.get("reason") == "ReconcileFailed":
        yield Trouble("reconcile", f"KServe cannot write the Deployment: {ready.get('message', '')}", SETTLE_SECONDS)
    refused = condition(deployment, "ReplicaFailure")
    if refused.get("status") == "True":
        text = f"no pod can be created: {refused.get('reason')}: {refused.get('message', '')}"
        yield Trouble("replicas", text, SETTLE_SECONDS)


def pod_troubles(pods: Sequence[Item]) -> Iterator[Trouble]:
    """What the pods say: image, configuration, crashes, no room."""
    for pod in pods:
        name, status = pod["metadata"]["name"], pod.get("status", {})
        if status.get("phase") == "Failed":
            text = f"pod {name} failed: {status.get('reason', '')} {status.get('message', '')}"
            yield Trouble(f"failed/{status.get('reason')}", text, SETTLE_SECONDS)
        scheduled = condition(pod, "PodScheduled")
        if scheduled.get("status") == "False":
            text = f"pod {name} waits for a node: {scheduled.get('message') or scheduled.get('reason')}"
            yield Trouble("scheduling", text, _NEVER)
        for entry in _containers(pod):
            yield from _container(name, entry)


def _container(pod: str, entry: Item) -> Iterator[Trouble]:
    name, restarts = entry["name"], entry.get("restartCount", 0)
    waiting = entry.get("state", {}).get("waiting") or {}
    reason = waiting.get("reason", "")
    if reason in _BAD_IMAGE:
        text = f"pod {pod}: the image {entry.get('image', '')} cannot be pulled: {reason}: {waiting.get('message', '')}"
        yield Trouble(f"image/{name}", text, SETTLE_SECONDS)
    if reason in _BAD_CONFIG:
        text = f"pod {pod}: {name} cannot be set up: {reason}: {waiting.get('message', '')}"
        yield Trouble(f"config/{name}", text, SETTLE_SECONDS)
    ended = entry.get("state", {}).get("terminated") or entry.get("lastState", {}).get("terminated") or {}
    if ended.get("exitCode", 0) != 0 and not entry.get("ready", False):
        how = f"exit code {ended['exitCode']} ({ended.get('reason', 'Error')})"
        said = " ".join(ended.get("message", "").split())[-300:]
        text = f"pod {pod}: {name} ended with {how}, {restarts} restart{'s' if restarts != 1 else ''}"
        running_again = "terminated" not in entry.get("state", {})
        patience = 0.0 if restarts >= MAX_RESTARTS else _NEVER
        text = f"{text}: {said}" if said else text
        yield Trouble(f"crash/{name}", text, patience, pod, name, previous=running_again)
