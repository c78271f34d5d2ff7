"""Evaluations as people have them at hand: a run, one of its variants, an artifact, or a folder of `evaluate`."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from reasongenrm.errors import InputError, validated
from reasongenrm.evaluation.comparison import JudgedRows
from reasongenrm.evaluation.gate import read_evaluation
from reasongenrm.evaluation.metrics import Evaluation, row_results
from reasongenrm.records import Judgment, parse_records
from reasongenrm.runs.local import existing_store
from reasongenrm.store.artifacts import Store, read_records
from reasongenrm.store.run_records import RunRecord, list_runs
from reasongenrm.variants import VARIANTS, variant_label

EVALUATION, JUDGMENTS = "evaluation.json", "judgments.jsonl"


def find_evaluations(names: Sequence[str], store: str) -> dict[str, JudgedRows]:
    """The evaluations that are named, by what to call the judge: its variant's label where no two share it.

    Args:
        names: each a folder that `evaluate --output` wrote; an artifact of evaluate_rewardbench (s3://...); RUN/VARIANT
            of the store; or RUN, for all of its variants.
        store: as --store names it; opened only if something of it is named.

    Raises:
        InputError: there is no such evaluation.
        StoreError: there is no such store, or it failed.
    """
    found: list[tuple[str, JudgedRows]] = []
    with nullcontext() if all(map(_is_folder, names)) else existing_store(store) as opened:
        for name in names:
            if _is_folder(name) or opened is None:
                found.append((name, _of_folder(Path(name).expanduser())))
            elif name.startswith("s3://"):
                found.append((name, _of_artifact(name)))
            else:
                found += _of_run(name, opened)
    labels = Counter(variant_label(judged.evaluation.variant) for _, judged in found)
    named = {}
    for name, judged in found:
        label = variant_label(judged.evaluation.variant)
        named[label if labels[label] == 1 else name] = judged
    return named


def _is_folder(name: str) -> bool:
    return (Path(name).expanduser() / EVALUATION).is_file()


def _of_folder(folder: Path) -> JudgedRows:
    path = folder / EVALUATION
    with validated(str(path), "an evaluation of this version. Run `reasongenrm evaluate` again."):
        evaluation = Evaluation.model_validate_json(path.read_bytes())
    judgments = folder / JUDGMENTS
    if not judgments.is_file():
        raise InputError(f"{judgments}: no such file; expected it next to {EVALUATION}. Evaluate again.")
    return JudgedRows(evaluation, row_results(parse_records(judgments.read_bytes(), Judgment, str(judgments))))


def _of_artifact(uri: str) -> JudgedRows:
    return JudgedRows(read_evaluation(uri), row_results(read_records(uri, JUDGMENTS, Judgment)))


def _of_run(name: str, store: Store) -> list[tuple[str, JudgedRows]]:
    """One variant of a run, or all of them."""
    run_id, _, variant = name.partition("/")
    runs = list_runs(store)
    run = next((run for run in runs if run.run_id == run_id), None)
    if run is None:
        raise InputError(
            f"{name}: no folder with {EVALUATION}, and no run of {store.uri}, which holds "
            f"{', '.join(run.run_id for run in runs) or 'none'}. Give a folder of `reasongenrm evaluate -o`, an s3:// "
            "address, RUN or RUN/VARIANT."
        )
    refs = _evaluations(run)
    if variant and variant not in refs:
        raise InputError(f"{name}: run {run_id} evaluated {', '.join(refs) or 'nothing yet'}. Give one of them.")
    wanted = [variant] if variant else [*refs]
    return [(f"{run_id}/{one}", _of_artifact(refs[one])) for one in wanted]


def _evaluations(run: RunRecord) -> dict[str, str]:
    """Variant -> the address of its evaluation, in the order in which reports show variants."""
    refs = run.evaluations()
    return {variant: refs[variant].uri for variant in VARIANTS if variant in refs}
