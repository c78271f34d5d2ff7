"""Waits until the pods of one manifest, and no others, serve.

In goes what was written, by its revision; out comes the address of the new pods, or an error that says what kept them
from starting. Read at short intervals instead of watched: three small objects, and no connection that can break.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reasongenrm.deploy.manifest import revision_of
from reasongenrm.errors import ClusterError
from reasongenrm.kubernetes.cluster import Cluster
from reasongenrm.kubernetes.health import Trouble, condition, pod_troubles, service_troubles
from reasongenrm.kubernetes.kinds import DEPLOYMENT, INFERENCE_SERVICE, POD
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
    """Whose pods are waited for: the predictor's of an InferenceService and, if there is one, the judge's server's."""

    namespace: str
    name: str
    revision: str | None  # the rollout revision that the pods must have; None for a manifest that we did not make
    predictor: str = ""  # the predictor's own name, which most have not
    has_transformer: bool = False

    @classmethod
    def of(cls, service: Mapping[str, Any]) -> "Target":
        """The pods of one manifest."""
        meta, predictor = service["metadata"], service["spec"]["predictor"]
        revision, name = revision_of(service), predictor.get("name", "")
        return cls(meta["namespace"], meta["name"], revision, name, bool(service["spec"].get("transformer")))

    @property
    def deployment(self) -> str:
        """The Deployment's and Service's name. Source: KServe aaac4e294, pkg/constants PredictorServiceName."""
        return "-".join(filter(None, (self.name, self.predictor, "predictor")))

    @property
    def transformer(self) -> str:
        """The same of the judge's server, whose name no predictor changes."""
        return f"{self.name}-transformer"

    @property
    def deployments(self) -> dict[str, str]:
        """KServe's name of a component -> its Deployment."""
        return {"Predictor": self.deployment, **({"Transformer": self.transformer} if self.has_transformer else {})}

    def __str__(self) -> str:
        return f"InferenceService {self.namespace}/{self.name}"


def wait_for_rollout(cluster: Cluster, target: Target, timeout_seconds: float, timeline: Timeline) -> str:
    """Wait until the new pods are ready and the old ones are gone, of the model and of the judge's server at once.

    KServe's own status does not tell: Ready and transitionStatus may be of older pods, and observedGeneration is the
    Deployment's, not the InferenceService's (KServe aaac4e294, PropagateRawStatus). So the Deployment's template and
    the pods must have the revision that KServe copies from the InferenceService's annotations.

    Returns:
        The address where clients ask: of the judge's server, or of the model where there is none. http://host[:port].

    Raises:
        ClusterError: the pods cannot start, the time is over, or somebody else changed or deleted the InferenceService.
    """
    deadline = time.monotonic() + timeout_seconds
    since: dict[str, float] = {}
    said_at, said = 0.0, ""
    for state, troubles, address in poll(lambda: _look(cluster, target), POLL_SECONDS, deadline):
        if address is not None:
            timeline.say(f"{target.deployment}: {state}")
            return address
        now = time.monotonic()
        since = {trouble.cause: since.get(trouble.cause, now) for trouble in troubles}
        for trouble in troubles:
            if now - since[trouble.cause] >= trouble.patience:
                raise ClusterError(f"{target}: {trouble.text.rstrip('. ')}.{_log_of(cluster, target, trouble)}")
        doing = "; ".join([state, *(trouble.text for trouble in troubles)])
        if now >= deadline:
            raise ClusterError(
                f"{target}: not ready after {timeout_seconds:.0f} s: {doing.rstrip('. ')}. Look at `kubectl describe "
                f"pods -n {target.namespace} -l app=isvc.{target.deployment}`; deploy.rollout_timeout_seconds gives it "
                "more time."
            )
        if doing != said or now - said_at >= REPORT_SECONDS:
            timeline.say(f"{target.deployment}: {doing}")
            said_at, said = now, doing
    raise AssertionError("poll never ends by itself")


def _look(cluster: Cluster, target: Target) -> tuple[str, list[Trouble], str | None]:
    """(what there is, in words; what is wrong; the address once everything is there)."""
    service = cluster.get(INFERENCE_SERVICE, target.namespace, target.name)
    if service is None:
        raise ClusterError(f"{target}: somebody deleted it while its pods were waited for. Deploy again.")
    if revision_of(service) != target.revision:
        raise ClusterError(
            f"{target}: somebody else changed it while its pods were waited for (rollout revision "
            f"{revision_of(service)}, expected {target.revision}). Let one deployment end before the next."
        )
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
    pods = cluster.list(POD, target.namespace, labels=f"app=isvc.{name}")
    template = (deployment or {}).get("spec", {}).get("template", {})
    reconciled = deployment is not None and revision_of(template) == target.revision
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    new = [pod for pod in staying if revision_of(pod) == target.revision]
    found = [*service_troubles(service, deployment, reconciled, component), *(pod_troubles(new) if reconciled else ())]
    troubles = [replace(trouble, cause=f"{component}/{trouble.cause}") for trouble in found]
    if not reconciled or deployment is None:
        return "KServe has not taken up the change yet", troubles, False
    old = [pod["metadata"]["name"] for pod in staying if revision_of(pod) != target.revision]
    wanted = deployment["spec"].get("replicas", 1)
    status = deployment.get("status", {})
    available, updated = status.get("availableReplicas", 0), status.get("updatedReplicas", 0)
    ready = sum(condition(pod, "Ready").get("status") == "True" for pod in new)
    state = f"{ready} of {wanted} new pods ready" + (f", {len(old)} old ones left" if old else "")
    seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return state, troubles, seen and not old and min(ready, updated, available) >= max(wanted, 1)


def address_of(service: Mapping[str, Any], target: Target) -> str | None:
    """Where the pods are reached, http://host[:port]; None until KServe calls them ready.

    `status.address` names the transformer's Service if there is one, else the predictor's. For a while after a change
    it still names the Service of before.
    """
    status = service.get("status", {})
    model = status.get("modelStatus", {}).get("transitionStatus")
    url: str | None = status.get("address", {}).get("url")
    if condition(service, "Ready").get("status") != "True" or model != "UpToDate" or url is None:
        return None
    first = url.split("//", 1)[1].partition(".")[0]
    entry = target.transformer if target.has_transformer else target.deployment
    is_kserves = first.startswith(f"{target.name}-") and first.endswith(("predictor", "transformer"))
    return None if is_kserves and first != entry else url


def _log_of(cluster: Cluster, target: Target, trouble: Trouble) -> str:
    if trouble.pod is None or trouble.container is None:
        return ""
    try:
        lines = cluster.log_tail(target.namespace, trouble.pod, trouble.container, LOG_LINES, trouble.previous)
    except ClusterError as error:  # the trouble itself must be told all the same
        return f" Its log cannot be read: {error}"
    return " Its last lines:\n" + "\n".join(f"    {line}" for line in lines) if lines else " It wrote no log."
