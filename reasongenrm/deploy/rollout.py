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
from reasongenrm.deploy.transformer import transformer_name
from reasongenrm.errors import ClusterError
from reasongenrm.kubernetes.cluster import Cluster, ForbiddenError, UnavailableError
from reasongenrm.kubernetes.health import Trouble, condition, pod_troubles, service_troubles
from reasongenrm.kubernetes.kinds import DEPLOYMENT, INFERENCE_SERVICE, POD

logger = logging.getLogger(__name__)

SAY_SECONDS = 60.0  # what is waited for is said again after so long
LOG_LINES = 20


@dataclass(frozen=True)
class Pace:
    """How fast the waiting goes; tests go faster than a cluster."""

    poll_seconds: float = 2.0
    patience: float = 1.0  # factor on how long a trouble may last


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
    """Whose pods are waited for: one predictor of an InferenceService, the judge's server in front of it if there is one,
    and the revision that they must carry.

    `revision` None is a manifest that we did not make: its pods carry none.
    """

    namespace: str
    name: str
    revision: str | None
    predictor: str = ""
    has_transformer: bool = False

    @property
    def deployment(self) -> str:
        """The Deployment's and Service's name. Source: KServe aaac4e294, pkg/constants PredictorServiceName."""
        return "-".join(filter(None, (self.name, self.predictor, "predictor")))

    @property
    def transformer(self) -> str:
        """The same of the judge's server, whose name no predictor changes."""
        return transformer_name(self.name)

    @property
    def deployments(self) -> dict[str, str]:
        """KServe's name of a component -> its Deployment."""
        return {"Predictor": self.deployment, **({"Transformer": self.transformer} if self.has_transformer else {})}

    def __str__(self) -> str:
        return f"InferenceService {self.namespace}/{self.name}"


def wait_for_rollout(cluster: Cluster, target: Target, timeout_seconds: float, timeline: Timeline, pace: Pace) -> str:
    """Wait until the new pods are ready and the old ones are gone, of the model and of the judge's server at once.

    KServe's own status does not tell: Ready and transitionStatus may be of older pods, and observedGeneration is the
    Deployment's, not the InferenceService's (KServe aaac4e294, PropagateRawStatus). So the Deployment's template and the
    pods must carry the revision that KServe copies from the InferenceService's annotations.

    Returns:
        The address where clients ask: of the judge's server, or of the model where there is none. http://host[:port].

    Raises:
        ClusterError: the pods cannot start, the time is over, or somebody else changed or deleted the InferenceService.
    """
    deadline = time.monotonic() + timeout_seconds
    since: dict[str, float] = {}
    said_at, said = 0.0, ""
    while True:
        state, troubles, address = _look(cluster, target)
        if address is not None:
            timeline.say(f"{target.deployment}: {state}")
            return address
        now = time.monotonic()
        since = {trouble.cause: since.get(trouble.cause, now) for trouble in troubles}
        for trouble in troubles:
            if now - since[trouble.cause] >= trouble.patience * pace.patience:
                raise ClusterError(f"{target}: {trouble.text.rstrip('. ')}.{_log_of(cluster, target, trouble)}")
        doing = "; ".join([state, *(trouble.text for trouble in troubles)])
        if now >= deadline:
            raise ClusterError(
                f"{target}: not ready after {timeout_seconds:.0f} s: {doing.rstrip('. ')}. Look at `kubectl describe pods -n "
                f"{target.namespace} -l app=isvc.{target.deployment}`; deploy.rollout_timeout_seconds gives it more time."
            )
        if doing != said or now - said_at >= SAY_SECONDS:
            timeline.say(f"{target.deployment}: {doing}")
            said_at, said = now, doing
        time.sleep(min(pace.poll_seconds, max(0.0, deadline - now)))


def _look(cluster: Cluster, target: Target) -> tuple[str, list[Trouble], str | None]:
    """(what there is, in words; what is wrong; the address once everything is there)."""
    try:
        service = cluster.get(INFERENCE_SERVICE, target.namespace, target.name)
        found = {part: _found(cluster, target.namespace, name) for part, name in target.deployments.items()}
    except UnavailableError as error:  # an API server that is upgraded; the pods go on without it
        return f"the API server does not answer ({error})", [], None
    if service is None:
        raise ClusterError(f"{target}: somebody deleted it while its pods were waited for. Deploy again.")
    if revision_of(service) != target.revision:
        raise ClusterError(
            f"{target}: somebody else changed it while its pods were waited for (revision {revision_of(service)}, "
            f"expected {target.revision}). Let one deployment end before the next."
        )
    parts = [_part(service, part, *seen, target.revision) for part, seen in found.items()]
    state = "; the judge's server: ".join(part.state for part in parts)
    troubles = [trouble for part in parts for trouble in part.troubles]
    if not all(part.done for part in parts):
        return state, troubles, None
    address = address_of(service, target)
    if address is None:
        said = condition(service, "Ready")
        state += f"; KServe's status is not of them yet (Ready {said.get('status')}: {said.get('reason', '')})"
    return state, troubles, address


@dataclass(frozen=True)
class _Part:
    """How far one Deployment is, in words; what is wrong with it."""

    state: str
    troubles: list[Trouble]
    done: bool


def _found(cluster: Cluster, namespace: str, name: str) -> tuple[Mapping[str, Any] | None, list[dict[str, Any]]]:
    """(Deployment, its pods)."""
    return cluster.get(DEPLOYMENT, namespace, name), cluster.list(POD, namespace, labels=f"app=isvc.{name}")


def _part(
    service: Mapping[str, Any],
    component: str,
    deployment: Mapping[str, Any] | None,
    pods: list[dict[str, Any]],
    revision: str | None,
) -> _Part:
    template = (deployment or {}).get("spec", {}).get("template", {})
    reconciled = deployment is not None and revision_of(template) == revision
    staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    new = [pod for pod in staying if revision_of(pod) == revision]
    troubles = [
        replace(trouble, cause=f"{component}/{trouble.cause}")
        for trouble in (
            *service_troubles(service, deployment, reconciled, component),
            *(pod_troubles(new) if reconciled else ()),
        )
    ]
    if not reconciled or deployment is None:
        return _Part("KServe has not taken up the change yet", troubles, False)
    old = [pod["metadata"]["name"] for pod in staying if revision_of(pod) != revision]
    wanted = deployment["spec"].get("replicas", 1)
    status = deployment.get("status", {})
    available, updated = status.get("availableReplicas", 0), status.get("updatedReplicas", 0)
    ready = sum(condition(pod, "Ready").get("status") == "True" for pod in new)
    state = f"{ready} of {wanted} new pods ready" + (f", {len(old)} old ones left" if old else "")
    done = (
        status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
        and not old
        and min(ready, updated, available) >= max(wanted, 1)
    )
    return _Part(state, troubles, done)


def address_of(service: Mapping[str, Any], target: Target) -> str | None:
    """Where the pods are reached, http://host[:port]; None until KServe calls them ready.

    `status.address` names the transformer's Service if there is one, else the predictor's. For a while after a change it
    still names the Service of before.
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
    except (ForbiddenError, UnavailableError) as error:  # the trouble itself must be told all the same
        return f" Its log cannot be read: {error}"
    return " Its last lines:\n" + "\n".join(f"    {line}" for line in lines) if lines else " It wrote no log."
