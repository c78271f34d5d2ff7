"""The report's content: everything the page shows, as one record (report.json).

In go the evaluations with their judgments, the gate's decision, the training logs and the manifests that led here;
`report_page.py` makes the HTML page of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import TypeAdapter

from reasongenrm import __version__
from reasongenrm.data.benchmarks import BenchmarkRow
from reasongenrm.errors import validated
from reasongenrm.evaluation.decision import Decision
from reasongenrm.evaluation.gallery import Case, CaseKind, pick_cases
from reasongenrm.evaluation.metrics import Difference, Evaluation
from reasongenrm.evaluation.reference import PUBLISHED, PublishedResult
from reasongenrm.records import Judgment, Record
from reasongenrm.store.artifacts import ArtifactRef, open_artifact
from reasongenrm.variants import learns_preferences

CASES_OF_THE_FIRST = 4  # of each kind, for the judge that the report is about
CASES_OF_OTHERS = 2

CurveName = Literal["loss", "margin", "accuracy"]
# Names in training_log.json, as TRL's trainers log them; SFT has the loss alone.
_CURVES: dict[CurveName, str] = {"loss": "loss", "margin": "rewards/margins", "accuracy": "rewards/accuracies"}


class Curve(Record):
    """One training curve: a value at each logged step."""

    variant: str
    name: CurveName
    steps: tuple[int, ...]
    values: tuple[float, ...]


class LineageStep(Record):
    """One finished stage on the way to the report. `reads`: the stages its inputs came from, as `title` names them."""

    stage: str
    title: str
    reads: tuple[str, ...]
    uri: str
    digest: str
    created_at: str
    code_version: str
    source_sha256: str
    counts: dict[str, int]
    config: dict[str, Any]


class Report(Record):
    """All that a report says. Every figure of the page is in here."""

    schema_version: Literal[1] = 1
    code_version: str
    evaluations: tuple[Evaluation, ...]
    differences: dict[str, Difference]
    decision: Decision | None
    published: tuple[PublishedResult, ...]
    curves: tuple[Curve, ...]
    cases: tuple[Case, ...]
    case_counts: dict[str, dict[CaseKind, int]]
    lineage: tuple[LineageStep, ...]

    @property
    def subject(self) -> Evaluation:
        """The evaluation that the report is about: the winner's, else the last one."""
        winner = self.decision.winner if self.decision else self.evaluations[-1].variant
        return next(evaluation for evaluation in self.evaluations if evaluation.variant == winner)


def build_report(
    evaluations: Mapping[str, Evaluation],
    judgments: Mapping[str, Sequence[Judgment]],
    rows: Sequence[BenchmarkRow],
    *,
    differences: Mapping[str, Difference] = {},
    decision: Decision | None = None,
    training_logs: Mapping[str, Sequence[Mapping[str, Any]]] = {},
    lineage: Sequence[LineageStep] = (),
) -> Report:
    """Put a report together. With one evaluation and nothing else it is the report of a judge outside a run.

    Args:
        evaluations: by variant, in the order in which they are shown.
        judgments: by variant, what each evaluation was made of.
        rows: the rows that were judged.
        differences: by variant, to the base model.
        decision: the gate's.
        training_logs: by variant, the content of training_log.json.
        lineage: stages that led here, inputs first (see `trace_lineage`).
    """
    subject = decision.winner if decision else list(evaluations)[-1]
    per_kind = {subject: CASES_OF_THE_FIRST} | {v: CASES_OF_OTHERS for v in evaluations if v != subject}
    picked = {variant: pick_cases(rows, judgments[variant], variant, most) for variant, most in per_kind.items()}
    return Report(
        code_version=__version__,
        evaluations=tuple(evaluations.values()),
        differences=dict(differences),
        decision=decision,
        published=PUBLISHED,
        curves=tuple(curve for variant, log in training_logs.items() for curve in training_curves(variant, log)),
        cases=tuple(case for cases, _ in picked.values() for case in cases),
        case_counts={variant: counts for variant, (_, counts) in picked.items()},
        lineage=tuple(lineage),
    )


def parse_training_log(data: bytes, name: str) -> list[dict[str, Any]]:
    """Parse training_log.json: a list of what the trainer logged, an object per logged step.

    Raises:
        InputError: it is not such a list.
    """
    with validated(name, "a list of objects, one per logged step. Train again."):
        return TypeAdapter(list[dict[str, Any]]).validate_json(data)


def training_curves(variant: str, log: Iterable[Mapping[str, Any]]) -> list[Curve]:
    """Curves of a training log: the loss; of DPO also the reward margin and the share of pairs ordered rightly."""
    entries = [entry for entry in log if "loss" in entry]
    curves = []
    for name, key in _CURVES.items():
        points = [(int(entry["step"]), float(entry[key])) for entry in entries if key in entry]
        if points and (name == "loss" or learns_preferences(variant)):
            steps, values = zip(*points, strict=True)
            curves.append(Curve(variant=variant, name=name, steps=steps, values=values))
    return curves


def trace_lineage(refs: Iterable[ArtifactRef]) -> list[LineageStep]:
    """Every stage that led to these artifacts, in the order of the artifacts, inputs before what was made of them.

    Raises:
        StoreError: an artifact on the way has been removed or remade since.
    """
    steps: dict[str, LineageStep] = {}
    for ref in refs:
        _place(ref.uri, steps)
    return list(steps.values())


def _place(uri: str, steps: dict[str, LineageStep]) -> None:
    """Append a stage after everything it reads.

    URIs, unlike digests, form no circle: each has a hash of its inputs' digests in it (`stage_key`).
    """
    if uri in steps:
        return
    manifest = open_artifact(uri)
    for source in manifest.input_uris.values():
        _place(source, steps)
    variant = manifest.config.get("variant")
    copied = ("stage", "uri", "digest", "created_at", "code_version", "source_sha256", "counts", "config")
    steps[uri] = LineageStep(
        title=f"{manifest.stage} ({variant})" if variant else manifest.stage,
        reads=tuple(dict.fromkeys(steps[source].title for source in manifest.input_uris.values())),
        **{name: getattr(manifest, name) for name in copied},
    )
