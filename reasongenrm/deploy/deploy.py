"""Deploys the winner of a decision: what the pipeline's last stage does in a cluster.

In go the rendered manifest, the model and the decision; out comes a judge that serves and is recorded in the store.
"""

from dataclasses import replace
from datetime import UTC, datetime

from reasongenrm.config import DeployConfig
from reasongenrm.deploy.change import Deployed, Service, bring_out
from reasongenrm.deploy.golden import choose_golden
from reasongenrm.deploy.manifest import revision_of
from reasongenrm.deploy.rollout import Pace
from reasongenrm.deploy.runtimes import check_runtime
from reasongenrm.kubernetes.cluster import Cluster
from reasongenrm.store.artifacts import ArtifactRef, Store, open_artifact
from reasongenrm.store.served import ServedJudge, record_served, served_judge


def deploy(
    cluster: Cluster,
    store: Store,
    config: DeployConfig,
    manifest: Service,
    model: ArtifactRef,
    decision: ArtifactRef,
    pace: Pace = Pace(),  # noqa: B008 - frozen
) -> Deployed:
    """Deploy the winner of a decision and record it as served.

    Raises:
        InputError: there is nothing to ask the new pods (see `choose_golden`).
        ConfigError: KServe's webhook would refuse the change.
        ClusterError: see `check_runtime` and `bring_out`.
    """
    variant = str(decision.metrics["winner"])
    evaluation = open_artifact(open_artifact(decision).input_uris[f"evaluation_{variant}"]).ref()
    golden = choose_golden(evaluation, variant, config)
    check_runtime(cluster, config, manifest, model)
    deployed = bring_out(cluster, store, config, manifest, golden, pace)
    served = served_judge(store, config.namespace, config.name)
    if served is None or revision_of(served.manifest) != revision_of(deployed.manifest):
        served = ServedJudge(
            namespace=config.namespace,
            name=config.name,
            variant=variant,
            model=model,
            decision=decision,
            evaluation=evaluation,
            manifest=deployed.manifest,
            served_since=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        record_served(store, served)
    return replace(deployed, served_since=served.served_since)
