"""models and runs: what a store holds, and where it came from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from rich.text import Text
from rich.tree import Tree
from typer import Option

from reasongenrm.cli.cluster_commands import show_runs
from reasongenrm.cli.console import out, plain_table, print_json, print_note, print_table
from reasongenrm.cli.settings import DEFAULT_STORE, HostOption, JsonOption, NamespaceOption, StoreOption
from reasongenrm.errors import InputError

if TYPE_CHECKING:
    from reasongenrm.store.artifacts import Manifest
    from reasongenrm.store.run_records import RunRecord

MODEL_STAGES = ("import_model", "train_sft", "train_dpo")


def models(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the models in a store, each with what it was made from.

    [bold]Examples[/bold]

      reasongenrm models

      reasongenrm models --store s3://my-bucket/judges --json
    """
    from reasongenrm.runs.local import open_store
    from reasongenrm.store.artifacts import list_artifacts

    with open_store(store) as opened:
        artifacts = list_artifacts(opened)
    found = [manifest for manifest in artifacts if manifest.stage in MODEL_STAGES]
    if as_json:
        print_json([{**manifest.model_dump(mode="json"), "uri": manifest.uri} for manifest in found])
        return
    if not found:
        print_note(f"no models in {store} yet; `reasongenrm run` or `reasongenrm train` makes some")
    by_digest = {manifest.digest: manifest for manifest in artifacts}
    for manifest in found:
        tree = Tree(Text(describe(manifest), style="bold"))
        _add_inputs(tree, (manifest,), by_digest)
        out.print(tree, soft_wrap=True)


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
    """List the runs of a store, or with --host those of a cluster; or show one.

    A run on this machine that was killed stays "running"; start it again with the same arguments and it goes on.

    [bold]Examples[/bold]

      reasongenrm runs

      reasongenrm runs --run 20261123-074612-3f2a

      reasongenrm runs --host http://127.0.0.1:8080 --run reasongenrm-20261124-101500-3f2a
    """
    if host is not None:
        show_runs(host, namespace, run_id, as_json)
        return
    from reasongenrm.runs.local import open_store
    from reasongenrm.store.run_records import list_runs

    with open_store(store) as opened:
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
        columns = ("run", "state", "tasks", "winner", "gate", "preferences", "benchmark", "model")
        print_table(plain_table(columns, map(_run_cells, found)))


def _run_cells(run: "RunRecord") -> tuple[str, ...]:
    decision = run.decision.metrics if run.decision else {}
    gate = {True: "passed", False: "not passed"}.get(decision.get("passed", ""), "")
    uris = (run.inputs.preferences_uri, run.inputs.benchmark_uri, run.inputs.model_uri)
    names = (uri.rstrip("/").rpartition("/")[2] for uri in uris)
    return run.run_id, run.state, str(len(run.tasks)), str(decision.get("winner", "")), gate, *names


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
