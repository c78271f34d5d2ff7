"""The judge as a program: our REST API and KServe's protocols, in front of one predictor.

The same program is the transformer of an InferenceService and a command on a laptop (`reasongenrm judge-server`). It is
no `kserve.ModelServer`: that always listens on every interface, and has no room for back-pressure and keys.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
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
BACKLOG = 4096  # connections that wait to be accepted: a burst is answered with 429, not refused


@dataclass(frozen=True)
class ServerSettings:
    """How the judge serves."""

    host: str = "127.0.0.1"
    port: int = 8080
    model_name: str = "reasongenrm"  # in KServe's protocols
    log_text: bool = False  # let the log have the users' text


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
    app.include_router(kserve_router(server.model_name, service))
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


def run_server(judge: JudgeSettings, limits: Limits, server: ServerSettings) -> None:
    """Serve until SIGINT or SIGTERM; requests under way get GRACE_SECONDS to end."""
    log_as_json()
    uvicorn.run(
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
