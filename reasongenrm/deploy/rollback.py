"""Going back to a judge that was served before: which ones there are, and how.

The store knows every judge that was deployed (`served`), and what a deployment found in its place (`replaced`), which
may be a judge that somebody put there by hand. A rollback is a deployment of an old manifest: waited for, asked,
recorded.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from reasongenrm.config import DeployConfig
from reasongenrm.deploy.change import Deployed, change_served
from reasongenrm.deploy.golden import choose_golden
from reasongenrm.deploy.manifest import DIGEST, OWN, revision_of
from reasongenrm.deploy.replaced import load_replaced, manifest_of
from reasongenrm.deploy.runtimes import check_runtime
from reasongenrm.errors import ClusterError, InputError
from reasongenrm.kubernetes.cluster import Cluster
from reasongenrm.kubernetes.kinds import INFERENCE_SERVICE
from reasongenrm.store.artifacts import Store
from reasongenrm.store.served import ServedJudge, forget_served, record_served, served_history


@dataclass(frozen=True)
class Choice:
    """A judge to go back to."""

    number: int  # 1 is the newest that was ever deployed
    manifest: dict[str, Any]
    judge: ServedJudge | None  # its record; None for a judge that was put there by hand
    is_served: bool  # whether the cluster has its manifest now
    is_before: bool  # whether what is served now has replaced it; the newest if nothing is served

    @property
    def digest(self) -> str:
        """Of its checkpoint; empty for a judge of unknown origin."""
        found: str = self.manifest["metadata"].get("annotations", {}).get(DIGEST, "")
        return found

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        judge = self.judge
        return {
            "number": self.number,
            "is_served": self.is_served,
            "variant": judge.variant if judge else None,
            "digest": self.digest or None,
            "model_uri": self.manifest["spec"]["predictor"].get("model", {}).get("storageUri"),
            "served_since": judge.served_since if judge else None,
            "cause": judge.cause if judge else "by hand",
        }


def choices(cluster: Cluster, store: Store, namespace: str, name: str) -> list[Choice]:
    """Every judge that was served under this name, newest first, each manifest once; by hand is what ours replaced.

    Raises:
        StoreError: a record cannot be read.
    """
    there = cluster.get(INFERENCE_SERVICE, namespace, name)
    before = load_replaced(there) if there else None
    found: dict[str | None, tuple[dict[str, Any], ServedJudge | None]] = {}
    for judge in reversed(served_history(store, namespace, name)):
        found.setdefault(revision_of(judge.manifest), (judge.manifest, judge))
    if before is not None and revision_of(before) is None:
        found[None] = (before, None)
    replaced = revision_of(before) if before else next(iter(found), "")
    return [
        Choice(
            number,
            manifest,
            judge,
            is_served=there is not None and revision_of(there) == revision,
            is_before=revision == replaced and (there is None or before is not None),
        )
        for number, (revision, (manifest, judge)) in enumerate(found.items(), start=1)
    ]


def choose(cluster: Cluster, store: Store, namespace: str, name: str, to: str | None) -> Choice:
    """The judge that `to` names: a number of the list, or the beginning of a digest; None: what the present one
    replaced.

    Raises:
        InputError: there is none, several fit, or it is the one that is served.
    """
    found, where = choices(cluster, store, namespace, name), f"{namespace}/{name}"
    if to is None:
        fitting = [choice for choice in found if choice.is_before]
        if not fitting:
            raise InputError(
                f"{where}: no judge was served before this one; nothing to go back to. Name one with --to, or take it "
                f"away: kubectl delete inferenceservice {name} -n {namespace}"
            )
        return fitting[0]
    digits = to.removeprefix("sha256:")
    fitting = [choice for choice in found if str(choice.number) == to]
    if len(digits) >= 6:
        fitting += [choice for choice in found if choice.digest.removeprefix("sha256:").startswith(digits)]
    if len(fitting) != 1:
        raise InputError(
            f"{where}: {len(fitting)} judges fit --to {to}; expected one. `reasongenrm rollback --list` shows them: "
            "give a number, or six digits of a digest at least."
        )
    return fitting[0]


def roll_back(cluster: Cluster, store: Store, config: DeployConfig, choice: Choice) -> Deployed:
    """Serve the chosen judge again, prove it, and record it.

    Args:
        config: name, namespace, time limits and golden settings are used.

    Raises:
        ConfigError, ClusterError: as `check_runtime` and `change_served`; what was served before is back.
    """
    if choice.is_served and choice.judge is None:
        raise ClusterError(f"{config.namespace}/{config.name}: this judge is served already.")
    judge = choice.judge
    golden = None
    if judge is not None:
        check_runtime(cluster, config, choice.manifest, judge.model)
    if judge is not None and judge.evaluation is not None:
        golden = choose_golden(judge.evaluation, judge.variant, config)
    deployed = change_served(cluster, store, config, _bare(choice.manifest), golden)
    if judge is None:
        forget_served(store, config.namespace, config.name)
        return deployed
    if deployed.changed:
        since = datetime.now(UTC).isoformat(timespec="milliseconds")
        again = judge.model_copy(update={"manifest": deployed.manifest, "served_since": since, "cause": "rollback"})
        record_served(store, again)
    return deployed


def _bare(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest without the note of what it replaced then."""
    bare = manifest_of(manifest)
    for part in (bare["metadata"], bare["spec"]["predictor"]):
        part.get("annotations", {}).pop(f"{OWN}replaced", None)
    return bare
