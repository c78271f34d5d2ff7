"""The ASGI app: gradio's page behind the guard, a health route for probes."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import gradio as gr
from fastapi import FastAPI
from starlette.responses import PlainTextResponse

from reasongenrm.judge.client import AsyncJudge
from reasongenrm.web.page import make_page, make_theme, style
from reasongenrm.web.visitors import Visitors

logger = logging.getLogger(__name__)
TIMEOUT_SECONDS = 300.0  # between two parts of a stream: the judge's own limit of a generation ends before
NUM_RETRIES = 1  # a visitor sees at once that the judge is busy or down, and presses the button again


@dataclass(frozen=True)
class WebSettings:
    """What the page needs to know.

    Attributes:
        judge_url: the judge's root, without /v1; its key is in JUDGE_API_KEY.
        store: where the leaderboard's reports are, as in --store.
        root_path: the path below which an ingress shows the page, such as "/judge"; "" at the top.
        most_per_visitor: judgments and chats that one address may have under way.
    """

    judge_url: str
    store: str
    root_path: str = ""
    most_per_visitor: int = 4


def make_app(settings: WebSettings) -> FastAPI:
    """The page and its routes.

    Raises:
        ConfigError: the judge's URL or key cannot be used.
    """
    judge = AsyncJudge(settings.judge_url, timeout=TIMEOUT_SECONDS, max_retries=NUM_RETRIES)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with judge:
            yield

    app = FastAPI(title="ReasonGenRM", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_api_route("/healthz", lambda: PlainTextResponse("ok"), methods=["GET"])
    return gr.mount_gradio_app(
        app,
        make_page(judge, Visitors(settings.most_per_visitor)),
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
        css=style(),
    )
