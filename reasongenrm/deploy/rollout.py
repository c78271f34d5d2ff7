"""Waits until the pods of a new judge serve.

In go the names of what was written; out comes the address of the new pods, or an error that says what kept them from
starting. Read at short intervals instead of watched: a few small objects, and no connection that can break.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reasongenrm.errors import ClusterError
from reasongenrm.kubernetes.cluster import Cluster
from reasongenrm.kubernetes.health import Trouble, condition, pod_troubles, service_troubles
from reasongenrm.kubernetes.kinds import DEPLOYMENT, LLM_INFERENCE_SERVICE, POD, Kind
from reasongenrm.kubernetes.waiting import poll

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
REPORT_SECONDS = 60.0  # how often the log says what is waited for
LOG_LINES = 20
_Part = tuple[str, list[Trouble], bool]


@dataclass
class Timeline:
    """What happened when, in seconds since the start; every entry is a line of log as well."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return round(time.monotonic() - self._started, 1)

    def say(self, what: str) -> None:
        """Add an entry."""
        self.entries.append({"seconds": self.seconds, "what": what})
        logger.warning("deploy: %s (%.0f s)", what, self.seconds)


@dataclass(frozen=True)
class Target:
    """What a judge's manifests become: whose pods are waited for, and which Service leads to them."""

    kind: Kind
    namespace: str
    name: str
    has_judge: bool = False  # a judge's server in front of the model

    @classmethod
    def of(cls, manifests: Sequence[Mapping[str, Any]]) -> "Target":
        """Of what these manifests bring."""
        root = manifests[0]
        meta, kind = root["metadata"], Kind.of(root)
        has_judge = kind == LLM_INFERENCE_SERVICE or "transformer" in root["spec"]
        return cls(kind, meta["namespace"], meta["name"], has_judge)

    @property
    def deployments(self) -> dict[str, str]:
        """KServe's name of a component -> its Deployment. Source: KServe aaac4e294, pkg/constants PredictorServiceName
        and TransformerServiceName, pkg/controller/v1alpha2/llmisvc mainDeploymentName; the judge is ours there."""
        if self.kind == LLM_INFERENCE_SERVICE:
            return {"MainWorkload": f"{self.name}-kserve", "Judge": f"{self.name}-judge"}
        parts = {"Predictor": f"{self.name}-predictor"}
        return parts | ({"Transformer": f"{self.name}-transformer"} if self.has_judge else {})

    @property
    def entry(self) -> str:
        """The Service that leads to what clients ask; called as the Deployment."""
        return [*self.deployments.values()][-1]

    def __str__(self) -> str:
        return f"{self.kind.kind} {self.namespace}/{self.name}"


def wait_for_rollout(cluster: Cluster, target: Target, timeout_seconds: float, timeline: Timeline) -> str:
    """Wait until all pods are ready, of the model and of the judge's server at once.

    An object that owns Deployments is written once and never changed, so that all it says is about these pods.

    Returns:
        The address where these pods are asked: of the judge's server, or of the model where there is none.
        http://host[:port].

    Raises:
        ClusterError: the pods cannot start, the time is over, or somebody deleted the object.
    """
    deadline = time.monotonic() + timeout_seconds
    since: dict[str, float] = {}
    said_at, said = 0.0, ""
    for state, troubles, address in poll(lambda: _look(cluster, target), POLL_SECONDS, deadline):
        if address is not None:
            timeline.say(f"{target.name}: {state}")
            return address
        now = time.monotonic()
        since = {trouble.cause: since.get(trouble.cause, now) for trouble in troubles}
        for trouble in troubles:
            if now - since[trouble.cause] >= trouble.patience:
                raise ClusterError(f"{target}: {trouble.text.rstrip('. ')}.{_log_of(cluster, target, trouble)}")
        doing = "; ".join([state, *(trouble.text for trouble in troubles)])
        if now >= deadline:
            no_room = any("scheduling" in trouble.cause for trouble in troubles)
            hint = " Where there is no room for two judges at once, set deploy.strategy to Recreate." if no_room else ""
            raise ClusterError(
                f"{target}: not ready after {timeout_seconds:.0f} s: {doing.rstrip('. ')}. Look at `kubectl describe "
                f"pods -n {target.namespace}`; deploy.rollout_timeout_seconds gives it more time.{hint}"
            )
        if doing != said or now - said_at >= REPORT_SECONDS:
            timeline.say(f"{target.name}: {doing}")
            said_at, said = now, doing
    raise AssertionError("poll never ends by itself")


def _look(cluster: Cluster, target: Target) -> tuple[str, list[Trouble], str | None]:
    """(what there is, in words; what is wrong; the address once everything is there)."""
    service = cluster.get(target.kind, target.namespace, target.name)
    if service is None:
        raise ClusterError(f"{target}: somebody deleted it while its pods were waited for. Deploy again.")
    parts = [_part(cluster, service, target, part, name) for part, name in target.deployments.items()]
    state = "; the judge's server: ".join(said for said, _, _ in parts)
    troubles = [trouble for _, found, _ in parts for trouble in found]
    if not all(done for _, _, done in parts):
        return state, troubles, None
    address = address_of(service, target)
    if address is None:
        said = condition(service, "Ready")
        state += f"; KServe's status is not of them yet (Ready {said.get('status')}: {said.get('reason', '')})"
    return state, troubles, address


def _part(cluster: Cluster, service: Mapping[str, Any], target: Target, component: str, name: str) -> _Part:
    """How far one Deployment is, in words; what is wrong with it; whether it is done."""
    deployment = cluster.get(DEPLOYMENT, target.namespace, name)
    if deployment is not None and service["metadata"]["uid"] not in [
        owner["uid"] for owner in deployment["metadata"].get("ownerReferences", ())
    ]:
        deployment = None  # of an object of the same name that was deleted: the garbage collector is on its way
    troubles = [*service_troubles(service, deployment, component)]
    if deployment is None:
        return "KServe has not taken it up yet", _named(component, troubles), False
    labels = ",".join(f"{key}={value}" for key, value in deployment["spec"]["selector"]["matchLabels"].items())
    pods = [pod for pod in cluster.list(POD, target.namespace, labels) if "deletionTimestamp" not in pod["metadata"]]
    troubles += pod_troubles(pods)
    wanted = max(deployment["spec"].get("replicas", 1), 1)
    status = deployment.get("status", {})
    ready = min(status.get("availableReplicas", 0), status.get("updatedReplicas", 0))
    seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return f"{ready} of {wanted} pods ready", _named(component, troubles), seen and ready >= wanted


def _named(component: str, troubles: list[Trouble]) -> list[Trouble]:
    return [replace(trouble, cause=f"{component}/{trouble.cause}") for trouble in troubles]


def address_of(service: Mapping[str, Any], target: Target) -> str | None:
    """Where the pods are reached, http://host[:port]; None until KServe calls them ready."""
    status = service.get("status", {})
    if target.kind == LLM_INFERENCE_SERVICE:  # whose address would be the model's
        is_ready = condition(service, "Ready").get("status") == "True"
        return f"http://{target.entry}.{target.namespace}.svc.cluster.local" if is_ready else None
    model = status.get("modelStatus", {}).get("transitionStatus")
    url: str | None = status.get("address", {}).get("url")
    return url if condition(service, "Ready").get("status") == "True" and model == "UpToDate" else None


def _log_of(cluster: Cluster, target: Target, trouble: Trouble) -> str:
    if trouble.pod is None or trouble.container is None:
        return ""
    try:
        lines = cluster.log_tail(target.namespace, trouble.pod, trouble.container, LOG_LINES, trouble.previous)
    except ClusterError as error:  # the trouble itself must be told all the same
        return f" Its log cannot be read: {error}"
    return " Its last lines:\n" + "\n".join(f"    {line}" for line in lines) if lines else " It wrote no log."
