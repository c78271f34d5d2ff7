"""The command line. Each command imports what it needs when it runs, so help is fast.

Exit codes: 0; 1 anything else; 2 bad input, config or usage; 3 store; 4 engine; 5 training; 6 nothing left; 7 cluster;
130 stopped.
"""

import signal
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from reasongenrm.cli import cluster_commands as cluster
from reasongenrm.cli import compare_command as compare
from reasongenrm.cli import convert_command as convert
from reasongenrm.cli import doctor, run
from reasongenrm.cli import evaluate_command as evaluate
from reasongenrm.cli import judge_command as judge
from reasongenrm.cli import plan_command as plan
from reasongenrm.cli import publish_command as publish
from reasongenrm.cli import rollback_command as rollback
from reasongenrm.cli import serve_commands as servers
from reasongenrm.cli import stage_commands as stages
from reasongenrm.cli import store_commands as stored
from reasongenrm.cli.console import print_error, print_note
from reasongenrm.cli.dry_run import config_app
from reasongenrm.cli.tools import compile_pipeline, print_version
from reasongenrm.errors import ReasonGenRMError
from reasongenrm.processes.extras import no_module


class Group(TyperGroup):
    """Ends a command that failed with the error's message and exit code instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ReasonGenRMError as error:
            if ctx.params["debug"]:
                raise
            print_error(error)
            raise typer.Exit(error.exit_code) from error
        except ModuleNotFoundError as error:
            missing = no_module(error)
            if ctx.params["debug"] or missing is None:
                raise
            print_error(missing)
            raise typer.Exit(missing.exit_code) from error
        except KeyboardInterrupt as error:
            print_note("stopped; what is finished is kept, start again to go on")
            raise typer.Exit(128 + signal.SIGINT) from error


app = typer.Typer(
    name="reasongenrm",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Turn preference data into a judge that writes a reason, then a verdict, and serve it.

    Start with [bold]reasongenrm doctor[/bold] and [bold]reasongenrm run --help[/bold].
    """


_PANELS = {
    "The pipeline": (
        run.run,
        plan.plan,
        convert.convert,
        stages.prepare,
        stages.distill,
        stages.sample,
        stages.score,
        stages.train,
    ),
    "A cluster": (cluster.submit, cluster.logs, cluster.cancel, rollback.rollback, compile_pipeline),
    "Judging": (evaluate.evaluate, compare.compare, judge.judge, servers.serve, servers.judge_server, servers.web),
    "The store": (stored.models, stored.runs, publish.publish),
    "Tools": (doctor.doctor,),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        _name = _command.__name__.removesuffix("_pipeline").replace("_", "-")
        app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(config_app, name="config", rich_help_panel="Tools")


def main() -> None:
    """Entry point. SIGTERM unwinds like an exit, so that what a command started is stopped."""
    signal.signal(signal.SIGTERM, _terminate)
    app()


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)
