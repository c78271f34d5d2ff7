"""A Kubeflow Pipelines API server for the tests: HTTP, the v2beta1 endpoints that reasongenrm/runs/kfp.py calls, in
memory.

Answers, names of workflow nodes and the odd ways of the log endpoint are those of kubeflow/pipelines,
backend/src/apiserver at 2.17.0. A run does what its test makes it do (`FakeRun.set`, `FakeKfp.on_get`).
"""

import email
import email.policy
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tests.endpoints import serving

START = "2026-11-24T10:00:00Z"
END = "2026-11-24T10:01:30Z"
NEVER = "1970-01-01T00:00:00Z"
_FINAL = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}
_KINDS = {"STRING": str, "NUMBER_INTEGER": int, "STRUCT": dict, "LIST": list, "BOOLEAN": bool}


class Refusal(Exception):
    """An answer with an error, in the shape of the API."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class FakeRun:
    """One run; `nodes` is what the API lists as its tasks, `logs` what is there by pod name or node id."""

    run_id: str
    body: dict[str, Any]
    state: str = "PENDING"
    error: str | None = None
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, state: str, log: str | None = None) -> None:
        """Put a task of the pipeline into a state; a log is archived under the id of its executor's node."""
        node_id = f"wf-{len(key)}{sum(map(ord, key))}"
        end = END if state in _FINAL else NEVER
        times = {"create_time": START, "start_time": START, "end_time": end}
        self.nodes[f"{key}-driver"] = {"display_name": f"{key}-driver", "state": "SUCCEEDED", **times}
        self.nodes[key] = {"display_name": key, "state": state, "child_tasks": [{"pod_name": node_id}], **times}
        if log is not None:
            self.logs[node_id] = log

    def answer(self) -> dict[str, Any]:
        """The run as the API gives it."""
        ended = self.state in _FINAL
        return {
            **self.body,
            "run_id": self.run_id,
            "state": self.state,
            "created_at": START,
            "finished_at": END if ended else NEVER,
            **({"error": {"code": 2, "message": self.error}} if self.error else {}),
            "run_details": {"task_details": [{"run_id": self.run_id, **node} for node in self.nodes.values()]},
        }


class FakeKfp:
    """The server's state; every request is in `seen` as "METHOD /path"."""

    def __init__(self, token: str | None = None, multi_user: bool = False) -> None:
        self.token, self.multi_user = token, multi_user
        self.seen: list[str] = []
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, FakeRun] = {}
        self.on_get: Callable[[FakeRun], None] = lambda _run: None
        self.on_create: Callable[[str], None] = lambda _kind: None
        self.failing: list[tuple[int, str]] = []  # status and message of the next answers
        self.forbidden_namespaces: set[str] = set()
        self.url = ""

    def fail_next(self, status: int, message: str = "out of order", times: int = 1) -> None:
        """Answer the next requests with an error."""
        self.failing += [(status, message)] * times

    @contextmanager
    def running(self) -> Iterator["FakeKfp"]:
        """Serve while the context is open."""
        with serving(self._app()) as self.url:
            yield self

    def _app(self) -> Starlette:
        routes = [
            ("GET", "/apis/v2beta1/healthz", self._healthz),
            ("GET", "/apis/v2beta1/pipelines", self._list_pipelines),
            ("POST", "/apis/v2beta1/pipelines", self._create_pipeline),
            ("POST", "/apis/v2beta1/pipelines/upload_version", self._upload_version),
            ("GET", "/apis/v2beta1/pipelines/{pipeline_id}/versions", self._list_versions),
            ("GET", "/apis/v2beta1/pipelines/{pipeline_id}/versions/{version_id}", self._get_version),
            ("GET", "/apis/v2beta1/experiments", self._list_experiments),
            ("POST", "/apis/v2beta1/experiments", self._create_experiment),
            ("GET", "/apis/v2beta1/runs", self._list_runs),
            ("POST", "/apis/v2beta1/runs", self._create_run),
            ("POST", "/apis/v2beta1/runs/{run_id}:terminate", self._terminate),
            ("GET", "/apis/v2beta1/runs/{run_id}", self._get_run),
            ("GET", "/apis/v1alpha1/runs/{run_id}/nodes/{node_id}/log", self._log),
        ]
        return Starlette(routes=[Route(path, self._guarded(call), methods=[method]) for method, path, call in routes])

    def _guarded(self, call: Callable[[Request, bytes], Any]) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            self.seen.append(f"{request.method} {request.url.path}")
            body = await request.body()
            try:
                if self.failing:
                    raise Refusal(*self.failing.pop(0))
                if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
                    raise Refusal(401, "Request header error: there is no user identity header.: Unauthenticated")
                if request.query_params.get("namespace") in self.forbidden_namespaces:
                    raise Refusal(403, "PermissionDenied: User 'eve' is not authorized with reason")
                found = call(request, body)
            except Refusal as refusal:
                return JSONResponse(
                    {"error": refusal.message, "code": 16, "message": refusal.message, "details": []},
                    status_code=refusal.status,
                )
            return found if isinstance(found, Response) else JSONResponse(found)

        return answer

    def _healthz(self, request: Request, body: bytes) -> Any:  # noqa: ARG002 - the shape of every endpoint
        return {"multi_user": self.multi_user, "pipeline_store": "database"}

    def _list_pipelines(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        return {"pipelines": _matching(request, self._here(request, self.pipelines))}

    def _create_pipeline(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        return self._create("pipeline", self.pipelines, json.loads(body))

    def _upload_version(self, request: Request, body: bytes) -> Any:
        head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
        (part,) = message.iter_parts()
        assert part.get_param("name", header="content-disposition") == "uploadfile"
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        spec, platform = yaml.safe_load_all(content)
        values = {
            "pipeline_id": request.query_params["pipelineid"],
            "display_name": request.query_params["name"],
            "pipeline_spec": {"pipeline_spec": spec, "platform_spec": platform},
        }
        if values["pipeline_id"] not in self.pipelines:
            raise Refusal(404, "Pipeline not found")
        return self._create("pipeline_version", self.versions, values)

    def _list_versions(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        ours = [item for item in self.versions.values() if item["pipeline_id"] == request.path_params["pipeline_id"]]
        return {"pipeline_versions": _matching(request, ours)}

    def _get_version(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        return _known(self.versions, request.path_params["version_id"])

    def _list_experiments(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        return {"experiments": _matching(request, self._here(request, self.experiments))}

    def _create_experiment(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        return self._create("experiment", self.experiments, json.loads(body))

    def _create(self, kind: str, items: dict[str, dict[str, Any]], values: dict[str, Any]) -> dict[str, Any]:
        self.on_create(kind)
        names = [(item["display_name"], item.get("namespace"), item.get("pipeline_id")) for item in items.values()]
        if kind == "pipeline_version":
            taken = (values["display_name"], None, values["pipeline_id"]) in names
        else:
            taken = (values["display_name"], values.get("namespace")) in [name[:2] for name in names]
        if taken:
            raise Refusal(409, f"Already exist error: The name {values['display_name']} already exist")
        made = {**values, f"{kind}_id": str(uuid.uuid4()), "created_at": START}
        items[made[f"{kind}_id"]] = made
        return made

    def _create_run(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        values = json.loads(body)
        _known(self.experiments, values["experiment_id"])
        version = _known(self.versions, values["pipeline_version_reference"]["pipeline_version_id"])
        definitions = version["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
        _check_arguments(values["runtime_config"]["parameters"], definitions)
        run = FakeRun(str(uuid.uuid4()), values)
        self.runs[run.run_id] = run
        return run.answer()

    def _get_run(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        run = self._run(request)
        self.on_get(run)
        return run.answer()

    def _list_runs(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        found = [run.answer() for run in reversed(self.runs.values())]
        found = _matching(request, found)
        size, first = int(request.query_params.get("page_size", 10)), int(request.query_params.get("page_token") or 0)
        more = {"next_page_token": str(first + size)} if len(found) > first + size else {}
        return {"runs": found[first : first + size], "total_size": len(found), **more}

    def _terminate(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        run = self._run(request)
        if run.state in _FINAL:
            raise Refusal(400, f"Failed to terminate a run {run.run_id}. Row not found")
        run.state = "CANCELING"
        return {}

    def _log(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        run, node = self._run(request), request.path_params["node_id"]
        if node in run.logs:
            return PlainTextResponse(run.logs[node])
        # The real server has sent its 200 by now.
        error = {"error_message": f"BadRequestError: Failed to read logs for run {run.run_id}", "error_details": "..."}
        return PlainTextResponse(json.dumps(error, separators=(",", ":")))

    def _run(self, request: Request) -> FakeRun:
        found = self.runs.get(request.path_params["run_id"])
        if found is None:
            raise Refusal(404, f"ResourceNotFoundError: Run {request.path_params['run_id']} not found")
        return found

    def _here(self, request: Request, items: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        namespace = request.query_params.get("namespace")
        if self.multi_user and not namespace:
            raise Refusal(400, "Invalid input error: Namespace is empty")
        return [item for item in items.values() if not self.multi_user or item.get("namespace") == namespace]


def _matching(request: Request, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    given = request.query_params.get("filter")
    predicates = json.loads(given)["predicates"] if given else []
    for predicate in predicates:
        assert predicate["operation"] in ("EQUALS", 1)
        items = [item for item in items if item[predicate["key"]] == predicate["stringValue"]]
    return items


def _known(items: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
    if key not in items:
        raise Refusal(404, f"ResourceNotFoundError: {key} not found")
    return items[key]


def _check_arguments(arguments: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Refuse what the pipeline has no parameter for, what is missing, and what is of another type."""
    unknown = arguments.keys() - definitions.keys()
    missing = {name for name, given in definitions.items() if not given.get("isOptional")} - arguments.keys()
    wrong = [
        name
        for name in arguments.keys() & definitions.keys()
        if not isinstance(arguments[name], _kind(definitions[name]))
    ]
    if unknown or missing or wrong:
        raise Refusal(
            400, f"InvalidInputError: unknown {sorted(unknown)}, missing {sorted(missing)}, wrong {sorted(wrong)}"
        )


def _kind(definition: dict[str, Any]) -> type:
    return _KINDS[definition["parameterType"]]


@contextmanager
def login_page() -> Iterator[str]:
    """A server that answers everything with a page for people, as a proxy does that wants a login."""

    async def page(request: Request) -> Response:  # noqa: ARG001
        return HTMLResponse("<html><body>Log in to Dex</body></html>")

    with serving(Starlette(routes=[Route("/{path:path}", page)])) as url:
        yield url
