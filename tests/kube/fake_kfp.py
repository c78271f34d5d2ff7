"""A Kubeflow Pipelines API server for the tests, or the UI in front of it: HTTP, the endpoints that
reasongenrm/runs/kfp.py calls, in memory.

Answers and the odd ways of the log endpoint are those of kubeflow/pipelines, backend/src/apiserver and frontend/server
at 2.17.0. A run does what its test makes its Workflow do (`FakeRun.set`, `FakeKfp.on_get`).
"""

import base64
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
from tests.kube.argo import END, FULFILLED, START, FakeWorkflow

NEVER = "1970-01-01T00:00:00Z"
_FINAL = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}
# A Workflow's phase -> a run's state: backend/src/apiserver/model/run.go (ToV2). No phase leads to CANCELED.
_STATES = {"": "RUNTIME_STATE_UNSPECIFIED", "Pending": "PENDING", "Running": "RUNNING", "Succeeded": "SUCCEEDED"}
_STATES |= {"Failed": "FAILED", "Error": "FAILED"}
_KINDS = {"STRING": str, "NUMBER_INTEGER": int, "STRUCT": dict, "LIST": list, "BOOLEAN": bool}


class Refusal(Exception):
    """An answer with an error, in the shape of the API."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class FakeRun:
    """One run, as KFP's database has it, and its Workflow.

    Attributes:
        manifests: the Workflow as it was made, and as KFP's persistence agent has reported it last.
        logs: what the pods wrote, by their names.
        pods_are_gone: only archived logs are left.
    """

    run_id: str
    body: dict[str, Any]
    workflow: FakeWorkflow
    state: str = "PENDING"
    history: list[str] = field(default_factory=lambda: ["PENDING"])
    manifests: dict[str, str] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    pods_are_gone: bool = False

    def start(self) -> None:
        """Argo begins with it."""
        self.workflow.start()
        self.report()

    def set(self, task: str, phase: str, log: str | None = None, message: str = "", tries: int = 1) -> None:
        """Put a task of the pipeline into a phase of Argo's; a log is of its newest pod."""
        self.workflow.set(task, phase, message, tries)
        if log is not None:
            self.logs[self.workflow.pods(task)[-1]] = log
        self.report()

    def end(self, phase: str, message: str = "") -> None:
        """Its Workflow ends."""
        self.workflow.end(phase, message)
        self.report()

    def stop(self, *, agent_is_slow: bool = False) -> None:
        """Argo ends the Workflow of a run that is to be cancelled, before or after the agent has seen the wish."""
        if not agent_is_slow:
            self.report()
        self.workflow.stop()
        self.report()

    def report(self) -> None:
        """What KFP's persistence agent tells the API server: backend/src/apiserver, resource/resource_manager.go
        (ReportWorkflowResource), storage/run_store.go (UpdateRun)."""
        state = _STATES[self.workflow.phase]
        self.state = "CANCELING" if self.workflow.deadline == 0 and state not in _FINAL else state
        if self.history[-1] != self.state:
            self.history.append(self.state)
        self.manifests["workflow_manifest"] = self.workflow.manifest()

    def answer(self) -> dict[str, Any]:
        """The run as the v2beta1 API gives it, without its tasks, which nobody reads: they are those of the Workflow's
        nodes, until Argo compresses them. The API has no `error` for a run that failed."""
        # The value 0 of an enumeration is left out: backend/src/apiserver/common/utils.go (CustomMarshaler).
        return {
            **self.body,
            "run_id": self.run_id,
            **({"state": self.state} if self.state != _STATES[""] else {}),
            "state_history": [
                {"update_time": START, **({"state": state} if state != _STATES[""] else {})} for state in self.history
            ],
            "created_at": START,
            "finished_at": END if self.state in _FINAL else NEVER,
        }

    def archived_log(self, pod: str) -> str | None:
        """What KFP finds of a pod's log in the store, by the nodes of the Workflow that it keeps: none, if they are
        compressed (backend/src/common/util/workflow.go, FindObjectStoreArtifactKeyOrEmpty)."""
        nodes = json.loads(self.manifests.get("workflow_manifest", "{}")).get("status", {}).get("nodes", {})
        ended = [self.workflow.pod_name(node) for node in nodes.values() if node["phase"] in FULFILLED]
        return self.logs.get(pod) if pod in ended else None


class FakeKfp:
    """The server's state; every request is in `seen` as "METHOD /path".

    Args:
        ui: be the UI, which hands two versions of the API through, and answers the rest itself.
        stock_retries: how Argo is configured (see FakeWorkflow).
    """

    def __init__(
        self, token: str | None = None, multi_user: bool = False, *, ui: bool = False, stock_retries: bool = True
    ) -> None:
        self.token, self.multi_user, self.ui, self.stock_retries = token, multi_user, ui, stock_retries
        self.api_is_ready = True  # behind the UI
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
            ("GET", "/apis/v1beta1/runs/{run_id}", self._get_detail),
            ("GET", "/apis/v2beta1/runs/{run_id}/nodes/{node_id}/artifacts/{name}:read", self._read_artifact),
        ]
        if self.ui:
            routes += [("GET", "/k8s/pod/logs", self._pod_log)]
        else:
            routes += [("GET", "/apis/v1alpha1/runs/{run_id}/nodes/{node_id}/log", self._log)]
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
        health = {"multi_user": self.multi_user, "pipeline_store": "database"}
        if not self.ui:
            return health
        about = {"frontendTagName": "2.17.0", "frontendCommitHash": "a", "apiServerReady": self.api_is_ready}
        return {**about, **(health if self.api_is_ready else {})}

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
        spec, platform = yaml.load_all(content, Loader=yaml.CSafeLoader)  # half a megabyte
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
        run_id = str(uuid.uuid4())
        namespace = self.experiments[values["experiment_id"]].get("namespace") or "kubeflow"
        spec = version["pipeline_spec"]["pipeline_spec"]
        workflow = FakeWorkflow(run_id, spec, stock_retries=self.stock_retries, namespace=namespace)
        run = FakeRun(run_id, values, workflow, manifests={"pipeline_manifest": workflow.manifest()})
        self.runs[run_id] = run
        return run.answer()

    def _get_run(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        run = self._run(request)
        self.on_get(run)
        return run.answer()

    def _get_detail(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        """backend/src/apiserver/server/api_converter.go (toApiRunDetailV1)."""
        run = self._run(request)
        return {"run": {"id": run.run_id}, "pipeline_runtime": run.manifests}

    def _list_runs(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        found = [run.answer() for run in reversed(self.runs.values())]
        found = _matching(request, found)
        size, first = int(request.query_params.get("page_size", 10)), int(request.query_params.get("page_token") or 0)
        more = {"next_page_token": str(first + size)} if len(found) > first + size else {}
        return {"runs": found[first : first + size], "total_size": len(found), **more}

    def _terminate(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        self.cancel(self._run(request))
        return {}

    def cancel(self, run: FakeRun) -> None:
        """Somebody cancels a run."""
        if run.state in _FINAL | {"CANCELING"}:  # backend/src/apiserver/storage/run_store.go (TerminateRun)
            raise Refusal(400, f"Failed to terminate a run {run.run_id}. Row not found")
        run.state = "CANCELING"  # not in the history
        run.workflow.terminate()

    def _log(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        run, pod = self._run(request), request.path_params["node_id"]
        found = run.archived_log(pod) if run.pods_are_gone else run.logs.get(pod)
        if found is not None:
            return PlainTextResponse(found)
        # The real server has sent its 200 by now.
        error = {"error_message": f"BadRequestError: Failed to read logs for run {run.run_id}", "error_details": "..."}
        return PlainTextResponse(json.dumps(error, separators=(",", ":")))

    def _read_artifact(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        """backend/src/apiserver/server/run_artifact_server.go."""
        assert request.path_params["name"] == "main-logs"
        found = self._run(request).archived_log(request.path_params["node_id"])
        if found is None:
            raise Refusal(404, "artifact not found: <nil>")
        return {"data": base64.b64encode(found.encode()).decode()}

    def _pod_log(self, request: Request, body: bytes) -> Any:  # noqa: ARG002
        """frontend/server/handlers/pod-logs.ts."""
        given = request.query_params
        if self.multi_user and not given.get("podnamespace"):
            return PlainTextResponse("podnamespace argument is required", 422)
        for run in self.runs.values():
            if given["podname"] in run.logs and not run.pods_are_gone:
                assert given["podnamespace"] == run.workflow.namespace
                return PlainTextResponse(run.logs[given["podname"]])
        return PlainTextResponse("Could not get main container logs: Error: pods not found", 500)

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
