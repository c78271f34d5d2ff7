"""One change of what an InferenceService serves: compare, save, write, wait, ask; undo it all on failure.

In go a manifest and golden rows; out comes a judge that has proven itself, or an error and the cluster as it was.
`deploy` and `rollback` use it.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from reasongenrm.config import DeployConfig
from reasongenrm.deploy.golden import Golden, GoldenRows, ask_golden
from reasongenrm.deploy.manifest import revision_of
from reasongenrm.deploy.replaced import load_replaced, manifest_of, over, save_replaced, versioned, with_replaced
from reasongenrm.deploy.rollout import Target, Timeline, wait_for_rollout
from reasongenrm.deploy.runtimes import has_reasoning_parser, runtime_of
from reasongenrm.errors import ClusterError, ReasonGenRMError
from reasongenrm.kubernetes.cluster import AlreadyExistsError, Cluster, ConflictError
from reasongenrm.kubernetes.kinds import DEPLOYMENT, INFERENCE_SERVICE, SERVING_RUNTIME
from reasongenrm.store.artifacts import Store
from reasongenrm.store.served import served_judge

_MAX_WRITES = 8  # KServe updates the status all the time: each update makes what was read stale
_STOP_SECONDS = 10.0  # a pod that is stopped has 30 s to end

Service = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Deployed:
    """A judge that serves."""

    manifest: Service
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
    cluster: Cluster, store: Store, config: DeployConfig, manifest: Service, golden: GoldenRows | None
) -> Deployed:
    """Make the cluster serve this manifest, and prove it.

    The same model with the same spec is no change: nothing is written, but its pods are still checked and asked.

    Args:
        manifest: as rendered, or as it was served before.
        golden: what the new pods are asked; None: only their rollout is waited for.

    Raises:
        ClusterError: the cluster refuses it, or the new judge did not start or did not agree; says what is served now.
    """
    before = cluster.get(INFERENCE_SERVICE, config.namespace, config.name)
    change = _Change(cluster, store, config, manifest, golden, before)
    try:
        return change.carry_out()
    except BaseException as error:  # also SystemExit (SIGTERM) and KeyboardInterrupt: nothing unproven stays
        undone = change.undo(stopped=not isinstance(error, ReasonGenRMError))
        change.timeline.say(undone)
        if not isinstance(error, ReasonGenRMError):
            raise
        raise ClusterError(f"{error}\n{undone}") from error


@dataclass
class _Change:
    """One attempt to serve a manifest: what there was before, and how to undo it."""

    cluster: Cluster
    store: Store
    config: DeployConfig
    manifest: Service
    golden: GoldenRows | None
    before: Service | None
    timeline: Timeline = field(default_factory=Timeline)
    saved_uri: str | None = None
    is_ours: bool = True  # whether a failure is ours to undo

    @property
    def revision(self) -> str | None:
        return revision_of(self.manifest)

    def planned(self, existing: Service) -> Service:
        """The manifest as it is written over `existing`; another name of the predictor would end the old pods at
        once."""
        planned = copy.deepcopy(self.manifest)
        if name := existing["spec"]["predictor"].get("name"):
            planned["spec"]["predictor"].setdefault("name", name)
        return planned

    def carry_out(self) -> Deployed:
        if self.before is not None and _holds(manifest_of(self.before), self.manifest):
            return self.check_again(self.before)
        return self.prove(self.write_repeatedly(self.cluster, self.write), changed=True)

    def check_again(self, there: Service) -> Deployed:
        """The manifest is there already: nothing is written."""
        served = served_judge(self.store, self.config.namespace, self.config.name)
        proven = served is not None and revision_of(served.manifest) == self.revision
        self.timeline.say(f"no change: the same model with the same spec is there{'' if proven else ', yet unproven'}")
        # A killed deployment left it: what it replaced is in the annotation. Without one nothing is ours to undo.
        self.before = None if proven else load_replaced(there)
        self.is_ours = self.before is not None
        return self.prove(there, changed=False)

    def prove(self, service: Service, *, changed: bool) -> Deployed:
        """Wait for the pods, then ask them."""
        target, found = Target.of(service), None
        address = wait_for_rollout(self.cluster, target, self.config.rollout_timeout_seconds, self.timeline)
        self.report_left_over(target)
        if self.golden is None:
            self.timeline.say("no golden judgments: this judge has no evaluation of ours")
        else:
            runtime = self.cluster.get(SERVING_RUNTIME, target.namespace, runtime_of(self.manifest))
            found = ask_golden(
                self.config.golden_endpoint or address,
                self.golden,
                self.config,
                has_judge=target.has_transformer,
                keep_markup=self.config.server == "vllm" and not has_reasoning_parser(runtime),
            )
            self.timeline.say(f"golden judgments: {found.agreement:.0%} of {len(self.golden.rows)} rows as expected")
        return Deployed(manifest_of(service), changed, found, self.timeline, self.config.min_golden_agreement)

    def report_left_over(self, target: Target) -> None:
        """KServe never deletes the transformer of a spec that had one before (seen with KServe aaac4e294)."""
        if target.has_transformer or self.cluster.get(DEPLOYMENT, target.namespace, target.transformer) is None:
            return
        self.timeline.say(
            f"KServe leaves Deployment {target.transformer} of the manifest before running, and nothing needs it: "
            f"kubectl delete -n {target.namespace} deployment,service,hpa {target.transformer} --ignore-not-found"
        )

    def write_repeatedly(self, cluster: Cluster, write: Callable[[Cluster, Service | None], T]) -> T:
        """Read the object and write it; a state that changed in between is read again."""
        for _ in range(_MAX_WRITES):
            try:
                return write(cluster, cluster.get(INFERENCE_SERVICE, self.config.namespace, self.config.name))
            except (ConflictError, AlreadyExistsError):
                continue
        raise ClusterError(
            f"InferenceService {self.config.namespace}/{self.config.name}: changed {_MAX_WRITES} times while it was to "
            "be written. See who writes to it (kubectl get -o yaml --show-managed-fields), and deploy again."
        )

    def write(self, cluster: Cluster, existing: Service | None) -> Service:
        """Create the object, or replace the one that is there, which is saved first."""
        if existing is None:
            self.before = None
            written = cluster.create(INFERENCE_SERVICE, self.config.namespace, self.manifest)
            self.timeline.say("created")
            return written
        before = revision_of(self.before or {})
        if revision_of(existing) == self.revision != before:
            self.timeline.say("written; the answer was lost")
            return existing
        if revision_of(existing) != before:
            raise ClusterError(
                f"InferenceService {self.config.namespace}/{self.config.name}: somebody else changed it just now "
                f"(rollout revision {revision_of(existing)}). Let one deployment end before the next."
            )
        if self.saved_uri is None:
            self.before = existing
            self.saved_uri = save_replaced(self.store, existing)
        body = over(existing, with_replaced(self.planned(existing), self.before or existing, self.saved_uri))
        written = cluster.replace(INFERENCE_SERVICE, self.config.namespace, body)
        self.timeline.say("replaced")
        return written

    def undo(self, *, stopped: bool) -> str:
        """Put back what was there; returns what was done, in words. A `stopped` process must end: nothing is waited
        for."""
        if not self.is_ours:
            return "Nothing was changed by this deployment, and nothing was put back."
        cluster = self.cluster.within(_STOP_SECONDS) if stopped else self.cluster
        try:
            done = self.write_repeatedly(cluster, self.restore)
        except ReasonGenRMError as error:
            return f"PUTTING BACK FAILED: {error} Repair it by hand: {self._repair()}"
        if self.before is None or stopped or not done.endswith("is back."):
            return done
        try:
            wait_for_rollout(self.cluster, Target.of(self.before), self.config.rollout_timeout_seconds, self.timeline)
        except ReasonGenRMError as error:
            return f"{done} But it is not ready: {error}"
        return f"{done} It is ready again."

    def restore(self, cluster: Cluster, current: Service | None) -> str:
        """Put back what was there, unless it is there or somebody else wrote something; says which."""
        if (current and manifest_of(current)) == (self.before and manifest_of(self.before)):
            return "Nothing was changed."
        if current is not None and revision_of(current) != self.revision:
            return "Somebody else changed the InferenceService meanwhile; it was left as it is."
        if self.before is None:
            assert current is not None
            cluster.delete(INFERENCE_SERVICE, self.config.namespace, self.config.name, uid=current["metadata"]["uid"])
            return "There was no judge before; what was created is deleted."
        body = manifest_of(self.before)
        if current is None:
            cluster.create(INFERENCE_SERVICE, self.config.namespace, body)
        else:
            cluster.replace(INFERENCE_SERVICE, self.config.namespace, versioned(current, body))
        return "The judge that was served before is back."

    def _repair(self) -> str:
        if self.before is None:
            return f"kubectl delete inferenceservice {self.config.name} -n {self.config.namespace}"
        return f"aws s3 cp {self.saved_uri} - | kubectl replace -f -"


def _holds(present: Any, asked: Any) -> bool:
    """Whether everything that we render is there; what KServe and others add does not count.

    Nor do our annotations and labels, except the rollout revision: another decision for the same model is no reason for
    new pods.
    """
    rendered = copy.deepcopy(asked)
    revision = revision_of(rendered)
    for part in (rendered["metadata"], rendered["spec"]["predictor"]):
        part.pop("annotations", None)
        part.pop("labels", None)
    return revision is not None and revision == revision_of(present) and _is_within(rendered, present)


def _is_within(asked: Any, present: Any) -> bool:
    if isinstance(asked, dict) and isinstance(present, dict):
        return all(key in present and _is_within(value, present[key]) for key, value in asked.items())
    if isinstance(asked, list) and isinstance(present, list):
        return len(asked) == len(present) and all(map(_is_within, asked, present))
    return bool(asked == present)
