"""The judge as a KServe model: Open Inference Protocol v2 and v1 predict over the same service.

`JudgeModel` is registered in KServe's model repository and asked through KServe's data plane. The routes are declared here
and not by KServe's `register_v1_endpoints` and `register_v2_endpoints`, because these describe no bodies and no errors,
and let anybody load and unload models.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from reasongenrm import __version__
from reasongenrm.judge.api import ErrorDetail, NoGuess, PairwiseRequest, PairwiseResponse, Text
from reasongenrm.judge.refusals import JudgeError
from reasongenrm.judge.server.routes import JUDGING, as_json, error_response, errors, request_id
from reasongenrm.judge.service import JudgeService
from reasongenrm.processes.gathering import gather_or_cancel


@contextlib.contextmanager
def _without_arguments() -> Iterator[None]:
    """KServe reads the command line while it is imported, and would take our options for abbreviations of its own."""
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = argv


with _without_arguments():
    from kserve import InferRequest, InferResponse, Model, ModelServer
    from kserve.errors import ModelNotFound
    from kserve.protocol.infer_type import InferInput, InferOutput

MAX_PAIRS = 256  # of one predict or infer call
TEXTS = ("question", "answer_a", "answer_b")
OUTPUTS = ("preferred", "p_a", "consistent", "reason")


class BadInputError(JudgeError):
    """An inference request that is not about pairs."""

    status, code = 400, "invalid"


class V1Request(BaseModel):
    """v1 predict: pairs as instances."""

    model_config = ConfigDict(extra="forbid")
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


class V2RequestedOutput(BaseModel):
    """One output that is wanted."""

    name: str
    parameters: dict[str, JsonValue] | None = None


class V2Request(BaseModel):
    """OIP v2: three BYTES tensors of one shape (N,). Options of the judgment (votes, ...) go into `parameters`."""

    inputs: Annotated[list[V2Input], Field(min_length=3, max_length=3)]
    id: str | None = None
    parameters: dict[str, JsonValue] | None = None
    outputs: list[V2RequestedOutput] | None = None


class V2Output(BaseModel):
    """One output tensor: preferred ("A", "B", "tie", "none"), p_a (NaN is -1), consistent ("true", "false", "none"), reason."""

    name: str
    shape: list[int]
    datatype: str
    data: list[str | float]


class V2Response(BaseModel):
    """OIP v2's answer."""

    model_name: str
    id: str
    outputs: list[V2Output]


class V2Tensor(BaseModel):
    """What an input or output is like."""

    name: str
    datatype: str
    shape: list[int]


class V2Metadata(BaseModel):
    """What a model takes and gives."""

    name: str
    platform: str
    inputs: list[V2Tensor]
    outputs: list[V2Tensor]


class V2Server(BaseModel):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class V2Live(BaseModel):
    """The server runs."""

    live: bool


class V2Ready(BaseModel):
    """The server can judge."""

    ready: bool


class ModelReady(BaseModel):
    """The model can judge."""

    name: str
    ready: bool


class JudgeModel(Model):
    """The service behind KServe's `Model` interface.

    Args:
        name: under which it is registered.
        service: gives the service, which exists once the app has started.
    """

    def __init__(self, name: str, service: Callable[[], JudgeService]) -> None:
        super().__init__(name)
        self._service = service
        self.ready = True

    async def healthy(self) -> bool:
        """Whether the predictor answers."""
        return await self._service().ready()

    def get_input_types(self) -> list[dict[str, Any]]:
        """Three tensors of texts."""
        return [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in TEXTS]

    def get_output_types(self) -> list[dict[str, Any]]:
        """What comes back of each pair."""
        return [{"name": name, "datatype": "FP64" if name == "p_a" else "BYTES", "shape": [-1]} for name in OUTPUTS]

    async def predict(
        self,
        payload: Mapping[str, Any] | InferRequest,
        headers: Mapping[str, str] | None = None,
        response_headers: Mapping[str, str] | None = None,  # noqa: ARG002 - KServe's signature
    ) -> dict[str, Any] | InferResponse:
        """Judge pairs, all at once: v1 `{"instances": [...]}` or an OIP v2 request.

        Raises:
            JudgeError: what is asked is not about pairs, or the judge failed.
        """
        own_id = (headers or {}).get("x-request-id", "kserve")
        if isinstance(payload, InferRequest):
            pairs = _pairs_of(payload)
            return _infer_response(self.name, payload.id or own_id, await self._judge(pairs, own_id))
        try:
            asked = V1Request.model_validate(payload)
        except ValidationError as error:
            raise BadInputError(f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from error
        answers = await self._judge(asked.instances, own_id)
        return {"predictions": answers}

    async def _judge(self, pairs: list[PairwiseRequest], own_id: str) -> list[PairwiseResponse]:
        return await gather_or_cancel(
            self._service().pairwise(pair, f"{own_id}-{number}") for number, pair in enumerate(pairs)
        )


def _pairs_of(request: InferRequest) -> list[PairwiseRequest]:
    tensors: dict[str, list[str]] = {}
    for tensor in request.inputs:
        if tensor.datatype != "BYTES" or tensor.name not in TEXTS:
            raise BadInputError(
                f"input '{tensor.name}' has datatype {tensor.datatype}; expected BYTES tensors {', '.join(TEXTS)}."
            )
        data = tensor.data or []
        tensors[tensor.name] = [
            text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in data
        ]
    lengths = {name: len(tensors.get(name, [])) for name in TEXTS}
    if len(set(lengths.values())) != 1 or not 0 < lengths["question"] <= MAX_PAIRS:
        raise BadInputError(
            f"the inputs have {', '.join(f'{n} of {name}' for name, n in lengths.items())}; expected as many of each, "
            f"from 1 to {MAX_PAIRS}."
        )
    try:
        return [
            PairwiseRequest.model_validate({**(request.parameters or {}), "question": q, "answer_a": a, "answer_b": b})
            for q, a, b in zip(*(tensors[name] for name in TEXTS), strict=True)
        ]
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BadInputError(f"{where}: {error.errors()[0]['msg']}") from error


def _infer_response(name: str, own_id: str, answers: list[PairwiseResponse]) -> InferResponse:
    columns: dict[str, list[Any]] = {
        "preferred": [answer.preferred or "none" for answer in answers],
        "p_a": [-1.0 if answer.p_a is None else answer.p_a for answer in answers],
        "consistent": [str(answer.consistent).lower() for answer in answers],
        "reason": [answer.judgments[0].reason or "" if answer.judgments else "" for answer in answers],
    }
    outputs = [
        InferOutput(column, [len(answers)], "FP64" if column == "p_a" else "BYTES", data)
        for column, data in columns.items()
    ]
    return InferResponse(own_id, name, outputs)


def kserve_router(server: ModelServer, service: Callable[[], JudgeService]) -> APIRouter:
    """KServe's routes v1 and v2, and the list of models in OpenAI's shape and KServe's at once.

    Args:
        server: its data plane and repository know the model.
    """
    router = APIRouter(tags=["kserve"])
    plane = server.dataplane

    async def infer(model_name: str, payload: Any, request: Request) -> Any:
        headers = {**request.headers, "x-request-id": request_id(request)}
        found, _ = await plane.infer(model_name, payload, headers)
        return found

    @router.get("/v1/models", responses=errors(401, 502, 503), tags=["openai"])
    async def models() -> dict[str, Any]:
        """The predictor's model as OpenAI lists it, and the judge's as KServe's v1 does."""
        card = await service().predictor.card()
        listed = {"id": card.name, "object": "model", "owned_by": "reasongenrm", "max_model_len": card.max_model_len}
        return {"object": "list", "data": [listed], "models": list(plane.model_registry.get_models())}

    # Before the route below, whose pattern its path fits too.
    @router.post("/v1/models/{model_name}:predict", response_model=V1Response, responses={**JUDGING, **errors(404)})
    async def predict(model_name: str, body: V1Request, request: Request) -> Any:
        """Judge pairs: KServe's v1 protocol."""
        found = await infer(model_name, {"instances": body.instances}, request)
        return as_json(V1Response.model_construct(predictions=found["predictions"]))

    @router.get("/v1/models/{model_name}", response_model=ModelReady, responses=errors(401, 404, 422, 503))
    async def v1_ready(model_name: str, request: Request) -> Any:
        """Whether the model can judge now."""
        ready = await plane.model_ready(model_name)
        return ModelReady(name=model_name, ready=True) if ready else _not_ready(request)

    @router.get("/v2", response_model=V2Server)
    async def v2_server() -> Any:
        """What this server is."""
        return V2Server(name="reasongenrm-judge", version=__version__, extensions=[])

    @router.get("/v2/health/live", response_model=V2Live)
    async def v2_live() -> Any:
        """Whether the server runs."""
        return V2Live(live=True)

    @router.get("/v2/health/ready", response_model=V2Ready, responses=errors(503))
    async def v2_ready(request: Request) -> Any:
        """Whether the server can judge now."""
        return V2Ready(ready=True) if await plane.ready() and await service().ready() else _not_ready(request)

    @router.get("/v2/models/{model_name}", response_model=V2Metadata, responses=errors(401, 404, 422))
    async def v2_model(model_name: str) -> Any:
        """What the model takes and gives."""
        metadata = await plane.model_metadata(model_name)
        return V2Metadata.model_validate(metadata)

    @router.get("/v2/models/{model_name}/ready", response_model=ModelReady, responses=errors(401, 404, 422, 503))
    async def v2_model_ready(model_name: str, request: Request) -> Any:
        """Whether the model can judge now."""
        return await v1_ready(model_name, request)

    @router.post("/v2/models/{model_name}/infer", response_model=V2Response, responses={**JUDGING, **errors(404)})
    async def v2_infer(model_name: str, body: V2Request, request: Request) -> Any:
        """Judge pairs: the Open Inference Protocol, version 2."""
        for tensor in body.inputs:
            if tensor.shape != [len(tensor.data)]:
                raise BadInputError(
                    f"input '{tensor.name}' has shape {tensor.shape} and {len(tensor.data)} elements; expected "
                    f"shape [{len(tensor.data)}]."
                )
        tensors = [InferInput(tensor.name, tensor.shape, tensor.datatype, tensor.data) for tensor in body.inputs]
        asked = InferRequest(model_name, tensors, body.id, parameters=body.parameters)
        found = await infer(model_name, asked, request)
        wanted = {output.name for output in body.outputs} if body.outputs else set(OUTPUTS)
        outputs = [
            V2Output(name=output.name, shape=output.shape, datatype=output.datatype, data=output.data)
            for output in found.outputs
            if output.name in wanted
        ]
        return V2Response(model_name=model_name, id=found.id, outputs=outputs)

    return router


def _not_ready(request: Request) -> Response:
    detail = ErrorDetail(message="The predictor does not answer yet. Ask again later.", code="predictor_unavailable")
    return error_response(request, 503, detail, {"Retry-After": "5"})


def unknown_model(request: Request, error: ModelNotFound) -> Response:
    """KServe's error in our shape."""
    return error_response(request, 404, ErrorDetail(message=f"{error}; GET /v1/models lists them.", code="no_model"))
