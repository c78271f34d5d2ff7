"""A trained judge as others get it: checkpoint, calibration, model card and results, in a folder or on the hub.

Everything is put together in a folder of its own first; a folder is then renamed, a repository on the hub gets one
commit. So neither is ever half-written.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reasongenrm.errors import ConfigError, InputError, ReasonGenRMError, validated
from reasongenrm.evaluation.calibration import save_calibration
from reasongenrm.evaluation.gate import read_evaluation
from reasongenrm.evaluation.report import Report, trace_lineage
from reasongenrm.runs.inventory import StoredModel, stored_models
from reasongenrm.runs.model_card import CardFacts, eval_results, model_card
from reasongenrm.store.artifacts import Manifest, Store, download, is_hub_name, list_artifacts, read_file
from reasongenrm.store.run_records import RunRecord, list_runs
from reasongenrm.store.scratch import scratch_folder
from reasongenrm.variants import BASE

HUB = "hub:"


def publish_model(store: Store, source: str, to: str, *, public: bool = False) -> str:
    """Publish a trained model of a store.

    Args:
        source: a run, whose winner is published, or a model's s3:// address in the store.
        to: a folder that does not exist yet or is empty; or "hub:owner/name", a repository on the Hugging Face hub,
            which is made if it is missing. The token is huggingface_hub's: HF_TOKEN, or `hf auth login`.
        public: whether a new repository is public; one that exists stays as it is.

    Returns:
        Where it is now: the folder's path, or the address of the commit.

    Raises:
        ConfigError: `to` cannot be used.
        InputError: the store has no such run or model, or the model was not trained or never evaluated.
        ReasonGenRMError: the hub refused or cannot be reached.
    """
    repository = to.removeprefix(HUB) if to.startswith(HUB) else None
    target = Path(to).expanduser().resolve()
    if repository is not None:
        if not is_hub_name(repository):
            raise ConfigError(f"publish --to {to}: expected {HUB}owner/name, such as {HUB}my-team/my-judge.")
    elif public:
        raise ConfigError("publish: --public has no effect on a folder; it is for --to hub:owner/name. Leave it out.")
    elif target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"publish --to {to}: this exists already. Give another folder, or delete this one.")
    facts = _facts(store, source, repository or target.name)
    if repository is None:
        with _made_whole(target) as folder:
            _fill(folder, facts)
        return str(target)
    with scratch_folder("publish") as folder:
        _fill(folder, facts)
        return _upload(folder, repository, public)


def _facts(store: Store, source: str, name: str) -> CardFacts:
    """What the card tells, read from the store."""
    artifacts, runs = list_artifacts(store), list_runs(store)
    model = _find(stored_models(artifacts, ()), runs, source, store)
    if model.variant == BASE:
        raise InputError(
            f"{source}: {model.manifest.uri} is a base model, which nothing was trained on yet. Give a run."
        )
    if not model.evaluations:
        raise InputError(
            f"{source}: {model.manifest.uri} was never evaluated, so there are no figures to publish. "
            "`reasongenrm run` evaluates what it trains."
        )
    evaluation = model.evaluations[0]
    return CardFacts(
        name=name,
        model=model,
        evaluation=read_evaluation(evaluation.uri),
        evaluated_at=evaluation.created_at,
        report=_report_on(evaluation, artifacts),
        lineage=tuple(trace_lineage([model.manifest.ref()])),
        inputs=next((run.inputs for run in reversed(runs) if _made(run, model.manifest)), None),
    )


def _find(models: list[StoredModel], runs: list[RunRecord], source: str, store: Store) -> StoredModel:
    """The model that `source` names."""
    if source.startswith("s3://"):
        found = [model for model in models if model.manifest.uri == source.rstrip("/")]
        if not found:
            raise InputError(
                f"{source}: no model of {store.uri}, which holds "
                f"{', '.join(model.manifest.uri for model in models) or 'none'}. `reasongenrm models` lists them."
            )
        return found[0]
    run = next((run for run in runs if run.run_id == source), None)
    if run is None:
        raise InputError(
            f"{source}: no run of {store.uri}; it holds {', '.join(run.run_id for run in runs) or 'none'}. Give one of "
            "them, or a model's s3:// address (`reasongenrm models`)."
        )
    if run.decision is None:
        raise InputError(f"run {source}: {run.state}, and has no winner yet. Start it again with the same arguments.")
    evaluation = run.evaluations()[str(run.decision.metrics["winner"])]
    judged = [model for model in models if any(found.uri == evaluation.uri for found in model.evaluations)]
    if not judged:
        raise InputError(f"run {source}: its winner is no longer in {store.uri}. Run it again.")
    return judged[0]


def _report_on(evaluation: Manifest, artifacts: list[Manifest]) -> Report | None:
    """The newest report that was made from an evaluation."""
    made = [
        found for found in artifacts if found.stage == "select_winner" and evaluation.digest in found.inputs.values()
    ]
    if not made:
        return None
    with validated(f"{made[-1].uri}/report.json", "a report of this version. Start the run again."):
        return Report.model_validate_json(read_file(made[-1].uri, "report.json"))


def _made(run: RunRecord, manifest: Manifest) -> bool:
    return any(task.ref.uri == manifest.uri for task in run.tasks)


def _fill(folder: Path, facts: CardFacts) -> None:
    """Put everything that is published into a folder."""
    download(facts.model.manifest.ref(), folder)
    if facts.evaluation.calibration is not None:
        save_calibration(facts.evaluation.calibration, folder)
    (folder / "README.md").write_text(model_card(facts, folder), encoding="utf-8")
    for name, text in eval_results(facts).items():
        path = folder / ".eval_results" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


@contextmanager
def _made_whole(target: Path) -> Iterator[Path]:
    """A folder next to `target` that takes its place when the context ends well, and goes away otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o777 & ~_umask())
        folder.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _upload(folder: Path, repository: str, public: bool) -> str:
    """One commit with everything; returns its address."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    hub = HfApi()
    try:
        hub.create_repo(repository, private=not public, exist_ok=True)
        return str(
            hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Publish the judge").commit_url
        )
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise ReasonGenRMError(
            f"{HUB}{repository}: the hub answers: {reason} Check the name, and that HF_TOKEN (or `hf auth login`) may "
            "write there."
        ) from error
    except (ConnectionError, httpx2.TransportError, OfflineModeIsEnabled) as error:
        raise ReasonGenRMError(
            f"{HUB}{repository}: the hub cannot be reached: {error}. Go online, or publish into a folder (--to FOLDER) "
            f"and upload that later: hf upload {repository} FOLDER ."
        ) from error
