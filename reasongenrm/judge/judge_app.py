"""The judge as a program: our REST API and KServe's protocols, in front of one predictor.

The same program is the transformer of an InferenceService and a command on a laptop (`reasongenrm judge-server`). It is
no `kserve.ModelServer`: that always listens on every interface, and has no room for back-pressure and keys.
"""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from reasongenrm import __version__
from reasongenrm.judge.rewards.nemo_rl import nemo_gym_router
from reasongenrm.judge.rewards.openrlhf import openrlhf_router
from reasongenrm.judge.server.kserve_routes import kserve_router
from reasongenrm.judge.server.limits import Guard, Limits, is_open
from reasongenrm.judge.server.routes import Live, add_error_handlers, errors, judge_router, not_ready
from reasongenrm.judge.server.telemetry import Telemetry, log_as_json
from reasongenrm.judge.service import JudgeService, JudgeSettings, open_judge

GRACE_SECONDS = 30  # that requests under way get when the server is told to stop
KEEP_ALIVE_SECONDS = 75  # longer than clients keep idle connections (httpx 5, aiohttp 15, nginx 60): they close first
_TICK_SECONDS = 0.1  # as uvicorn's own
BACKLOG = 4096  # connections that wait to be accepted: a burst is answered with 429, not refused


@dataclass(frozen=True)
class ServerSettings:
    """How the judge serves."""

    host: str = "127.0.0.1"
    port: int = 8080
    model_name: str = "reasongenrm"  # in KServe's protocols
    log_text: bool = False  # let the log have the users' text
    about: str | None = None  # what the judge is, in words for people, such as whether it was trained to judge
    drain_seconds: float = 0.0  # after SIGTERM, answer on for so long: see `run_server`


def create_app(judge: JudgeSettings, limits: Limits, server: ServerSettings) -> Guard:
    """The ASGI application, with its guard in front.

    The predictor is not asked before the first request: the judge starts whether or not it is there.
    """
    telemetry = Telemetry()
    opened: list[JudgeService] = []

    def service() -> JudgeService:
        return opened[0]

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with open_judge(judge, telemetry) as judging:
            opened[:] = [judging]
            yield

    app = FastAPIOffline(
        redoc_url=None,
        title="ReasonGenRM judge",
        version=__version__,
        summary="Two answers in, a reason and a verdict out.",
        lifespan=lifespan,
        redirect_slashes=False,  # an answer that the description does not have
        responses=errors(500),
    )
    add_error_handlers(app)
    app.include_router(judge_router(service, server.log_text))
    app.include_router(kserve_router(server.model_name, service, server.about))
    app.include_router(openrlhf_router(service))
    app.include_router(nemo_gym_router(service))

    @app.get("/", response_model=Live, tags=["operation"])
    @app.get("/healthz", response_model=Live, tags=["operation"])
    async def healthz() -> Any:
        """Whether the judge runs."""
        return Live(status="alive")

    @app.get("/readyz", response_model=Live, responses=errors(503), tags=["operation"])
    async def readyz(request: Request) -> Any:
        """Whether the predictor answers."""
        return Live(status="ready") if await service().predictor.ready() else not_ready(request)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(telemetry.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    if limits.api_key is not None:
        _describe_key(app)
    return Guard(app, limits, telemetry)


def _describe_key(app: FastAPI) -> None:
    """Say in the description which routes want the key, so that the page at /docs can be told it."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        described = describe()
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in described["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if is_open(path) else [{"key": []}]
        return described

    app.openapi = openapi  # type: ignore[method-assign]


class _DrainingServer(uvicorn.Server):
    """uvicorn's server, with a while between SIGTERM and its end."""

    def __init__(self, config: uvicorn.Config, drain_seconds: float) -> None:
        super().__init__(config)
        self._drain_seconds, self._left = drain_seconds, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A second signal, or Ctrl-C, ends the while."""
        self._left = self._drain_seconds if sig == signal.SIGTERM and not self.should_exit else 0.0
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer on, then stop as uvicorn does."""
        headers = self.server_state.default_headers
        self.server_state.default_headers = [*headers, (b"connection", b"close")]
        began = time.monotonic()
        while time.monotonic() - began < self._left:
            await asyncio.sleep(_TICK_SECONDS)
        await super().shutdown(sockets)


def run_server(judge: JudgeSettings, limits: Limits, server: ServerSettings) -> None:
    """Serve until SIGINT or SIGTERM; requests under way get GRACE_SECONDS to end.

    A pod that ends gets requests for some seconds more: the nodes learn late that it does, and a client may be sending
    on a connection that it keeps. So after SIGTERM every request of `drain_seconds` is answered, each as the last of
    its connection (`Connection: close`), and only then is no new one taken.
    """
    log_as_json()
    config = uvicorn.Config(
        create_app(judge, limits, server),
        host=server.host,
        port=server.port,
        log_config=None,
        access_log=False,
        ws="none",
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    with contextlib.suppress(KeyboardInterrupt):
        _DrainingServer(config, server.drain_seconds).run()
