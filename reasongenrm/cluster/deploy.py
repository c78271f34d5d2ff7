"""Deploy the winner of a decision: what the pipeline's last stage does in a cluster.

In go the rendered manifest, the model and the decision; out comes a judge that serves and is recorded in the store.
"""

from dataclasses import replace
from datetime import UTC, datetime

from reasongenrm.cluster.change import Deployed, Service, bring_out
from reasongenrm.cluster.client import Cluster
from reasongenrm.cluster.golden import choose_golden
from reasongenrm.cluster.kinds import SERVING_RUNTIME
from reasongenrm.cluster.rollout import Pace
from reasongenrm.config import DeployConfig
from reasongenrm.errors import ClusterError
from reasongenrm.served import ServedJudge, record_served, served_judge
from reasongenrm.serving import MODEL_FORMAT, mark_of
from reasongenrm.store import ArtifactRef, Store, open_artifact


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
        ClusterError: see `bring_out`.
    """
    variant = str(decision.metrics["winner"])
    evaluation = open_artifact(open_artifact(decision).input_uris[f"evaluation_{variant}"]).ref()
    golden = choose_golden(evaluation, variant, config)
    _check_runtime(cluster, config)
    deployed = bring_out(cluster, store, config, manifest, golden, pace)
    served = served_judge(store, config.namespace, config.name)
    if not deployed.is_canary and (served is None or mark_of(served.manifest) != mark_of(deployed.manifest)):
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
    since = f"canary/{mark_of(manifest)}" if deployed.is_canary or served is None else served.served_since
    return replace(deployed, served_since=since)


def _check_runtime(cluster: Cluster, config: DeployConfig) -> None:
    """KServe accepts an InferenceService whose runtime is missing, and then waits for it for ever."""
    runtime = cluster.get(SERVING_RUNTIME, config.namespace, config.runtime)
    where = f"ServingRuntime {config.namespace}/{config.runtime}"
    if runtime is None:
        found = [item["metadata"]["name"] for item in cluster.list(SERVING_RUNTIME, config.namespace)]
        raise ClusterError(
            f"{where}: not there (found: {', '.join(found) or 'none'}). Apply manifests/serving, or set deploy.runtime."
        )
    spec = runtime["spec"]
    formats = [entry["name"] for entry in spec.get("supportedModelFormats", ())]
    if spec.get("disabled"):
        raise ClusterError(f"{where}: is disabled. Set its spec.disabled to false, or deploy.runtime to another one.")
    if MODEL_FORMAT not in formats:
        raise ClusterError(
            f"{where}: serves {', '.join(formats) or 'nothing'}, not {MODEL_FORMAT}. Set deploy.runtime to one that does."
        )
