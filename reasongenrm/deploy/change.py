"""One change of which judge a name serves: start the new one, ask it, switch, end the one before.

In go a judge's manifests and golden rows; out comes a judge that has proven itself, or an error and the judge before.
Clients ask the Service `<name>`; its selector names the pods of one revision, and one write of it is the switch.
`deploy` and `rollback` use it.
"""

import contextlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from reasongenrm.config import DeployConfig
from reasongenrm.deploy.golden import Golden, GoldenRows, ask_golden
from reasongenrm.deploy.manifest import ROLLOUT, manifest_of, own_labels, revision_of
from reasongenrm.deploy.rollout import POLL_SECONDS, Target, Timeline, wait_for_rollout
from reasongenrm.deploy.runtimes import leaves_markup
from reasongenrm.errors import ClusterError, ReasonGenRMError
from reasongenrm.kubernetes.cluster import AlreadyExistsError, Cluster, ConflictError, UnknownKindError
from reasongenrm.kubernetes.kinds import ENDPOINT_SLICE, JUDGES, POD, SERVICE, Kind
from reasongenrm.kubernetes.lease import Lease
from reasongenrm.kubernetes.waiting import poll
from reasongenrm.store.artifacts import Store
from reasongenrm.store.served import ServedJudge, record_served, served_judge

_MAX_WRITES = 8  # a load balancer updates the status of the Service: each update makes what was read stale
_STOP_SECONDS = 10.0  # a pod that is stopped has 30 s to end
_GONE_SECONDS = 120.0  # for an object that is being deleted to be gone
_ENDPOINT_SECONDS = 60.0  # for the endpoints to follow a switch: the controller needs a second
_PORT_FIELDS = ("name", "port", "targetPort", "protocol", "appProtocol")

Body = dict[str, Any]


@dataclass(frozen=True)
class Deployed:
    """A judge that serves."""

    judge: ServedJudge
    changed: bool
    golden: Golden | None
    timeline: Timeline
    min_agreement: float

    def files(self) -> dict[str, bytes]:
        """What the stage's artifact keeps: rollout.json, golden.json and golden.jsonl."""
        rollout = json.dumps({"changed": self.changed, "timeline": self.timeline.entries}, indent=2).encode() + b"\n"
        return {"rollout.json": rollout, **(self.golden.files(self.min_agreement) if self.golden else {})}

    def metrics(self) -> dict[str, Any]:
        """`changed`, `golden_agreement` in [0, 1], and `seconds` in all."""
        agreement = {"golden_agreement": self.golden.agreement} if self.golden else {}
        return {"changed": self.changed, "seconds": self.timeline.seconds, **agreement}


def change_served(
    cluster: Cluster, store: Store, config: DeployConfig, judge: ServedJudge, golden: GoldenRows | None
) -> Deployed:
    """Make the name serve this judge, prove it, and record it as served.

    A judge of the same revision is no change: nothing is written, but its pods are still checked and asked.

    Args:
        judge: its manifests as rendered, or as they were served before.
        golden: what the new pods are asked; None: only their start is waited for.

    Raises:
        ClusterError: the cluster refuses it, the new judge did not start or did not agree, or another deployment is
            under way; says what is served now.
    """
    where = f"Service {config.namespace}/{config.name}"
    with Lease(cluster, config.namespace, config.name, where) as lease:
        return _Change(cluster, store, config, judge, golden, lease, where).carry_out()


@dataclass
class _Change:
    """One attempt to serve a judge: what there was before, how far it came, and how to undo it."""

    cluster: Cluster
    store: Store
    config: DeployConfig
    judge: ServedJudge
    golden: GoldenRows | None
    lease: Lease
    where: str
    timeline: Timeline = field(default_factory=Timeline)
    stable: Body | None = None  # the Service as it was before
    ended: list[Body] = field(default_factory=list)  # manifests of the judge that Recreate has removed
    is_begun: bool = False  # whether there may be something of the new judge
    is_switched: bool = False

    @property
    def revision(self) -> str | None:
        return self.judge.revision

    def carry_out(self) -> Deployed:
        try:
            deployed = self.bring_in()
        except BaseException as error:  # also SystemExit (SIGTERM) and KeyboardInterrupt: nothing unproven stays
            undone = self.undo(stopped=not isinstance(error, ReasonGenRMError))
            self.timeline.say(undone)
            if not isinstance(error, ReasonGenRMError):
                raise
            raise ClusterError(f"{error}\n{undone}") from error
        return self.complete(deployed)

    def bring_in(self) -> Deployed:
        """Up to the switch to the new judge; the one before is still there, unless Recreate ended it."""
        self.stable = self.cluster.get(SERVICE, self.config.namespace, self.config.name)
        if self.stable is not None and not own_labels(self.config.name).items() <= _labels(self.stable).items():
            raise ClusterError(
                f"{self.where}: is there and not ours (labels {_labels(self.stable)}). Delete it, or choose another "
                "deploy.name."
            )
        served, roots = revision_of(self.stable or {}), self.roots()
        if served == self.revision and self.revision in roots:
            self.timeline.say("no change: the same model with the same spec is served")
            return self.prove(changed=False)
        left_over = [root for revision, root in roots.items() if revision not in (served, self.revision)]
        self.remove(self.cluster, left_over, "left by a deployment that was killed")
        if self.config.strategy == "Recreate" and served in roots:
            self.ended = self.manifests_before(roots[served])
            self.remove(self.cluster, [roots[served]], "from now on no judge answers")
        self.is_begun = True
        self.write(self.cluster, self.judge.manifests, _GONE_SECONDS)
        deployed = self.prove(changed=True)
        if not self.lease.is_held():
            raise ClusterError(f"{self.where}: another deployment has taken over before the switch. Deploy again.")
        self.switch()
        return deployed

    def roots(self) -> dict[str | None, Body]:
        """Revision -> the object that owns what belongs to it; those that are being deleted left out."""
        selector = ",".join(f"{key}={value}" for key, value in own_labels(self.config.name).items())
        found: list[Body] = []
        for kind in JUDGES:
            with contextlib.suppress(UnknownKindError):  # then there is none
                found += self.cluster.list(kind, self.config.namespace, labels=selector)
        return {revision_of(root): root for root in found if "deletionTimestamp" not in root["metadata"]}

    def manifests_before(self, root: Body) -> list[Body]:
        """What brings the judge of before back."""
        recorded = served_judge(self.store, self.config.namespace, self.config.name)
        return recorded.manifests if recorded and recorded.revision == revision_of(root) else [manifest_of(root)]

    def write(self, cluster: Cluster, manifests: list[Body], seconds: float) -> None:
        """Create a judge's objects, the first of which owns the others, or adopt what a killed deployment left.

        Args:
            seconds: for an object of the same name, on its way out, to be gone.
        """
        owner: list[Body] = []
        for body in manifests:
            made = self.create(cluster, {**body, "metadata": {**body["metadata"], "ownerReferences": owner}}, seconds)
            owner = owner or [
                {key: made[key] for key in ("apiVersion", "kind")}
                | {key: made["metadata"][key] for key in ("name", "uid")}
            ]

    def create(self, cluster: Cluster, body: Body, seconds: float) -> Body:
        kind, name = Kind.of(body), body["metadata"]["name"]
        deadline = time.monotonic() + seconds
        for there in poll(lambda: cluster.get(kind, self.config.namespace, name), POLL_SECONDS, deadline):
            if there is None:
                try:
                    made = cluster.create(kind, self.config.namespace, body)
                except AlreadyExistsError:  # the answer was lost
                    continue
                self.timeline.say(f"created {kind.kind} {name}")
                return made
            if "deletionTimestamp" not in there["metadata"] and _owners(body) == _owners(there):
                self.timeline.say(f"{kind.kind} {name} of the same revision is there: adopted")
                return there
            if time.monotonic() >= deadline:
                break
        raise ClusterError(
            f"{kind.kind} {self.config.namespace}/{name}: is still being deleted after {seconds:.0f} s. See its "
            "finalizers (kubectl get -o yaml), and deploy again."
        )

    def prove(self, *, changed: bool) -> Deployed:
        """Wait for the pods, then ask them."""
        target, found = Target.of(self.judge.manifests), None
        address = wait_for_rollout(self.cluster, target, self.config.rollout_timeout_seconds, self.timeline)
        if self.golden is None:
            self.timeline.say("no golden judgments: this judge has no evaluation of ours")
        else:
            found = ask_golden(
                self.config.golden_endpoint or address,
                self.golden,
                self.config,
                has_judge=target.has_judge,
                keep_markup=not target.has_judge and leaves_markup(self.cluster, self.config, self.judge.manifests[0]),
            )
            self.timeline.say(f"golden judgments: {found.agreement:.0%} of {len(self.golden.rows)} rows as expected")
        return Deployed(self.judge, changed, found, self.timeline, self.config.min_golden_agreement)

    def switch(self) -> None:
        """Let the Service lead to the new pods, as KServe's own Service of them does, and wait until it does."""
        target = Target.of(self.judge.manifests)
        entry = self.cluster.get(SERVICE, target.namespace, target.entry)
        if entry is None:
            raise ClusterError(f"Service {target.namespace}/{target.entry}: not there, though its pods are ready.")
        ports = [{key: port[key] for key in _PORT_FIELDS if key in port} for port in entry["spec"]["ports"]]
        self.is_switched = True
        self.point(self.cluster, {"selector": entry["spec"]["selector"], "ports": ports}, self.revision)
        self.timeline.say(f"switched: {self.where} leads to {target.entry}")
        self.wait_for_endpoints(entry["spec"]["selector"])

    def point(self, cluster: Cluster, spec: Body, revision: str | None) -> None:
        """Write the Service, unless somebody else points it elsewhere meanwhile."""
        namespace, name = self.config.namespace, self.config.name
        there = cluster.get(SERVICE, namespace, name)
        known = (revision_of(self.stable or {}), self.revision)
        for _ in range(_MAX_WRITES):
            if revision_of(there or {}) not in known:
                raise ClusterError(f"{self.where}: somebody else points it to {revision_of(there or {})} just now.")
            body = there or {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}}
            meta = body["metadata"]
            labels = {**meta.get("labels", {}), **own_labels(name), "app.kubernetes.io/part-of": "reasongenrm"}
            meta = {**meta, "labels": labels, "annotations": {**meta.get("annotations", {}), ROLLOUT: revision}}
            body = {**body, "metadata": meta, "spec": {**body.get("spec", {}), **spec}}
            try:
                if there is None:
                    cluster.create(SERVICE, namespace, body)
                else:
                    cluster.replace(SERVICE, namespace, body)
                return
            except (ConflictError, AlreadyExistsError):
                there = cluster.get(SERVICE, namespace, name)
                if there is not None and revision_of(there) == revision:
                    return  # written, and the answer was lost
        raise ClusterError(
            f"{self.where}: changed {_MAX_WRITES} times while it was to be written. See who writes to it (kubectl get "
            "-o yaml --show-managed-fields), and deploy again."
        )

    def wait_for_endpoints(self, selector: dict[str, str]) -> None:
        labels = ",".join(f"{key}={value}" for key, value in selector.items())
        deadline = time.monotonic() + _ENDPOINT_SECONDS
        for endpoints in poll(self.endpoints, POLL_SECONDS, deadline):
            pods = {pod["metadata"]["name"] for pod in self.cluster.list(POD, self.config.namespace, labels=labels)}
            if endpoints and endpoints <= pods:
                self.timeline.say(f"{len(endpoints)} new endpoints")
                return
            if time.monotonic() >= deadline:
                break
        raise ClusterError(
            f"{self.where}: its endpoints are {', '.join(sorted(endpoints)) or 'none'} {_ENDPOINT_SECONDS:.0f} s after "
            "the switch, not the new pods. Look at kube-controller-manager, which writes the EndpointSlices."
        )

    def endpoints(self) -> set[str]:
        """The pods that the Service leads to."""
        selector = f"kubernetes.io/service-name={self.config.name}"
        slices = self.cluster.list(ENDPOINT_SLICE, self.config.namespace, labels=selector)
        found = [endpoint for part in slices for endpoint in part["endpoints"] or ()]
        return {end["targetRef"]["name"] for end in found if end.get("conditions", {}).get("ready") is not False}

    def record(self, deployed: Deployed) -> Deployed:
        """Write down that it is served, unless that stands there."""
        recorded = served_judge(self.store, self.config.namespace, self.config.name)
        if recorded is not None and recorded.revision == self.revision:
            return Deployed(recorded, deployed.changed, deployed.golden, self.timeline, deployed.min_agreement)
        record_served(self.store, self.judge)
        return deployed

    def complete(self, deployed: Deployed) -> Deployed:
        """Record the new judge, and end the one before once its requests are done; told to stop, at once."""
        cluster, seconds = self.cluster.within(_STOP_SECONDS), self.config.drain_seconds
        try:
            deployed = self.record(deployed)
            if deployed.changed and seconds and len(self.roots()) > 1:
                self.timeline.say(f"{seconds:.0f} s for the requests that the judge before still gets")
                time.sleep(seconds)
            cluster = self.cluster
        finally:
            if self.lease.is_held():
                others = [root for revision, root in self.roots().items() if revision != self.revision]
                self.remove(cluster, others, "it served before")
        return deployed

    def remove(self, cluster: Cluster, roots: Iterable[Body], why: str) -> None:
        for root in roots:
            kind, meta = Kind.of(root), root["metadata"]
            cluster.delete(kind, meta["namespace"], meta["name"], uid=meta["uid"])
            self.timeline.say(f"deleted {kind.kind} {meta['name']}: {why}")

    def undo(self, *, stopped: bool) -> str:
        """Leave the judge of before as it was; returns what was done, in words. A `stopped` process must end: nothing
        is waited for."""
        cluster = self.cluster.within(_STOP_SECONDS) if stopped else self.cluster
        try:
            if not self.lease.is_held():
                return "Another deployment has taken over; nothing was put back."
            was_there = self.put_back(cluster, _STOP_SECONDS if stopped else _GONE_SECONDS)
        except ReasonGenRMError as error:
            return f"PUTTING BACK FAILED: {error} Repair it by hand: {self._repair()}"
        if not self.ended:
            if not was_there:
                return "Nothing was changed."
            if self.stable is None:
                return "There was no judge before; what was created is deleted."
            return "The judge that was served before has answered all the time; the new one is deleted."
        if stopped:
            return "The judge that was served before is back."
        try:
            wait_for_rollout(self.cluster, Target.of(self.ended), self.config.rollout_timeout_seconds, self.timeline)
        except ReasonGenRMError as error:
            return f"The judge that was served before is back. But it is not ready: {error}"
        return "The judge that was served before is back. It is ready again."

    def put_back(self, cluster: Cluster, seconds: float) -> bool:
        """Returns whether there was anything of the new judge."""
        if self.is_switched and self.stable is not None:
            spec = {key: self.stable["spec"][key] for key in ("selector", "ports")}
            self.point(cluster, spec, revision_of(self.stable))
        elif self.is_switched:
            cluster.delete(SERVICE, self.config.namespace, self.config.name)
        root = self.judge.manifests[0]
        there = cluster.get(Kind.of(root), self.config.namespace, root["metadata"]["name"])
        if there is not None and self.is_begun:
            self.remove(cluster, [there], "it has not proven itself")
        if self.ended:
            self.write(cluster, self.ended, seconds)
        return there is not None and self.is_begun

    def _repair(self) -> str:
        root = self.judge.manifests[0]
        delete = f"kubectl delete {Kind.of(root).resource} {root['metadata']['name']} -n {self.config.namespace}"
        if not self.ended:
            return delete
        return f"{delete}; then reasongenrm rollback {self.config.name} --list, and --to the judge that served before."


def _labels(item: Body) -> dict[str, str]:
    found: dict[str, str] = item["metadata"].get("labels", {})
    return found


def _owners(item: Body) -> set[str]:
    return {owner["uid"] for owner in item["metadata"].get("ownerReferences", ())}
