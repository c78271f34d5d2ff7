"""Going back to a judge that was served before: which ones there are, and how.

The store knows every judge that was deployed (`served`). A rollback is a deployment of an old judge's manifests:
started next to the present one, asked, switched to, recorded.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from reasongenrm.config import DeployConfig
from reasongenrm.deploy.change import Deployed, change_served
from reasongenrm.deploy.golden import choose_golden
from reasongenrm.deploy.manifest import revision_of
from reasongenrm.deploy.preflight import check_checkpoint
from reasongenrm.deploy.runtimes import check_runtime
from reasongenrm.errors import InputError
from reasongenrm.kubernetes.cluster import Cluster
from reasongenrm.kubernetes.kinds import SERVICE
from reasongenrm.store.artifacts import Store
from reasongenrm.store.served import ServedJudge, served_history


@dataclass(frozen=True)
class Choice:
    """A judge to go back to."""

    number: int  # 1 is the newest that was ever deployed
    judge: ServedJudge
    is_served: bool  # whether the cluster's Service leads to it now
    is_before: bool  # whether what is served now has replaced it; the newest if nothing is served

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        judge = self.judge
        return {
            "number": self.number,
            "is_served": self.is_served,
            "variant": judge.variant,
            "digest": judge.model.digest,
            "model_uri": judge.model.uri,
            "served_since": judge.served_since,
            "cause": judge.cause,
        }


def choices(cluster: Cluster, store: Store, namespace: str, name: str) -> list[Choice]:
    """Every judge that was served under this name, newest first, each once.

    Raises:
        StoreError: a record cannot be read.
    """
    service = cluster.get(SERVICE, namespace, name)
    served = revision_of(service) if service else None
    found: dict[str, ServedJudge] = {}
    for judge in reversed(served_history(store, namespace, name)):
        found.setdefault(judge.revision, judge)
    before = next((revision for revision in found if revision != served), None)
    return [
        Choice(number, judge, is_served=revision == served, is_before=revision == before)
        for number, (revision, judge) in enumerate(found.items(), start=1)
    ]


def choose(cluster: Cluster, store: Store, namespace: str, name: str, to: str | None) -> Choice:
    """The judge that `to` names: a number of the list, or the beginning of a digest; None: what the present one
    replaced.

    Raises:
        InputError: there is none, or several fit.
    """
    found, where = choices(cluster, store, namespace, name), f"{namespace}/{name}"
    if to is None:
        fitting = [choice for choice in found if choice.is_before]
        if not fitting:
            raise InputError(
                f"{where}: no judge was served before this one; nothing to go back to. To take it away: kubectl delete "
                f"service,inferenceservice -l app.kubernetes.io/name={name} -n {namespace}"
            )
        return fitting[0]
    digits = to.removeprefix("sha256:")
    fitting = [choice for choice in found if str(choice.number) == to]
    if len(digits) >= 6:
        fitting += [choice for choice in found if choice.judge.model.digest.removeprefix("sha256:").startswith(digits)]
    if len(fitting) != 1:
        raise InputError(
            f"{where}: {len(fitting)} judges fit --to {to}; expected one. `reasongenrm rollback --list` shows them: "
            "give a number, or six digits of a digest at least."
        )
    return fitting[0]


def roll_back(cluster: Cluster, store: Store, config: DeployConfig, choice: Choice) -> Deployed:
    """Serve the chosen judge again, prove it, and record it.

    Args:
        config: name, namespace, strategy, time limits and golden settings are used.

    Raises:
        StoreError: its checkpoint is not whole any more.
        ConfigError, ClusterError: as `check_runtime` and `change_served`; what was served before is served.
    """
    judge, golden = choice.judge, None
    check_checkpoint(judge.manifests[0], judge.model)
    check_runtime(cluster, config, judge.manifests[0], judge.model)
    if judge.evaluation is not None:
        golden = choose_golden(judge.evaluation, judge.variant, config)
    since = datetime.now(UTC).isoformat(timespec="milliseconds")
    again = judge.model_copy(update={"served_since": since, "cause": "rollback"})
    return change_served(cluster, store, config, again, golden)
