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
from reasongenrm.errors import mistake_in
from reasongenrm.judge.api import ErrorDetail, NoGuess, PairwiseRequest, PairwiseResponse, Text
from reasongenrm.judge.refusals import JudgeError
from reasongenrm.judge.server.routes import JUDGING, as_json, error_response, errors, not_ready, request_id
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
    from kserve import Model, ModelServer
    from kserve.errors import ModelNotFound
    from kserve.protocol.rest.v2_datamodels import (
        InferenceResponse,
        ModelMetadataResponse,
        ModelReadyResponse,
        RequestOutput,
        ResponseOutput,
        ServerLiveResponse,
        ServerMetadataResponse,
        ServerReadyResponse,
    )

MAX_PAIRS = 256  # of one predict or infer call
TEXTS = ("question", "answer_a", "answer_b")
OUTPUTS = {"preferred": "BYTES", "p_a": "FP64", "consistent": "BYTES", "reason": "BYTES"}


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
        columns: dict[str, list[Text]] = {tensor.name: tensor.data for tensor in self.inputs}
        lengths = {name: len(columns.get(name, [])) for name in TEXTS}
        if len(set(lengths.values())) != 1:
            raise BadInputError(
                f"the inputs have {', '.join(f'{n} of {name}' for name, n in lengths.items())}; expected as many of each, "
                f"from 1 to {MAX_PAIRS}."
            )
        rows = zip(*(columns[name] for name in TEXTS), strict=True)
        try:
            return [
                PairwiseRequest.model_validate({**(self.parameters or {}), **dict(zip(TEXTS, row, strict=True))})
                for row in rows
            ]
        except ValidationError as error:
            raise BadInputError(str(mistake_in(error))) from error


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
        return [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in OUTPUTS.items()]

    async def predict(
        self,
        payload: Mapping[str, list[PairwiseRequest]],
        headers: Mapping[str, str] | None = None,
        response_headers: Mapping[str, str] | None = None,  # noqa: ARG002 - KServe's signature
    ) -> dict[str, list[PairwiseResponse]]:
        """Judge the pairs {"instances": [...]}, all at once; {"predictions": [...]}.

        Raises:
            JudgeError: the judge failed.
        """
        own_id = (headers or {}).get("x-request-id", "kserve")
        judging = (
            self._service().pairwise(pair, f"{own_id}-{number}") for number, pair in enumerate(payload["instances"])
        )
        return {"predictions": await gather_or_cancel(judging)}


def _columns(answers: list[PairwiseResponse]) -> dict[str, list[Any]]:
    """OIP v2's outputs: preferred ("A", "B", "tie", "none"), p_a (-1: none), consistent ("true", "false", "none"), reason."""
    return {
        "preferred": [answer.preferred or "none" for answer in answers],
        "p_a": [-1.0 if answer.p_a is None else answer.p_a for answer in answers],
        "consistent": [str(answer.consistent).lower() for answer in answers],
        "reason": [answer.judgments[0].reason or "" if answer.judgments else "" for answer in answers],
    }


def kserve_router(server: ModelServer, service: Callable[[], JudgeService]) -> APIRouter:
    """KServe's routes v1 and v2, and the list of models in OpenAI's shape and KServe's at once.

    Args:
        server: its data plane and repository know the model.
    """
    router = APIRouter(tags=["kserve"])
    plane = server.dataplane

    async def judge(model_name: str, pairs: list[PairwiseRequest], request: Request) -> list[PairwiseResponse]:
        headers = {**request.headers, "x-request-id": request_id(request)}
        found, _ = await plane.infer(model_name, {"instances": pairs}, headers)
        predictions: list[PairwiseResponse] = found["predictions"]
        return predictions

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
        return as_json(V1Response.model_construct(predictions=await judge(model_name, body.instances, request)))

    @router.get("/v1/models/{model_name}", response_model=ModelReadyResponse, responses=errors(401, 404, 422, 503))
    @router.get(
        "/v2/models/{model_name}/ready", response_model=ModelReadyResponse, responses=errors(401, 404, 422, 503)
    )
    async def model_ready(model_name: str, request: Request) -> Any:
        """Whether the model can judge now."""
        ready = await plane.model_ready(model_name)
        return ModelReadyResponse(name=model_name, ready=True) if ready else not_ready(request)

    @router.get("/v2", response_model=ServerMetadataResponse)
    async def v2_server() -> Any:
        """What this server is."""
        return ServerMetadataResponse(name="reasongenrm-judge", version=__version__, extensions=[])

    @router.get("/v2/health/live", response_model=ServerLiveResponse)
    async def v2_live() -> Any:
        """Whether the server runs."""
        return ServerLiveResponse(live=True)

    @router.get("/v2/health/ready", response_model=ServerReadyResponse, responses=errors(503))
    async def v2_ready(request: Request) -> Any:
        """Whether the server can judge now."""
        ready = await plane.ready() and await service().ready()
        return ServerReadyResponse(ready=True) if ready else not_ready(request)

    @router.get(
        "/v2/models/{model_name}",
        response_model=ModelMetadataResponse,
        response_model_exclude_none=True,
        responses=errors(401, 404, 422),
    )
    async def v2_model(model_name: str) -> Any:
        """What the model takes and gives."""
        return await plane.model_metadata(model_name)

    @router.post(
        "/v2/models/{model_name}/infer",
        response_model=InferenceResponse,
        response_model_exclude_none=True,
        responses={**JUDGING, **errors(404)},
    )
    async def v2_infer(model_name: str, body: V2Request, request: Request) -> Any:
        """Judge pairs: the Open Inference Protocol, version 2."""
        answers = await judge(model_name, body.pairs(), request)
        wanted = {output.name for output in body.outputs} if body.outputs else set(OUTPUTS)
        outputs = [
            ResponseOutput(name=name, shape=[len(answers)], datatype=OUTPUTS[name], data=data)
            for name, data in _columns(answers).items()
            if name in wanted
        ]
        return InferenceResponse(model_name=model_name, id=body.id or request_id(request), outputs=outputs)

    return router


def unknown_model(request: Request, error: ModelNotFound) -> Response:
    """KServe's error in our shape."""
    return error_response(request, 404, ErrorDetail(message=f"{error}; GET /v1/models lists them.", code="no_model"))
