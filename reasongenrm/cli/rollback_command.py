"""rollback: serve a judge again that was served before."""

from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from reasongenrm.cli.console import out, plain_table, print_json, print_note, print_table
from reasongenrm.cli.settings import ConfigOption, JsonOption, SetOption, SharedStore, make_config

if TYPE_CHECKING:
    from reasongenrm.deploy.rollback import Choice


def rollback(
    store: SharedStore,
    name: Annotated[str | None, Argument(help="Of the judge's Service; default: deploy.name.")] = None,
    namespace: Annotated[str | None, Option(help="Its namespace; default: deploy.namespace.")] = None,
    to: Annotated[str | None, Option(metavar="NUMBER|DIGEST", help="As in --list; default: the one before.")] = None,
    show: Annotated[bool, Option("--list", help="List the judges that were served, and change nothing.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would be served, and change nothing.")] = False,
    context: Annotated[str | None, Option(help="Context of the kubeconfig.")] = None,
    config: ConfigOption = None,
    assignments: SetOption = [],
    as_json: JsonOption = False,
) -> None:
    """Go back to the judge that was served before: start its pods, check its judgments, switch to it.

    What is served now answers until then (deploy.strategy BlueGreen), and stays if that fails. Settings: section deploy
    of --config.

    [bold]Examples[/bold]

      reasongenrm rollback --store s3://my-bucket/judges --list

      reasongenrm rollback reasongenrm --store s3://my-bucket/judges --to 3

      reasongenrm rollback --store s3://my-bucket/judges --set deploy.golden_endpoint=http://127.0.0.1:8080
    """
    from reasongenrm.deploy.rollback import choices, choose, roll_back
    from reasongenrm.kubernetes.cluster import Cluster
    from reasongenrm.store.artifacts import Store

    given = {"name": name, "namespace": namespace}
    assignments = [*assignments, *(f"deploy.{key}={value}" for key, value in given.items() if value is not None)]
    settings = make_config(config, assignments).deploy
    opened = Store(store)
    cluster = Cluster.connect(context)
    where = f"{settings.namespace}/{settings.name}"
    if show:
        found = choices(cluster, opened, settings.namespace, settings.name)
        if as_json:
            print_json([choice.as_json() for choice in found])
        elif found:
            columns = ("number", "now", "variant", "since", "cause", "digest", "model")
            print_table(plain_table(columns, map(_cells, found)))
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


def _cells(choice: "Choice") -> tuple[str, ...]:
    shown = choice.as_json()
    now, since = "served" if choice.is_served else "", shown["served_since"][:19]
    digest = shown["digest"].removeprefix("sha256:")[:12]
    return str(choice.number), now, shown["variant"], since, shown["cause"], digest, shown["model_uri"]


def _line(choice: "Choice") -> str:
    shown = choice.as_json()
    return f"{shown['model_uri']} ({shown['variant']}, served since {shown['served_since']})"
