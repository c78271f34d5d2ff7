"""KServe's protocols over the judge: v1 predict, and the Open Inference Protocol, version 2.

The records are KServe's where it has some. Its model server is not used: its routes describe no bodies and no errors,
and let anybody load and unload models.
"""

import sys
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, JsonValue, ValidationError

from reasongenrm import __version__
from reasongenrm.errors import mistake_in
from reasongenrm.judge.api import NoGuess, PairwiseRequest, PairwiseResponse, Text
from reasongenrm.judge.refusals import JudgeError
from reasongenrm.judge.server.binary_tensors import EXTENSION, HEADER, read_binary, write_binary
from reasongenrm.judge.server.routes import JUDGING, as_json, errors, not_ready, request_id
from reasongenrm.judge.service import JudgeService
from reasongenrm.processes.gathering import gather_or_cancel
from reasongenrm.records import Record

# KServe reads the command line while it is imported, and would take our options for abbreviations of its own.
_ARGV, sys.argv = sys.argv, sys.argv[:1]
try:
    from kserve.protocol.rest.v2_datamodels import (
        InferenceResponse,
        MetadataTensor,
        ModelMetadataResponse,
        ModelReadyResponse,
        RequestOutput,
        ResponseOutput,
        ServerLiveResponse,
        ServerMetadataResponse,
        ServerReadyResponse,
    )
finally:
    sys.argv = _ARGV

MAX_PAIRS = 256  # of one predict or infer call
# The extension's words for how outputs are wanted: of a request, and of one output, which goes before it.
ALL_BINARY, ONE_BINARY = "binary_data_output", "binary_data"
TEXTS: tuple[Literal["question", "answer_a", "answer_b"], ...] = ("question", "answer_a", "answer_b")
# OIP v2's outputs, their datatypes, and how a judgment becomes an element.
OUTPUTS: dict[str, tuple[str, Callable[[PairwiseResponse], Any]]] = {
    "preferred": ("BYTES", lambda found: found.preferred or "none"),  # "A", "B", "tie", "none"
    "p_a": ("FP64", lambda found: -1.0 if found.p_a is None else found.p_a),  # -1: none
    "consistent": ("BYTES", lambda found: str(found.consistent).lower()),  # "true", "false", "none"
    "reason": ("BYTES", lambda found: found.judgments[0].reason or "" if found.judgments else ""),
}


class BadInputError(JudgeError):
    """An inference request that is not about pairs."""

    status, code = 400, "invalid"


class NoModelError(JudgeError):
    """Another model than the judge is asked for."""

    status, code = 404, "no_model"


class V1Request(Record):
    """v1 predict: pairs as instances."""

    instances: list[PairwiseRequest] = Field(min_length=1, max_length=MAX_PAIRS)


class V1Response(BaseModel):
    """v1 predict: judgments in the order of the instances."""

    predictions: list[PairwiseResponse]


class V2Input(BaseModel):
    """One input tensor of texts, of shape (N,)."""

    name: Literal["question", "answer_a", "answer_b"]
    shape: Annotated[list[Annotated[int, Field(ge=1, le=MAX_PAIRS), NoGuess]], Field(min_length=1, max_length=1)]
    datatype: Literal["BYTES"]
    data: Annotated[list[Text], Field(min_length=1, max_length=MAX_PAIRS)]
    parameters: dict[str, JsonValue] | None = None


class V2Request(BaseModel):
    """OIP v2: three BYTES tensors of one shape (N,). Options of the judgment (votes, ...) go into `parameters`."""

    inputs: Annotated[list[V2Input], Field(min_length=3, max_length=3)]
    id: str | None = None
    parameters: dict[str, JsonValue] | None = None
    outputs: list[RequestOutput] | None = None

    def pairs(self) -> list[PairwiseRequest]:
        """The pairs that the tensors hold.

        Raises:
            BadInputError: a tensor is missing or has another shape than its data, or the parameters are no options.
        """
        for tensor in self.inputs:
            if tensor.shape != [len(tensor.data)]:
                raise BadInputError(
                    f"input '{tensor.name}' has shape {tensor.shape} and {len(tensor.data)} elements; expected "
                    f"shape [{len(tensor.data)}]."
                )
        columns = {tensor.name: tensor.data for tensor in self.inputs}
        lengths = {name: len(columns.get(name, ())) for name in TEXTS}
        if len(set(lengths.values())) != 1:
            raise BadInputError(
                f"the inputs have {', '.join(f'{n} of {name}' for name, n in lengths.items())}; expected as many of "
                f"each, from 1 to {MAX_PAIRS}."
            )
        rows = [{name: columns[name][number] for name in TEXTS} for number in range(lengths["question"])]
        options = {name: value for name, value in (self.parameters or {}).items() if name != ALL_BINARY}
        try:
            return [PairwiseRequest.model_validate({**options, **row}) for row in rows]
        except ValidationError as error:
            raise BadInputError(str(mistake_in(error))) from error

    def binary_outputs(self) -> set[str]:
        """The outputs that are wanted in binary."""
        by_default = (self.parameters or {}).get(ALL_BINARY) is True
        if not self.outputs:
            return set(OUTPUTS) if by_default else set()
        wanted = {output.name: (output.parameters or {}).get(ONE_BINARY, by_default) for output in self.outputs}
        return {name for name, binary in wanted.items() if binary is True}


class _BinaryRoute(APIRoute):
    """A route whose requests may have binary tensors: it gets them as JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See fastapi.routing.APIRoute."""
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            length = request.headers.get(HEADER)
            if length is not None:
                body = read_binary(await request.body(), length)
                others = [
                    pair for pair in request.scope["headers"] if pair[0] not in (b"content-type", b"content-length")
                ]
                headers = [*others, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]

                async def receive() -> dict[str, Any]:
                    return {"type": "http.request", "body": body, "more_body": False}

                request = Request({**request.scope, "headers": headers}, receive)
            return await handle(request)

        return read


def kserve_router(name: str, service: Callable[[], JudgeService], about: str | None = None) -> APIRouter:
    """KServe's routes v1 and v2, and the list of models in OpenAI's shape and KServe's at once.

    Args:
        name: of the judge as a model.
        service: gives the service, which exists once the app has started.
        about: what the judge is, in words for people; None: nothing is told.
    """
    router = APIRouter(tags=["kserve"])

    def check_name(asked: str) -> None:
        if asked != name:
            raise NoModelError(f"Model with name {asked} does not exist. GET /v1/models lists them.")

    async def judge(model_name: str, pairs: list[PairwiseRequest], request: Request) -> list[PairwiseResponse]:
        check_name(model_name)
        judging = (service().pairwise(pair, f"{request_id(request)}-{number}") for number, pair in enumerate(pairs))
        return await gather_or_cancel(judging)

    @router.get("/v1/models", responses=errors(401, 502, 503), tags=["openai"])
    async def models() -> dict[str, Any]:
        """The predictor's model as OpenAI lists it, and the judge's as KServe's v1 does."""
        card = await service().predictor.card()
        listed = {"id": card.name, "object": "model", "owned_by": "reasongenrm", "max_model_len": card.max_model_len}
        return {"object": "list", "data": [listed | {"about": about}], "models": [name]}

    # Before the route below, whose pattern its path fits too.
    @router.post("/v1/models/{model_name}:predict", response_model=V1Response, responses={**JUDGING, **errors(404)})
    async def predict(model_name: str, body: V1Request, request: Request) -> Any:
        """Judge pairs: KServe's v1 protocol."""
        return as_json(V1Response.model_construct(predictions=await judge(model_name, body.instances, request)))

    @router.get("/v1/models/{model_name}", response_model=ModelReadyResponse, responses=errors(401, 404, 422, 503))
    @router.get(
        "/v2/models/{model_name}/ready", response_model=ModelReadyResponse, responses=errors(401, 404, 422, 503)
    )
    async def model_ready(model_name: str, request: Request) -> Any:
        """Whether the model can judge now."""
        check_name(model_name)
        return ModelReadyResponse(name=name, ready=True) if await service().predictor.ready() else not_ready(request)

    @router.get("/v2", response_model=ServerMetadataResponse)
    async def v2_server() -> Any:
        """What this server is."""
        return ServerMetadataResponse(name="reasongenrm-judge", version=__version__, extensions=[EXTENSION])

    @router.get("/v2/health/live", response_model=ServerLiveResponse)
    async def v2_live() -> Any:
        """Whether the server runs."""
        return ServerLiveResponse(live=True)

    @router.get("/v2/health/ready", response_model=ServerReadyResponse, responses=errors(503))
    async def v2_ready(request: Request) -> Any:
        """Whether the server can judge now."""
        return ServerReadyResponse(ready=True) if await service().predictor.ready() else not_ready(request)

    @router.get(
        "/v2/models/{model_name}",
        response_model=ModelMetadataResponse,
        response_model_exclude_none=True,
        responses=errors(401, 404, 422),
    )
    async def v2_model(model_name: str) -> Any:
        """What the model takes and gives."""
        check_name(model_name)
        inputs = [MetadataTensor(name=text, datatype="BYTES", shape=[-1]) for text in TEXTS]
        outputs = [MetadataTensor(name=output, datatype=kind, shape=[-1]) for output, (kind, _) in OUTPUTS.items()]
        return ModelMetadataResponse(name=name, platform="", inputs=inputs, outputs=outputs)

    async def v2_infer(model_name: str, body: V2Request, request: Request) -> Any:
        """Judge pairs: the Open Inference Protocol, version 2, with tensors in JSON or binary."""
        answers = await judge(model_name, body.pairs(), request)
        wanted = {output.name for output in body.outputs} if body.outputs else set(OUTPUTS)
        outputs = [
            ResponseOutput(name=name, shape=[len(answers)], datatype=kind, data=[read(found) for found in answers])
            for name, (kind, read) in OUTPUTS.items()
            if name in wanted
        ]
        answer = InferenceResponse(model_name=model_name, id=body.id or request_id(request), outputs=outputs)
        binary = body.binary_outputs()
        if not binary & wanted & set(OUTPUTS):
            return answer
        content, length = write_binary(answer.model_dump(exclude_none=True), binary)
        return Response(content, headers={HEADER: str(length)}, media_type="application/octet-stream")

    router.add_api_route(
        "/v2/models/{model_name}/infer",
        v2_infer,
        methods=["POST"],
        response_model=InferenceResponse,
        response_model_exclude_none=True,
        responses={**JUDGING, **errors(404)},
        route_class_override=_BinaryRoute,
    )
    return router
