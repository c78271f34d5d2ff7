"""One change of what an InferenceService serves: compare, save, write, wait, ask; undo it all on failure.

In go a manifest and golden rows; out comes a judge that has proven itself, or an error and the cluster as it was.
`deploy` and `rollback` use it.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reasongenrm.config import DeployConfig
from reasongenrm.deploy.golden import Golden, GoldenRows, ask_golden
from reasongenrm.deploy.manifest import revision_of
from reasongenrm.deploy.preflight import check_admission
from reasongenrm.deploy.replaced import load_replaced, over, plain, save_replaced, versioned, with_replaced
from reasongenrm.deploy.rollout import Pace, Target, Timeline, wait_for_rollout
from reasongenrm.deploy.runtimes import has_reasoning_parser, runtime_of
from reasongenrm.deploy.transformer import JUDGE_KEY, PREDICTOR_KEY, has_transformer
from reasongenrm.errors import ClusterError, ReasonGenRMError
from reasongenrm.kubernetes.cluster import AlreadyExistsError, Cluster, ConflictError
from reasongenrm.kubernetes.kinds import DEPLOYMENT, INFERENCE_SERVICE, SERVING_RUNTIME
from reasongenrm.store.artifacts import Store
from reasongenrm.store.served import served_judge

_MAX_WRITES = 8  # KServe updates the status all the time: each update makes what was read stale
_STOP_SECONDS = 10.0  # a pod that is stopped has 30 s to end

Service = dict[str, Any]


@dataclass(frozen=True)
class Deployed:
    """A judge that serves."""

    manifest: Service
    changed: bool
    golden: Golden | None
    timeline: Timeline
    min_agreement: float
    served_since: str = ""

    def files(self) -> dict[str, bytes]:
        """What the stage's artifact keeps: rollout.json, golden.json and golden.jsonl."""
        rollout = json.dumps({"changed": self.changed, "timeline": self.timeline.entries}, indent=2).encode() + b"\n"
        return {"rollout.json": rollout, **(self.golden.files(self.min_agreement) if self.golden else {})}

    def metrics(self) -> dict[str, Any]:
        """`changed`, `golden_agreement` in [0, 1], and `seconds` in all."""
        agreement = {"golden_agreement": self.golden.agreement} if self.golden else {}
        return {"changed": self.changed, "seconds": self.timeline.seconds, **agreement}


def bring_out(
    cluster: Cluster,
    store: Store,
    config: DeployConfig,
    manifest: Service,
    golden: GoldenRows | None,
    pace: Pace = Pace(),  # noqa: B008 - frozen
) -> Deployed:
    """Make the cluster serve this manifest, and prove it.

    The same model with the same spec is no change: nothing is written, the pods are looked at and asked all the same.

    Args:
        manifest: as rendered, or as it was served before.
        golden: what the new pods are asked; None: only their rollout is waited for.

    Raises:
        ConfigError: KServe's webhook would refuse it; nothing was written.
        ClusterError: the new judge did not start or did not agree; says what is served now.
    """
    existing = cluster.get(INFERENCE_SERVICE, config.namespace, config.name)
    change = _Change(cluster, store, config, manifest, golden, pace, existing)
    check_admission(change.planned(existing), existing)
    try:
        return change.carry_out()
    except BaseException as error:  # also SystemExit (SIGTERM) and KeyboardInterrupt: the way back must be gone
        undone = change.undo(stopped=not isinstance(error, ReasonGenRMError))
        if not isinstance(error, ReasonGenRMError):
            raise
        raise ClusterError(f"{error}\n{undone}") from error


@dataclass
class _Change:
    """One attempt to serve a manifest: what there was before, and the way back."""

    cluster: Cluster
    store: Store
    config: DeployConfig
    manifest: Service
    golden: GoldenRows | None
    pace: Pace
    before: Service | None
    timeline: Timeline = field(default_factory=Timeline)
    saved_uri: str | None = None
    is_ours: bool = True  # whether a failure is ours to undo

    @property
    def revision(self) -> str | None:
        return revision_of(self.manifest)

    def target(self, service: Mapping[str, Any]) -> Target:
        name = service["spec"]["predictor"].get("name", "")
        revision, transformed = revision_of(service), has_transformer(service)
        return Target(self.config.namespace, self.config.name, revision, name, has_transformer=transformed)

    def planned(self, existing: Service | None) -> Service:
        """The manifest as it would be written over `existing`; a change of the predictor's name would end the old pods at once."""
        planned = copy.deepcopy(self.manifest)
        name = existing["spec"]["predictor"].get("name") if existing else None
        if name:
            planned["spec"]["predictor"].setdefault("name", name)
        return planned

    def noted(self, existing: Service) -> Service:
        """The manifest with a note of what it replaces, which is saved first."""
        if self.saved_uri is None:
            self.before = existing
            self.saved_uri = save_replaced(self.store, existing)
        return with_replaced(self.planned(existing), self.before or existing, self.saved_uri)

    def carry_out(self) -> Deployed:
        if self.before is not None and _holds(plain(self.before), self.manifest):
            return self.look_again()
        written = self.write()
        self.prove(self.target(written))
        return self.deployed(written, changed=True)

    def look_again(self) -> Deployed:
        """The manifest is there already: nothing is written."""
        assert self.before is not None
        there = self.before
        served = served_judge(self.store, self.config.namespace, self.config.name)
        proven = served is not None and revision_of(served.manifest) == self.revision
        self.timeline.say(
            "no change: the same model with the same spec is there" + ("" if proven else ", yet unproven")
        )
        # A killed deployment left it: its own way back is in the annotation. Without one nothing is ours to undo.
        self.before = None if proven else load_replaced(there)
        self.is_ours = self.before is not None
        self.prove(self.target(there))
        return self.deployed(there, changed=False)

    def deployed(self, service: Service, *, changed: bool) -> Deployed:
        found = self.found if self.golden else None
        return Deployed(plain(service), changed, found, self.timeline, self.config.min_golden_agreement)

    def prove(self, target: Target) -> None:
        """Wait for the pods, then ask them."""
        address = wait_for_rollout(self.cluster, target, self.config.rollout_timeout_seconds, self.timeline, self.pace)
        self.tell_of_left_over(target)
        if self.golden is None:
            self.timeline.say("no golden judgments: this judge has no evaluation of ours")
            return
        runtime = self.cluster.get(SERVING_RUNTIME, self.config.namespace, runtime_of(self.manifest))
        self.found = ask_golden(
            self.config.golden_endpoint or address,
            self.golden,
            self.config,
            key_variable=JUDGE_KEY if target.has_transformer else PREDICTOR_KEY,
            keep_markup=self.config.server == "vllm" and not has_reasoning_parser(runtime),
        )
        self.timeline.say(f"golden judgments: {self.found.agreement:.0%} of {len(self.golden.rows)} rows as expected")

    def tell_of_left_over(self, target: Target) -> None:
        """KServe never deletes the transformer of a spec that had one before (seen with KServe aaac4e294)."""
        if target.has_transformer or self.cluster.get(DEPLOYMENT, target.namespace, target.transformer) is None:
            return
        self.timeline.say(
            f"KServe leaves Deployment {target.transformer} of the manifest before running, and nobody needs it: kubectl "
            f"delete -n {target.namespace} deployment,service,hpa {target.transformer} --ignore-not-found"
        )

    def write(self) -> Service:
        """Create the object, or replace the one that is there; a state that changed in between is read again."""
        for _ in range(_MAX_WRITES):
            existing = self.cluster.get(INFERENCE_SERVICE, self.config.namespace, self.config.name)
            try:
                if existing is None:
                    self.before = None
                    self.timeline.say("created")
                    return self.cluster.create(INFERENCE_SERVICE, self.config.namespace, self.manifest)
                if revision_of(existing) != revision_of(self.before or {}):
                    raise ClusterError(
                        f"InferenceService {self.config.namespace}/{self.config.name}: somebody else changed it just now "
                        f"(revision {revision_of(existing)}). Let one deployment end before the next."
                    )
                body = over(existing, self.noted(existing))
                check_admission(body, existing)
                written = self.cluster.replace(INFERENCE_SERVICE, self.config.namespace, body)
            except (ConflictError, AlreadyExistsError):
                continue
            self.timeline.say("replaced")
            return written
        raise ClusterError(
            f"InferenceService {self.config.namespace}/{self.config.name}: changed {_MAX_WRITES} times while it was to be "
            "written. See who writes to it (kubectl get -o yaml --show-managed-fields), and deploy again."
        )

    def undo(self, *, stopped: bool) -> str:
        """Put back what was there; returns what was done, in words.

        Args:
            stopped: the process is to end: nothing is waited for.
        """
        done = self._undo(stopped)
        self.timeline.say(done)
        return done

    def _undo(self, stopped: bool) -> str:
        if not self.is_ours:
            return "Nothing was changed by this deployment, and nothing was put back."
        cluster = self.cluster.within(_STOP_SECONDS) if stopped else self.cluster
        try:
            done = self._restore(cluster)
        except ReasonGenRMError as error:
            return f"PUTTING BACK FAILED: {error} Repair it by hand: {self._repair()}"
        if self.before is None or stopped or done.startswith("Nothing"):
            return done
        try:
            wait_for_rollout(
                self.cluster, self.target(self.before), self.config.rollout_timeout_seconds, self.timeline, self.pace
            )
        except ReasonGenRMError as error:
            return f"{done} But it is not ready: {error}"
        return f"{done} It is ready again."

    def _restore(self, cluster: Cluster) -> str:
        where = (self.config.namespace, self.config.name)
        for _ in range(_MAX_WRITES):
            current = cluster.get(INFERENCE_SERVICE, *where)
            if self._is_as_before(current):
                return "Nothing was changed."
            if current is not None and not self._is_of_this_change(current):
                return "Somebody else changed the InferenceService meanwhile; it was left as it is."
            try:
                if self.before is None:
                    assert current is not None
                    cluster.delete(INFERENCE_SERVICE, *where, uid=current["metadata"]["uid"])
                    return "There was no judge before; what was created is deleted."
                body = plain(self.before)
                if current is None:
                    cluster.create(INFERENCE_SERVICE, self.config.namespace, body)
                else:
                    cluster.replace(INFERENCE_SERVICE, self.config.namespace, versioned(current, body))
            except (ConflictError, AlreadyExistsError):
                continue
            return "The judge that was served before is back."
        raise ClusterError(f"it changed {_MAX_WRITES} times while it was to be put back.")

    def _is_as_before(self, current: Service | None) -> bool:
        if current is None or self.before is None:
            return current is None and self.before is None
        return plain(current) == plain(self.before)

    def _is_of_this_change(self, current: Service) -> bool:
        return self.revision == revision_of(current)

    def _repair(self) -> str:
        if self.before is None:
            return f"kubectl delete inferenceservice {self.config.name} -n {self.config.namespace}"
        return f"aws s3 cp {self.saved_uri} - | kubectl replace -f -"


def _holds(present: Any, asked: Any) -> bool:
    """Whether everything that we render is there; what KServe and others add to it does not count.

    Our own annotations and labels do not count either, except the revision: another decision or version for the same
    model and spec is no reason for new pods.
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
