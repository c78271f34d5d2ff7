"""A small OpenAI-compatible server for a checkpoint, for machines without vLLM.

`POST /v1/chat/completions` gives the reason as `message.reasoning` (and `reasoning_content`), the verdict as
`message.content`; log-probabilities are those of the content's tokens. One request generates at a time, the others wait
in line. A client that goes away ends its generation.
"""

import asyncio
import hmac
import importlib.util
import json
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from reasongenrm.config import EngineConfig
from reasongenrm.data.chat import REASONING_PARSER_FILE
from reasongenrm.generation.seam import GenerationRequest, sample_seed
from reasongenrm.serving.openai_api import APIError, ChatRequest, chunks, completion, parse_chat_request

if TYPE_CHECKING:
    from reasongenrm.serving.live import Delta, LiveModel, LiveRequest

logger = logging.getLogger(__name__)

KEY_VARIABLE = "VLLM_API_KEY"  # vLLM's own name, so that the same variable guards both servers
MAX_REQUEST_BYTES = 4 * 2**20  # 131,072 tokens of text are about half a MiB
MAX_WAITING = 64  # twice the endpoint engine's default concurrency
RETRY_AFTER_SECONDS = 2
STOP_SECONDS = 5  # for requests in flight when the server is told to stop


class _Line:
    """The model and those who wait for it: one thread generates, first come, first served."""

    def __init__(self, model: "LiveModel", max_waiting: int) -> None:
        self._model = model
        self._max_waiting = max_waiting
        self._num_inside = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generate")
        self._closing = threading.Event()

    def enter(self, request: "LiveRequest") -> AsyncIterator["Delta"]:
        """Join the line; the deltas come when its turn comes. Leaving the iterator gives up the work.

        Raises:
            APIError: 429, too many are in the line already.
        """
        if self._num_inside > self._max_waiting:
            message = f"{self._num_inside} requests are under way or waiting, and no more are taken. Try again later."
            after = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            raise APIError(429, message, code="rate_limit_exceeded", kind="rate_limit_error", headers=after)
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Delta | None] = asyncio.Queue()
        left = threading.Event()

        def work() -> None:
            if left.is_set():
                return
            for delta in self._model.answer(request):
                loop.call_soon_threadsafe(arrived.put_nowait, delta)
                if left.is_set() or self._closing.is_set():
                    return

        def done(future: asyncio.Future[None]) -> None:
            self._num_inside -= 1
            arrived.put_nowait(None)
            if left.is_set() and not future.cancelled() and future.exception() is not None:
                logger.error("a generation failed after its client had left", exc_info=future.exception())

        async def follow() -> "AsyncIterator[Delta]":
            try:
                while (delta := await arrived.get()) is not None:
                    yield delta
                await future  # raises what the work raised
            finally:
                left.set()

        self._num_inside += 1
        future = loop.run_in_executor(self._thread, work)
        future.add_done_callback(done)
        return follow()

    def close(self) -> None:
        """End what is under way; waits for the step that is being computed."""
        self._closing.set()
        self._thread.shutdown(wait=True, cancel_futures=True)


def create_app(
    model: "LiveModel",
    model_name: str,
    *,
    api_key: str | None = None,
    max_waiting: int = MAX_WAITING,
    max_request_bytes: int = MAX_REQUEST_BYTES,
) -> FastAPI:
    """The application: /v1/chat/completions, /v1/models, /health.

    Args:
        model: what answers.
        model_name: what clients must ask for.
        api_key: that clients must send as a bearer token, except to /health; None lets everybody in.
        max_waiting: requests that may wait behind the one that is answered; more get 429.
        max_request_bytes: of one body; longer ones get 413.
    """
    line = _Line(model, max_waiting)
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        line.close()

    # No /docs: its page fetches scripts from the internet.
    app = FastAPI(title="ReasonGenRM", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(APIError)
    async def refuse(_: Request, error: APIError) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}. Expected POST /v1/chat/completions."
        return await refuse(request, APIError(error.status_code, message, code="unknown_url"))

    @app.exception_handler(Exception)
    async def fail(_: Request, __: Exception) -> Response:
        # The traceback goes to the server's log (Starlette raises the error again), not to the client.
        return JSONResponse(_failure().body(), 500)

    def admit(request: Request) -> None:
        sent = request.headers.get("authorization", "")
        if api_key is not None and not hmac.compare_digest(sent.encode(), f"Bearer {api_key}".encode()):
            message = "The API key is missing or wrong; expected 'Authorization: Bearer KEY' with this server's key."
            raise APIError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        admit(request)
        card = {"id": model_name, "object": "model", "created": started, "owned_by": "reasongenrm"}
        return {"object": "list", "data": [card | {"max_model_len": model.max_model_len}]}

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        admit(request)
        chat = parse_chat_request(await _body(request, max_request_bytes), request.headers.get("content-type", ""))
        if chat.model != model_name:
            message = f"The model '{chat.model}' does not exist; this server has '{model_name}'."
            raise APIError(404, message, "model", "model_not_found")
        live = _live_request(chat, model)
        deltas = line.enter(live)
        if chat.stream:
            return StreamingResponse(_events(chat, live, deltas), media_type="text/event-stream")
        work = asyncio.create_task(_whole(chat, live, deltas))
        gone = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            return JSONResponse(work.result()) if work.done() else Response(status_code=499)
        finally:
            gone.cancel()
            work.cancel()

    return app


def _failure() -> APIError:
    return APIError(500, "The server failed; its log says why.", kind="server_error")


async def _body(request: Request, limit: int) -> bytes:
    """The body, read no further than the limit."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise APIError(413, f"The request is longer than {limit} bytes. Send less.", code="request_too_large")
        parts.append(part)
    return b"".join(parts)


async def _disconnected(request: Request) -> None:
    """Return when the client has gone (the body has been read)."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _live_request(chat: ChatRequest, model: "LiveModel") -> "LiveRequest":
    """Render the conversation and fit its generation into the context.

    Raises:
        APIError: 422 if the chat template refuses the messages, 400 if they leave no room in the context, if a choice
            cannot be one, or if max_tokens has no room for the choices.
    """
    import jinja2

    from reasongenrm.errors import InputError
    from reasongenrm.serving.choices import Choices
    from reasongenrm.serving.live import LiveRequest

    messages = tuple({"role": message.role, "content": message.text()} for message in chat.messages)
    try:
        prompt = model.turns.encode(GenerationRequest("", messages, chat.chat_template_kwargs.opening_role))
    except jinja2.TemplateError as error:
        raise APIError(422, f"The model's chat template refuses these messages: {error}.", "messages") from error
    choices, num_needed = None, 1
    if chat.structured_outputs is not None:
        try:
            choices = Choices(model.turns, chat.structured_outputs.choice)
        except InputError as error:
            raise APIError(400, str(error), "structured_outputs.choice") from error
        num_needed = choices.num_answer_tokens(prompt.opening_role)
    elif chat.thinking_token_budget is not None:
        choices = Choices(model.turns, ())
    room = model.max_model_len - len(prompt.ids)
    if room < num_needed:
        message = (
            f"This model's maximum context length is {model.max_model_len} tokens; the messages have {len(prompt.ids)} "
            f"and the answer needs {num_needed}. Send fewer."
        )
        raise APIError(400, message, "messages", "context_length_exceeded")
    limit = chat.token_limit() or room
    if limit < num_needed:
        message = (
            f"max_tokens is {limit}; the answer alone needs {num_needed} (its longest choice, and what stands between "
            "it and the reason). Send more."
        )
        raise APIError(400, message, "max_tokens" if chat.max_tokens else "max_completion_tokens")
    seed = chat.seed if chat.seed is not None else secrets.randbits(31)
    return LiveRequest(
        prompt=prompt,
        max_tokens=min(limit, room),
        temperature=chat.temperature,
        top_p=chat.top_p,
        seeds=tuple(sample_seed(seed, "choice", index) for index in range(chat.n)),
        stop=chat.stop_strings(),
        top_logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
        choices=choices,
        max_reason_tokens=chat.thinking_token_budget,
    )


async def _whole(chat: ChatRequest, live: "LiveRequest", deltas: AsyncIterator["Delta"]) -> dict[str, Any]:
    try:
        return completion(chat, live, [delta async for delta in deltas])
    except RuntimeError as error:  # what torch raises, out of memory above all
        logger.exception("a generation failed")
        raise _failure() from error


async def _events(chat: ChatRequest, live: "LiveRequest", deltas: AsyncIterator["Delta"]) -> AsyncIterator[str]:
    """The completion as server-sent events, closed by [DONE]; a failure is an event: the status is already sent."""
    try:
        async for chunk in chunks(chat, live, deltas):
            yield f"data: {json.dumps(chunk)}\n\n"
    except RuntimeError:
        logger.exception("a streamed generation failed")
        yield f"data: {json.dumps(_failure().body())}\n\n"
        return
    yield "data: [DONE]\n\n"


def vllm_command(path: Path, model_name: str, host: str, port: int, config: EngineConfig) -> list[str]:
    """The command that serves a checkpoint with vLLM, in this Python environment.

    A judge's checkpoint, which has our reasoning parser in it, is served with it; the parser that runs is this
    package's own, for a folder's code is not to be trusted.
    """
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(path)]
    command += ["--served-model-name", model_name, "--host", host, "--port", str(port), "--dtype", config.dtype]
    command += ["--tensor-parallel-size", str(config.tensor_parallel_size)]
    command += ["--gpu-memory-utilization", str(config.gpu_memory_utilization)]
    if config.max_model_len is not None:
        command += ["--max-model-len", str(config.max_model_len)]
    if (path / REASONING_PARSER_FILE).is_file():
        own = resources.files("reasongenrm.data").joinpath("chat_templates", REASONING_PARSER_FILE)
        command += ["--reasoning-parser-plugin", str(own), "--reasoning-parser", "reasongenrm"]
    return command


def serve(path: Path, model_name: str, host: str, port: int, config: EngineConfig) -> None:
    """Serve a checkpoint until SIGINT or SIGTERM, guarded by the key in VLLM_API_KEY if that is set.

    Where vLLM is installed this process becomes vLLM's server (with all of `config` that concerns vLLM); else
    the transformers server of this module runs in it (dtype and max_model_len are used).

    Raises:
        InputError: the folder holds no checkpoint that can be loaded, or one of no supported chat family.
    """
    if importlib.util.find_spec("vllm") is not None:
        command = vllm_command(path, model_name, host, port, config)
        os.execv(command[0], command)
    import uvicorn

    from reasongenrm.generation.transformers import load_checkpoint
    from reasongenrm.generation.turns import Turns
    from reasongenrm.serving.live import LiveModel

    model, tokenizer = load_checkpoint(path, config.dtype)
    live = LiveModel(model, Turns(tokenizer, model.generation_config), config.max_model_len)
    key = os.environ.get(KEY_VARIABLE) or None
    if key is None and host not in ("127.0.0.1", "localhost", "::1"):
        logger.warning("serving on %s without a key: anybody who reaches it may use it; set %s", host, KEY_VARIABLE)
    app = create_app(live, model_name, api_key=key)
    uvicorn.run(app, host=host, port=port, log_level="warning", ws="none", timeout_graceful_shutdown=STOP_SECONDS)
