"""deploy_kserve: renders the winner's InferenceService and, with `deploy.apply`, deploys it.

In go the decision of the gate and the models it chose from; out comes `inferenceservice.yaml`, and with `deploy.apply`
a judge that serves and is recorded in the store.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import yaml

from reasongenrm.config import DeployConfig
from reasongenrm.deploy.change import Body, Deployed, change_served
from reasongenrm.deploy.golden import choose_golden
from reasongenrm.deploy.llm import render_llm
from reasongenrm.deploy.manifest import FILE_NAME, ROLLOUT, render_inference_service
from reasongenrm.deploy.model_registry import registration
from reasongenrm.deploy.preflight import check_checkpoint
from reasongenrm.deploy.runtimes import check_runtime
from reasongenrm.errors import InputError
from reasongenrm.kubernetes.cluster import Cluster
from reasongenrm.store.artifacts import ArtifactRef, Store, open_artifact
from reasongenrm.store.served import ServedJudge
from reasongenrm.store.stage import Stage


def deploy_kserve(
    store: Store, config: DeployConfig, decision: ArtifactRef, models: Mapping[str, ArtifactRef]
) -> ArtifactRef:
    """Stage: render the InferenceService of the winner and, with `config.apply`, deploy it.

    Args:
        decision: of select_winner; `metrics["winner"]` names the variant, `metrics["passed"]` says whether to deploy
            it.
        models: variant -> checkpoint; holds the winner.

    Returns:
        The artifact with `inferenceservice.yaml` and, if it was applied, golden.jsonl, golden.json and rollout.json,
        with a model registry registration.json; metrics: variant, model_uri, and changed, golden_agreement, seconds,
        registered. An artifact that is found again was checked again: a finished stage says nothing about what a
        cluster serves now.

    Raises:
        InputError: the gate did not pass, or there is no model of the winner.
        ConfigError: see `render_inference_service`.
        StoreError: the checkpoint is not whole.
        ClusterError: the new judge did not start or did not judge as expected; what was served before is served.
    """
    winner = str(decision.metrics["winner"])
    if not decision.metrics["passed"]:
        raise InputError(
            f"deploy_kserve: the gate did not pass ({decision.uri}); expected a decision that did. "
            "Read its decision.md; nothing is deployed."
        )
    if winner not in models:
        raise InputError(
            f"deploy_kserve: the winner is '{winner}', but only these models are here: {', '.join(sorted(models))}. "
            "Hand over the winner's model."
        )
    model = models[winner]
    manifests = render(config, model, decision)
    extra: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    metrics: dict[str, Any] = {"variant": winner, "model_uri": model.uri}
    if config.apply:
        deployed = deploy(Cluster.connect(), store, config, manifests, model, decision)
        manifests, files, metrics = deployed.judge.manifests, deployed.files(), metrics | deployed.metrics()
        extra = {"served_since": deployed.judge.served_since}
    if config.model_registry is not None:
        registered = registration(config, model, decision)
        files["registration.json"] = json.dumps(registered, indent=2).encode() + b"\n"
        # Part of the key, too: a registration that is made up for later is another artifact.
        extra["registered"] = metrics["registered"] = registered["registered"]
    with Stage(store, "deploy_kserve", config, {"decision": decision, "model": model}, extra) as stage:
        if stage.done:
            return stage.done
        text = yaml.safe_dump_all(manifests, sort_keys=False)
        stage.add_bytes(FILE_NAME, f"# The judge '{winner}': kubectl apply -f {FILE_NAME}\n{text}".encode())
        for name, data in files.items():
            stage.add_bytes(name, data)
        return stage.finish({"num_in": 1, "num_out": 1}, metrics)


def render(config: DeployConfig, model: ArtifactRef, decision: ArtifactRef) -> list[Body]:
    """The objects of `config.target`; the first owns the others."""
    if config.target == "llminferenceservice":
        return render_llm(config, model, decision)
    return [render_inference_service(config, model, decision)]


def deploy(
    cluster: Cluster,
    store: Store,
    config: DeployConfig,
    manifests: list[Body],
    model: ArtifactRef,
    decision: ArtifactRef,
) -> Deployed:
    """Deploy the winner of a decision and record it as served.

    Raises:
        InputError: there is nothing to ask the new pods (see `choose_golden`).
        StoreError: see `check_checkpoint`.
        ClusterError: see `check_runtime` and `change_served`.
    """
    variant = str(decision.metrics["winner"])
    evaluation = open_artifact(open_artifact(decision).input_uris[f"evaluation_{variant}"]).ref()
    golden = choose_golden(evaluation, variant, config)
    check_checkpoint(manifests[0], model)
    check_runtime(cluster, config, manifests[0], model)
    judge = ServedJudge(
        namespace=config.namespace,
        name=config.name,
        variant=variant,
        model=model,
        decision=decision,
        evaluation=evaluation,
        revision=manifests[0]["metadata"]["annotations"][ROLLOUT],
        manifests=manifests,
        served_since=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    return change_served(cluster, store, config, judge, golden)
