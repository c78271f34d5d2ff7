"""A Kubeflow Model Registry that keeps what it is sent, for the paths that we use.

It behaves as kubeflow/hub (formerly kubeflow/model-registry) at bd07139: an unknown field is HTTP 400
(internal/server/openapi/api_model_registry_service.go decodes with DisallowUnknownFields), a missing one 422
(error.go), a search without a hit 404 and a name that is taken 409 (internal/core/model_version.go, artifact.go); names
are unique among the children of one parent (internal/converter/openapi_converter_util.go, PrefixWhenOwned); ids are
numbers as text, unique within contexts and within artifacts; an update without a field keeps it, one with
customProperties replaces all of them. What comes and goes is held against the schemas in model_registry_api.yaml. Newer
registries serve the same under v1, and v1alpha3 until its sunset (red-hat-data-services/model-registry at ba40a36,
internal/server/middleware/deprecation.go); a path that a registry does not know is a 404 of its router, as here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from referencing import Registry
from referencing import Resource as Document
from referencing.jsonschema import DRAFT202012
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

_SPEC = yaml.safe_load(Path(__file__).with_name("model_registry_api.yaml").read_text())
_SCHEMAS = _SPEC["components"]["schemas"]
Item = dict[str, Any]


def fields_of(name: str) -> set[str]:
    """Every field that a schema knows, those of the schemas that it is made of included."""
    schema, found = _SCHEMAS[name], set()
    for part in [schema, *schema.get("allOf", ())]:
        found |= fields_of(part["$ref"].rpartition("/")[2]) if "$ref" in part else set(part.get("properties", ()))
    return found


def hold_against(name: str, body: Item) -> None:
    """Raise if a body is not what the schema says, or has a field that it does not know."""
    registry = Registry().with_resource("spec", Document.from_contents(_SPEC, default_specification=DRAFT202012))
    schema = {"$ref": f"spec#/components/schemas/{name}"}
    jsonschema.Draft202012Validator(schema, registry=registry).validate(body)
    unknown = body.keys() - fields_of(name)
    if unknown:
        raise jsonschema.ValidationError(f"json: unknown field {sorted(unknown)[0]!r}")


class FakeModelRegistry:
    """Serve `app` (tests.endpoints.serving).

    Attributes:
        items: by kind ("registered_model", "model_version", "model_artifact"), in the order of their creation.
        root: where its API is, with its version.
        requests: method and path of each request, in order.
        headers: of each request.
        replies: answers to give instead, to the next requests; None: the usual one.
        loses: whether the answer to the next creation is lost, after it was carried out.
    """

    def __init__(self, version: str = "v1") -> None:
        self.root = f"/api/model_registry/{version}"
        self.items: dict[str, list[Item]] = {"registered_model": [], "model_version": [], "model_artifact": []}
        self.requests: list[tuple[str, str]] = []
        self.headers: list[Mapping[str, str]] = []
        self.replies: list[Response | None] = []
        self.loses = False
        routes = [
            *[("GET", kind, self._find) for kind in self.items],
            ("GET", "registered_models", self._list),
            ("POST", "registered_models", self._create_model),
            ("POST", "model_versions", self._create_version),
            ("PATCH", "model_versions/{id}", self._update),
            ("POST", "model_versions/{id}/artifacts", self._create_artifact),
            ("PATCH", "model_artifacts/{id}", self._update),
        ]
        self.app = Starlette(
            routes=[Route(f"{self.root}/{path}", self._handled(do), methods=[verb]) for verb, path, do in routes]
        )

    def _handled(self, handle: Any) -> Any:
        async def handler(request: Request) -> Response:
            self.requests.append((request.method, request.url.path.removeprefix(f"{self.root}/")))
            self.headers.append(request.headers)
            if self.replies and (reply := self.replies.pop(0)) is not None:
                return reply
            try:
                return handle(request, await request.json() if request.method != "GET" else {})
            except jsonschema.ValidationError as error:
                status = 422 if error.validator == "required" else 400
                return refused(status, "Bad Request", error.message)

        return handler

    def _list(self, _: Request, __: Item) -> Response:
        items = [self._shown(item) for item in self.items["registered_model"]]
        body = {"items": items, "nextPageToken": "", "pageSize": 100, "size": len(items)}
        hold_against("RegisteredModelList", body)
        return JSONResponse(body)

    def _shown(self, item: Item) -> Item:
        return {name: value for name, value in item.items() if name != "_parent"}

    def _find(self, request: Request, _: Item) -> Response:
        kind, query = request.url.path.rpartition("/")[2], request.query_params
        parent = query.get("parentResourceId")
        for item in self.items[kind]:
            if item["name"] == query["name"] and (kind == "registered_model" or item["_parent"] == parent):
                return self._answer(kind, item, 200)
        return refused(404, "Not Found", f"no {kind} found for name={query['name']}, parentResourceId={parent}")

    def _create_model(self, _: Request, body: Item) -> Response:
        hold_against("RegisteredModelCreate", body)
        return self._create("registered_model", None, {"state": "LIVE", **body})

    def _create_version(self, _: Request, body: Item) -> Response:
        hold_against("ModelVersionCreate", body)
        return self._create("model_version", body["registeredModelId"], {"state": "LIVE", **body})

    def _create_artifact(self, request: Request, body: Item) -> Response:
        # The server reads `artifactType` first; without one it finds no artifact in the body at all.
        if body.get("artifactType") != "model-artifact":
            return refused(400, "Bad Request", "invalid artifact type")
        hold_against("ModelArtifact", body)
        version = request.path_params["id"]
        if version not in [item["id"] for item in self.items["model_version"]]:
            return refused(404, "Not Found", f"no model version found for id {version}")
        return self._create("model_artifact", version, body)

    def _create(self, kind: str, parent: str | None, body: Item) -> Response:
        taken = [item for item in self.items[kind] if (item["name"], item["_parent"]) == (body["name"], parent)]
        if taken:
            return refused(409, "Conflict", f"{kind} with name {body['name']} already exists")
        table = ("model_artifact",) if kind == "model_artifact" else ("registered_model", "model_version")
        times = {"createTimeSinceEpoch": "1764522000000", "lastUpdateTimeSinceEpoch": "1764522000000"}
        item = {**body, **times, "id": str(1 + sum(len(self.items[each]) for each in table)), "_parent": parent}
        self.items[kind].append(item)
        if self.loses:
            self.loses = False
            return Response("upstream connect error", status_code=503)
        return self._answer(kind, item, 201)

    def _update(self, request: Request, body: Item) -> Response:
        kind = request.url.path.removeprefix(f"{self.root}/").partition("/")[0].removesuffix("s")
        hold_against({"model_version": "ModelVersionUpdate", "model_artifact": "ModelArtifactUpdate"}[kind], body)
        (item,) = [item for item in self.items[kind] if item["id"] == request.path_params["id"]]
        item.update(body)
        return self._answer(kind, item, 200)

    def _answer(self, kind: str, item: Item, status: int) -> Response:
        answer = self._shown(item)
        schema = {
            "registered_model": "RegisteredModel",
            "model_version": "ModelVersion",
            "model_artifact": "ModelArtifact",
        }[kind]
        hold_against(schema, answer)
        return JSONResponse(answer, status)


def refused(status: int, code: str, message: str) -> Response:
    """An error as the server words it (internal/server/openapi/helpers.go, ErrorResponse)."""
    body = {"code": code, "message": message}
    hold_against("Error", body)
    return JSONResponse(body, status)
