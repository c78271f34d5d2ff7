"""What a store holds: its models, each with what it was trained from, how well it judges, and where it is served."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from reasongenrm.store.artifacts import Manifest
from reasongenrm.store.served import ServedJudge
from reasongenrm.variants import BASE

MODEL_STAGES = ("import_model", "train_sft", "train_dpo")


@dataclass(frozen=True)
class StoredModel:
    """One model of a store.

    Attributes:
        variant: of `VARIANTS`.
        base: where the model that all training started from came from: its folder, file or name on the hub.
        base_revision: its commit on the hub; None elsewhere.
        evaluations: artifacts of evaluate_rewardbench that judged with it, the newest first.
        served_as: NAMESPACE/NAME of every InferenceService that serves it now.
    """

    manifest: Manifest
    variant: str
    base: str
    base_revision: str | None
    evaluations: tuple[Manifest, ...]
    served_as: tuple[str, ...]


def stored_models(artifacts: Sequence[Manifest], served: Iterable[ServedJudge]) -> list[StoredModel]:
    """The models among a store's artifacts, in their order.

    Args:
        artifacts: of `list_artifacts`, oldest first.
        served: of `served_now`.
    """
    by_digest = {manifest.digest: manifest for manifest in artifacts if manifest.stage in MODEL_STAGES}
    names = [(judge.model.digest, f"{judge.namespace}/{judge.name}") for judge in served]
    models = []
    for manifest in artifacts:
        if manifest.stage not in MODEL_STAGES:
            continue
        first = _trained_from(manifest, by_digest)
        judged = [found for found in artifacts if found.inputs.get("model") == manifest.digest]
        models.append(
            StoredModel(
                manifest=manifest,
                variant=_variant(manifest),
                base=str(first.metrics.get("source", "")),
                base_revision=first.metrics.get("revision"),
                evaluations=tuple(found for found in reversed(judged) if found.stage == "evaluate_rewardbench"),
                served_as=tuple(name for digest, name in names if digest == manifest.digest),
            )
        )
    return models


def _trained_from(manifest: Manifest, by_digest: Mapping[str, Manifest]) -> Manifest:
    """The imported model, or the first one on the way to it that the store still has."""
    seen = {manifest.digest}
    while (before := by_digest.get(manifest.inputs.get("model", ""))) and before.digest not in seen:
        manifest = before
        seen.add(manifest.digest)
    return manifest


def _variant(manifest: Manifest) -> str:
    """Which variant a model is: train_sft makes two, the other stages one each."""
    only = {"import_model": BASE, "train_dpo": "dpo"}.get(manifest.stage)
    return only or str(manifest.config.get("variant", ""))
