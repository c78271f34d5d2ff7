"""models and runs: what a store holds, and where it came from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from rich.text import Text
from rich.tree import Tree
from typer import Option

from reasongenrm.cli.cluster_commands import show_runs
from reasongenrm.cli.console import out, plain_table, print_json, print_note, print_table
from reasongenrm.cli.settings import DEFAULT_STORE, HostOption, JsonOption, NamespaceOption, StoreOption
from reasongenrm.errors import InputError

if TYPE_CHECKING:
    from reasongenrm.runs.inventory import StoredModel
    from reasongenrm.store.artifacts import Manifest
    from reasongenrm.store.run_records import RunRecord

LineageOption = Annotated[bool, Option("--lineage", help="Also show what each model was made from, step by step.")]


def models(store: StoreOption = DEFAULT_STORE, lineage: LineageOption = False, as_json: JsonOption = False) -> None:
    """List the models in a store: accuracy and consistency of the newest evaluation, and who serves them.

    [bold]Examples[/bold]

      reasongenrm models

      reasongenrm models --lineage

      reasongenrm models --store s3://my-bucket/judges --json
    """
    from reasongenrm.runs.inventory import stored_models
    from reasongenrm.runs.local import existing_store
    from reasongenrm.store.artifacts import list_artifacts
    from reasongenrm.store.served import served_now

    with existing_store(store) as opened:
        artifacts = list_artifacts(opened)
        found = stored_models(artifacts, served_now(opened))
    if as_json:
        print_json([_model_json(model) for model in found])
        return
    if not found:
        print_note(f"no models in {store} yet; `reasongenrm run` or `reasongenrm train` makes some")
        return
    columns = ("variant", "base", "accuracy", "consistent", "made", "served as", "model")
    print_table(plain_table(columns, map(_model_cells, found)))
    if lineage:
        by_digest = {manifest.digest: manifest for manifest in artifacts}
        for model in found:
            tree = Tree(Text(describe(model.manifest), style="bold"))
            _add_inputs(tree, (model.manifest,), by_digest)
            out.print()
            out.print(tree, soft_wrap=True)


def _model_cells(model: "StoredModel") -> tuple[str, ...]:
    figures = model.evaluations[0].metrics if model.evaluations else {}
    accuracy, consistent = (_percent(figures.get(name)) for name in ("accuracy", "consistent_fraction"))
    made = _minute(model.manifest.created_at)
    return model.variant, model.base, accuracy, consistent, made, ", ".join(model.served_as), model.manifest.uri


def _model_json(model: "StoredModel") -> dict[str, Any]:
    evaluations = [{"uri": found.uri, "metrics": found.metrics} for found in model.evaluations]
    told = {"variant": model.variant, "base": model.base, "base_revision": model.base_revision}
    others = {"uri": model.manifest.uri, **told, "evaluations": evaluations, "served_as": list(model.served_as)}
    return {**model.manifest.model_dump(mode="json"), **others}


def _add_inputs(tree: Tree, path: "tuple[Manifest, ...]", by_digest: Mapping[str, "Manifest"]) -> None:
    """Below the last artifact of `path`, what it was made from; the others lead to it.

    A model of a local folder has the digest of that folder, its input: no artifact is followed to itself.
    """
    on_path = {manifest.digest for manifest in path}
    for name, digest in path[-1].inputs.items():
        made_by = None if digest in on_path else by_digest.get(digest)
        branch = tree.add(Text(f"{name}: {describe(made_by) if made_by else digest[:19]}"))
        if made_by:
            _add_inputs(branch, (*path, made_by), by_digest)


def describe(manifest: "Manifest") -> str:
    """An artifact in one line: its stage, its variant if it has one, its address, when it was made."""
    variant = manifest.config.get("variant")
    name = f"{manifest.stage} ({variant})" if variant else manifest.stage
    return f"{name}  {manifest.uri}  {manifest.created_at[:19]}"


def runs(
    store: StoreOption = DEFAULT_STORE,
    run_id: Annotated[
        str | None, Option("--run", metavar="ID", help="Show this run; a cluster's also by name.")
    ] = None,
    host: HostOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the runs of a store, or with --host those of a cluster; or show one with its steps.

    A run on this machine that was killed stays "running"; start it again with the same arguments and it goes on.

    [bold]Examples[/bold]

      reasongenrm runs

      reasongenrm runs --run 20261123-074612-3f2a

      reasongenrm runs --host http://127.0.0.1:8080 --run reasongenrm-20261124-101500-3f2a
    """
    if host is not None:
        show_runs(host, namespace, run_id, as_json)
        return
    from reasongenrm.runs.local import existing_store
    from reasongenrm.store.run_records import list_runs

    with existing_store(store) as opened:
        found = list_runs(opened)
    if run_id is not None:
        known = ", ".join(run.run_id for run in found) or "none"
        found = [run for run in found if run.run_id == run_id]
        if not found:
            raise InputError(f"{store}: no run '{run_id}'; it holds {known}. Give --run one of them.")
    if as_json:
        print_json([run.model_dump(mode="json") for run in found])
    elif not found:
        print_note(f"no runs in {store} yet; `reasongenrm run` makes one")
    elif run_id is not None:
        out.print(_run_tree(found[0]), soft_wrap=True)
    else:
        columns = ("run", "state", "started", "winner", "accuracy", "consistent", "gate", "base", "preferences")
        print_table(plain_table((*columns, "benchmark"), map(_run_cells, found)))


def _run_cells(run: "RunRecord") -> tuple[str, ...]:
    decision = run.decision.metrics if run.decision else {}
    winner = str(decision.get("winner", ""))
    evaluation = run.evaluations().get(winner)
    figures = evaluation.metrics if evaluation else {}
    accuracy, consistent = (_percent(figures.get(name)) for name in ("accuracy", "consistent_fraction"))
    gate = {True: "passed", False: "not passed"}.get(decision.get("passed", ""), "")
    uris = (run.inputs.model_uri, run.inputs.preferences_uri, run.inputs.benchmark_uri)
    return run.run_id, run.state, _minute(run.started_at), winner, accuracy, consistent, gate, *uris


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f}"


def _minute(time: str) -> str:
    """A time of ISO 8601 to the minute."""
    return time[:16].replace("T", " ")


def _run_tree(run: "RunRecord") -> Tree:
    tree = Tree(Text(f"{run.run_id}  {run.state}  {run.started_at} to {run.ended_at or '?'}", style="bold"))
    if run.error:
        tree.add(Text(run.error, style="red"))
    inputs = tree.add("inputs")
    for name, uri in run.inputs.model_dump().items():
        inputs.add(Text(f"{name.removesuffix('_uri')}: {uri}"))
    tasks = tree.add("tasks")
    for task in run.tasks:
        how = "reused" if task.reused else f"{task.seconds:.1f} s"
        counts = ", ".join(f"{name.removeprefix('num_')} {n:,}" for name, n in task.ref.counts.items())
        tasks.add(Text(f"{task.name}  {how}  {counts}")).add(Text(task.ref.uri, style="dim"))
    return tree
