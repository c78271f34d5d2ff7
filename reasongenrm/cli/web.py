"""web: a page to try the judge in, with the store's leaderboard."""

from typing import Annotated

import typer

from reasongenrm.cli.console import print_note
from reasongenrm.cli.settings import DEFAULT_STORE, StoreOption


def web(
    judge: Annotated[
        str,
        typer.Option("--judge", metavar="URL", help="The judge's root; its key: JUDGE_API_KEY."),
    ] = "http://127.0.0.1:8080",
    store: StoreOption = DEFAULT_STORE,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 7860,
    root_path: Annotated[
        str, typer.Option(metavar="PATH", help="Path below which an ingress shows the page, such as /judge.")
    ] = "",
    max_per_visitor: Annotated[
        int, typer.Option(min=1, help="Judgments and chats that one address may have under way.")
    ] = 4,
) -> None:
    """Show a page in the browser: judge a pair, chat, and the leaderboard of a store's runs. Ctrl-C stops it.

    It loads no model and talks to a judge (`reasongenrm judge-server`).

    [bold]Examples[/bold]

      reasongenrm web

      reasongenrm web --judge http://judge.example:8080 --store s3://my-bucket/judges --port 9000
    """
    from reasongenrm.processes.extras import require

    require("web")
    from reasongenrm.web.site import WebSettings, serve

    serve(WebSettings(judge, store, root_path.rstrip("/"), max_per_visitor), host, port, print_note)
