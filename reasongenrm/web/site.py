"""The page's process: gradio's page behind the guard, the store's reports, a health route for probes, and uvicorn."""

import asyncio
import logging
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

# gradio reads these when it is imported. Its own default folder for files is below the home, which may be read-only.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(tempfile.gettempdir()) / "reasongenrm-web"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from reasongenrm.errors import ReasonGenRMError
from reasongenrm.judge.client.client import AsyncJudge
from reasongenrm.web.board import Shelf
from reasongenrm.web.chatting import ChatClient
from reasongenrm.web.guard import PageGuard, Visitors
from reasongenrm.web.markup import read
from reasongenrm.web.page import make_page, make_theme

logger = logging.getLogger(__name__)
TIMEOUT_SECONDS = 300.0  # between two parts of a stream: the judge's own limit of a generation ends before
STOP_SECONDS = 3  # for streams under way, after a SIGTERM
NUM_RETRIES = 1  # a visitor sees at once that the judge is busy or down, and presses the button again

REPORT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class WebSettings:
    """What the page needs to know."""

    judge_url: str  # the judge's root, without /v1; its key is in JUDGE_API_KEY
    store: str  # where the leaderboard's reports are, as in --store
    root_path: str = ""  # the path below which an ingress shows the page, such as "/judge"; "" at the top
    most_per_visitor: int = 4  # judgments and chats that one address may have in progress


def make_app(settings: WebSettings) -> ASGIApp:
    """The page and its routes; a ConfigError if the judge's URL or key cannot be used."""
    judge = AsyncJudge(settings.judge_url, timeout=TIMEOUT_SECONDS, max_retries=NUM_RETRIES)
    chat, shelf = ChatClient(settings.judge_url.rstrip("/")), Shelf(settings.store)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with judge, chat:
            yield

    app = FastAPI(title="ReasonGenRM", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_api_route("/healthz", lambda: PlainTextResponse("ok"), methods=["GET"])
    app.add_api_route("/reports/{digest}", lambda digest: _report(shelf, digest), methods=["GET"])
    gr.mount_gradio_app(
        app,
        make_page(judge, chat, shelf, Visitors(settings.most_per_visitor), settings.root_path),
        path="/",
        root_path=settings.root_path or None,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=1,
        theme=make_theme(),
        css=read("style.css"),
    )
    return PageGuard(app, settings.root_path)


def _report(shelf: Shelf, digest: str) -> Response:
    """A report as a page without scripts, in a separate origin, that can load nothing."""
    try:
        found = shelf.report(digest)
    except ReasonGenRMError as error:
        logger.warning("cannot read report %s: %s", digest, error)
        return PlainTextResponse("The store cannot be read now; try again later.", 503)
    if found is None:
        return PlainTextResponse("The store has no such report (any more). Refresh the leaderboard.", 404)
    return Response(found, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": REPORT_POLICY})


def serve(settings: WebSettings, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the page until SIGTERM or Ctrl-C.

    Args:
        port: 0 takes a free one.
        say: is told the page's address.

    Raises:
        ConfigError: as `make_app`.
    """

    async def run() -> None:  # gradio makes its locks on the loop that it is built in
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        config = uvicorn.Config(make_app(settings), log_level="warning", timeout_graceful_shutdown=STOP_SECONDS)
        say(f"the page is at http://{host}:{listening.getsockname()[1]}{settings.root_path} (Ctrl-C stops)")
        await uvicorn.Server(config).serve(sockets=[listening])

    asyncio.run(run())
