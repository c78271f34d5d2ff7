"""rollback: serve a judge again that was served before."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from reasongenrm.cli.console import out, print_json, print_note, print_table
from reasongenrm.cli.settings import ConfigOption, JsonOption, SetOption, make_config

if TYPE_CHECKING:
    from reasongenrm.deploy.rollback import Choice


def rollback(
    store: Annotated[
        str, typer.Option("--store", metavar="URI", help="s3://bucket/prefix of the runs that deployed the judges.")
    ],
    name: Annotated[str | None, typer.Argument(help="Of the InferenceService; default: deploy.name.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Its namespace; default: deploy.namespace.")] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="NUMBER|DIGEST", help="Which judge, as --list shows it; default: the one before."),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the judges that were served, and change nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be served, and change nothing.")] = False,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    config: ConfigOption = None,
    assignments: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Go back to the judge that was served before, wait for its pods, and check its judgments.

    If that fails, what is served now stays or comes back. Settings: section deploy of --config.

    [bold]Examples[/bold]

      reasongenrm rollback --store s3://my-bucket/judges --list

      reasongenrm rollback reasongenrm --store s3://my-bucket/judges --to 3

      reasongenrm rollback --store s3://my-bucket/judges --set deploy.golden_endpoint=http://127.0.0.1:8080
    """
    from reasongenrm.deploy.rollback import choices, choose, roll_back
    from reasongenrm.kubernetes.cluster import Cluster
    from reasongenrm.store.artifacts import Store

    changes = {key: value for key, value in (("name", name), ("namespace", namespace)) if value is not None}
    assignments = [*assignments, *(f"deploy.{key}={value}" for key, value in changes.items())]
    settings = make_config(config, assignments).deploy
    opened = Store(store)
    cluster = Cluster.connect(context)
    where = f"{settings.namespace}/{settings.name}"
    if show:
        found = choices(cluster, opened, settings.namespace, settings.name)
        if as_json:
            print_json([choice.as_json() for choice in found])
        elif found:
            print_table(_table(found))
        else:
            print_note(f"no judge was ever served as {where} from {store}")
        return
    choice = choose(cluster, opened, settings.namespace, settings.name, to)
    if dry_run:
        if as_json:
            print_json({"dry_run": True, **choice.as_json()})
        else:
            out.print(f"{where} would serve: {_line(choice)}")
        return
    print_note(f"{where} goes back to: {_line(choice)}")
    deployed = roll_back(cluster, opened, settings, choice)
    if as_json:
        print_json({**choice.as_json(), **deployed.metrics(), "timeline": deployed.timeline.entries})
    else:
        what = "serves again" if deployed.changed else "served already"
        out.print(f"{where} {what}: {_line(choice)} ({deployed.timeline.seconds:.0f} s)")


def _table(found: "list[Choice]") -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("number", "now", "variant", "since", "cause", "digest", "model"):
        table.add_column(column, no_wrap=True)
    for choice in found:
        shown = choice.as_json()
        digest = choice.digest.removeprefix("sha256:")[:12]
        since = (shown["served_since"] or "")[:19]
        now = "served" if choice.is_served else ""
        cells = (
            str(choice.number),
            now,
            shown["variant"] or "",
            since,
            shown["cause"],
            digest,
            shown["model_uri"] or "",
        )
        table.add_row(*cells)
    return table


def _line(choice: "Choice") -> str:
    shown = choice.as_json()
    who = f"{shown['variant']}, served since {shown['served_since']}" if choice.judge else "put there by hand"
    return f"{shown['model_uri']} ({who})"
