"""Kubeflow Pipelines' API server: pipeline versions, runs with their tasks, logs.

Built on kfp_server_api, the generated client below kfp.Client. kfp.Client itself is not used: it prints to stdout,
keeps its namespace in a file below the home folder (which a pod may not write), and waits 25 s before it says that
nobody answers.
"""

import base64
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from reasongenrm.errors import ClusterError, ConfigError
from reasongenrm.kubernetes.connection import NotFoundError, UnavailableError
from reasongenrm.kubernetes.waiting import poll
from reasongenrm.runs.kfp_runs import ClusterRun, read_run, with_tasks
from reasongenrm.runs.workflow import read_workflow

log = logging.getLogger(__name__)

# kfp's own names (kubeflow/pipelines, sdk/python/kfp/client/client.py and set_volume_credentials.py at 2.17.0), but for
# the first: kfp takes a token from the caller only.
TOKEN_ENV = "KF_PIPELINES_TOKEN"
COOKIE_ENV = "KF_PIPELINES_COOKIE"
HOST_ENV = "KF_PIPELINES_ENDPOINT"
UI_ENV = "KF_PIPELINES_UI_ENDPOINT"
TOKEN_PATH_ENV = "KF_PIPELINES_SA_TOKEN_PATH"
TOKEN_PATH = "/var/run/secrets/kubeflow/pipelines/token"

_PAGE_SIZE = 50
_NUM_RETRIES = 4  # of what only reads, after 0, 1, 2 and 4 s, or as Retry-After says
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 60.0
POLL_SECONDS = 5.0

RUN_NAMESPACE = "kubeflow"  # of a KFP of one user: it runs everything where it is itself
_RUN_PAGE = "/#/runs/details/"
_LOG_ARTIFACT = "main-logs"  # Argo's name of an archived log

T = TypeVar("T")


@dataclass(frozen=True)
class PipelineVersion:
    """A version of a pipeline on the server."""

    pipeline_id: str
    version_id: str
    name: str


class PipelineServer:
    """One API server of Kubeflow Pipelines.

    Args:
        host: its address, or that of the KFP UI, which hands the API through.
        namespace: the profile, where KFP has several users; None for a KFP of one user.
    """

    def __init__(self, host: str, namespace: str | None) -> None:
        import kfp_server_api as api
        from urllib3 import Retry

        self.host, self.namespace = host.rstrip("/"), namespace
        configuration = api.Configuration(host=self.host)
        configuration.ssl_ca_cert = os.environ.get("SSL_CERT_FILE")
        configuration.retries = Retry(
            _NUM_RETRIES, connect=2, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), raise_on_status=False
        )
        configuration.api_key_prefix["authorization"] = "Bearer"
        configuration.refresh_api_key_hook = _read_token
        _read_token(configuration)  # without a first token the client never asks for the next
        self._api = api
        self._client = api.ApiClient(configuration, cookie=os.environ.get(COOKIE_ENV))
        self._runs, self._experiments = api.RunServiceApi(self._client), api.ExperimentServiceApi(self._client)
        self._pipelines = api.PipelineServiceApi(self._client)
        self._specs: dict[str, Any] = {}
        self._is_ui = False

    @classmethod
    def connect(cls, host: str | None, namespace: str | None = None) -> "PipelineServer":
        """Find the server and see that it lets us in.

        Args:
            host: http(s)://..., of the API or the UI; None: the environment's KF_PIPELINES_ENDPOINT.
            namespace: where KFP has several users, the profile; else it is ignored.

        Raises:
            ConfigError: no host, or not a URL.
            ClusterError: nobody answers, something else answers, or we are not let in; says what to do.
        """
        host = host or os.environ.get(HOST_ENV)
        if not host:
            raise ConfigError(
                f"no Kubeflow Pipelines host. Give --host URL or set {HOST_ENV}; from outside the cluster, "
                "`kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80` makes it http://127.0.0.1:8080."
            )
        if not host.startswith(("http://", "https://")):
            raise ConfigError(f"--host {host}: expected a URL such as http://127.0.0.1:8080. Add http(s)://.")
        server = cls(host, namespace)
        answer = server._get("see whether it is well", "/apis/v2beta1/healthz")
        kind = answer.headers.get("content-type", "no content type")
        if not kind.startswith("application/json"):
            raise ClusterError(
                f"{server.host}: answers with {kind}, expected the API of Kubeflow Pipelines; most often it is a login "
                f"page. Give the host that serves /apis/v2beta1, and a token in {TOKEN_ENV} or a session's cookie in "
                f"{COOKIE_ENV}."
            )
        health = json.loads(answer.data)
        # The UI answers for itself, with what the API server told it (kubeflow/pipelines 2.17.0,
        # frontend/server/handlers/healthz.ts).
        server._is_ui = "frontendTagName" in health
        if not health.get("apiServerReady", True):
            raise UnavailableError(
                f"{server.host}: the UI answers, but the API server behind it does not. See the log of deployment "
                "ml-pipeline."
            )
        if health.get("multi_user") and not namespace:
            raise ConfigError(f"{server.host}: this KFP has several users. Say with --namespace whose profile to use.")
        server.namespace = namespace if health.get("multi_user") else None
        return server

    # Starting runs.

    def ensure_version(self, pipeline_name: str, version_name: str, ir: str) -> PipelineVersion:
        """Find a version of a pipeline by its name, or upload it.

        Args:
            pipeline_name: made if it is not there.
            version_name: changes with the content, so that a version of this name is this version.
            ir: the compiled pipeline as YAML.
        """
        api = self._pipelines
        body = self._api.V2beta1Pipeline(display_name=pipeline_name, name=pipeline_name, namespace=self.namespace)
        make = partial(
            self._ask, f"make pipeline '{pipeline_name}'", api.pipeline_service_create_pipeline, pipeline=body
        )
        pipeline = self._ensure("pipeline", pipeline_name, api.pipeline_service_list_pipelines, self._place(), make)
        upload = partial(self._upload, pipeline.pipeline_id, version_name, ir)
        listing, where = api.pipeline_service_list_pipeline_versions, {"pipeline_id": pipeline.pipeline_id}
        version = self._ensure("pipeline version", version_name, listing, where, upload)
        return PipelineVersion(str(pipeline.pipeline_id), str(version.pipeline_version_id), version_name)

    def start(self, version: PipelineVersion, experiment: str, name: str, arguments: Mapping[str, Any]) -> str:
        """Start a run and return its id. An experiment that is not there is made."""
        api, experiments = self._api, self._experiments
        made = api.V2beta1Experiment(display_name=experiment, namespace=self.namespace)
        create = experiments.experiment_service_create_experiment
        make = partial(self._ask, f"make experiment '{experiment}'", create, experiment=made)
        listing = experiments.experiment_service_list_experiments
        found = self._ensure("experiment", experiment, listing, self._place(), make)
        body = api.V2beta1Run(
            experiment_id=found.experiment_id,
            display_name=name,
            pipeline_version_reference=api.V2beta1PipelineVersionReference(version.pipeline_id, version.version_id),
            runtime_config=api.V2beta1RuntimeConfig(parameters=dict(arguments)),
        )
        return str(self._ask(f"start run '{name}'", self._runs.run_service_create_run, run=body).run_id)

    def link(self, run_id: str) -> str | None:
        """The run's page in the UI; None if only the API server is known, which has no pages."""
        ui = os.environ.get(UI_ENV) or (self.host if self._is_ui else None)
        return f"{ui.rstrip('/')}{_RUN_PAGE}{run_id}" if ui else None

    def page(self, run_id: str) -> str:
        """The run's page for people: its address, or else how to reach it."""
        inside = re.match(
            r"https?://ml-pipeline\.([a-z0-9-]+)", self.host
        )  # the address of a Service says where KFP is
        forward = f"kubectl port-forward -n {inside[1] if inside else RUN_NAMESPACE} svc/ml-pipeline-ui 8080:80"
        return self.link(run_id) or f"http://127.0.0.1:8080{_RUN_PAGE}{run_id} after `{forward}`"

    # Runs.

    def runs(self, pipeline_name: str, limit: int) -> list[ClusterRun]:
        """The newest runs of a pipeline, newest first, at most `limit`."""
        pipeline = self._one("pipeline", pipeline_name, self._pipelines.pipeline_service_list_pipelines, self._place())
        options = {"page_size": _PAGE_SIZE, "sort_by": "created_at desc", **self._place()}
        found: list[ClusterRun] = []
        token: str | None = ""
        while pipeline is not None and token is not None and len(found) < limit:
            page = self._ask("list its runs", self._runs.run_service_list_runs, page_token=token, **options)
            found += [read_run(run) for run in page.runs or [] if _pipeline_of(run) == pipeline.pipeline_id]
            token = page.next_page_token or None
        return found[:limit]

    def run(self, name_or_id: str) -> ClusterRun:
        """One run with its tasks, by its id or by its name; NotFoundError if there is none, ClusterError if several
        are."""
        if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", name_or_id):
            return self._with_tasks(self._get_run(name_or_id))
        options = {"page_size": _PAGE_SIZE, "filter": _named(name_or_id), **self._place()}
        found = self._ask(f"look for run '{name_or_id}'", self._runs.run_service_list_runs, **options).runs or []
        if not found:
            raise NotFoundError(f"{self.host}: no run '{name_or_id}'. `reasongenrm runs --host` lists the runs.")
        if len(found) > 1:
            ids = ", ".join(run.run_id for run in found)
            raise ClusterError(f"{self.host}: {len(found)} runs are called '{name_or_id}'. Give the id of one: {ids}.")
        return self._with_tasks(self._get_run(found[0].run_id))

    def follow(self, run_id: str) -> Iterator[ClusterRun]:
        """The run, every POLL_SECONDS, until it has ended; the last one has.

        Raises:
            UnavailableError: nobody has answered for waiting.OUTAGE_SECONDS; the run goes on all the same.
            ClusterError: refused.
        """
        for run in poll(lambda: self._with_tasks(self._get_run(run_id)), POLL_SECONDS):
            yield run
            if run.has_ended:
                return

    def cancel(self, run_id: str) -> None:
        """Have a run's workflow end; its pods get SIGTERM."""
        self._ask(f"cancel run {run_id}", self._runs.run_service_terminate_run, run_id=run_id)

    def log(self, run: ClusterRun, pod: str) -> str:
        """The log of a run's pod, once the pod is gone the archived one.

        Raises:
            NotFoundError: there is no such pod (or it has not started), and nothing is archived of it.
        """
        doing = f"read the log of {pod}"
        if self._is_ui:
            return self._log_of_ui(doing, run, pod)
        text = _text(self._get(doing, f"/apis/v1alpha1/runs/{run.run_id}/nodes/{pod}/log"))
        # The server has said 200 before it looks: an error is one more line, of JSON (kubeflow/pipelines,
        # backend/src/apiserver/server/run_log_server.go at 2.17.0).
        if re.search(r'(^|\n)\{"error_message":.*\}\s*$', text):
            raise NotFoundError(f"{self.host}: no log of {pod}: {_message(text.splitlines()[-1])}")
        return text

    def _log_of_ui(self, doing: str, run: ClusterRun, pod: str) -> str:
        """The UI hands /apis/v1beta1 and /apis/v2beta1 through, and has a way of its own to the logs of pods
        (kubeflow/pipelines 2.17.0, frontend/server/app.ts, handlers/pod-logs.ts)."""
        archive = f"/apis/v2beta1/runs/{run.run_id}/nodes/{pod}/artifacts/{_LOG_ARTIFACT}:read"
        try:
            return base64.b64decode(json.loads(self._get(doing, archive).data)["data"]).decode("utf-8", "replace")
        except NotFoundError:
            place = {"podname": pod, "runid": run.run_id, "podnamespace": run.namespace or ""}
        try:
            return _text(self._get(doing, "/k8s/pod/logs", place))
        except UnavailableError as error:  # its answer, 500, to whatever goes wrong
            raise NotFoundError(f"{self.host}: no log of {pod}: {error}") from error

    # What the above is made of.

    def _one(self, what: str, name: str, listing: Callable[..., Any], where: Mapping[str, Any]) -> Any:
        """The thing of this name in a list; None if it is not there."""
        page = self._ask(f"look for {what} '{name}'", listing, filter=_named(name), **where)
        found = getattr(page, f"{what.replace(' ', '_')}s")
        return found[0] if found else None

    def _ensure(
        self, what: str, name: str, listing: Callable[..., Any], where: Mapping[str, Any], make: Callable[[], Any]
    ) -> Any:
        """Find a thing by its name or make it; if another process makes it at the same time, theirs is ours."""
        find = partial(self._one, what, name, listing, where)
        found = find()
        if found is not None:
            return found
        try:
            return make()
        except ClusterError:
            found = find()
            if found is None:
                raise
            return found

    def _upload(self, pipeline_id: str, name: str, ir: str) -> Any:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "pipeline.yaml"
            path.write_text(ir, encoding="utf-8")
            upload = self._api.PipelineUploadServiceApi(self._client).upload_pipeline_version
            names = {"name": name, "display_name": name, "pipelineid": pipeline_id}
            return self._ask(f"upload version '{name}'", upload, str(path), **names)

    def _get_run(self, run_id: str) -> Any:
        return self._ask(f"find run {run_id}", self._runs.run_service_get_run, run_id=run_id)

    def _with_tasks(self, run: Any) -> ClusterRun:
        """The run with its tasks. Its Workflow is asked for after the run's state, so that it is not the older one."""
        detail = json.loads(self._get("read its Workflow", f"/apis/v1beta1/runs/{run.run_id}").data)
        runtime = detail.get("pipeline_runtime", {})
        # Before Argo has looked at it KFP has only the Workflow that it made itself.
        manifest = runtime.get("workflow_manifest") or runtime.get("pipeline_manifest")
        if not manifest:
            raise ClusterError(
                f"{self.host}: no Workflow is kept of run {run.run_id}; expected what Kubeflow Pipelines 2.17 has in "
                f"/apis/v1beta1/runs. Look at its page: {self.page(run.run_id)}."
            )
        return with_tasks(read_run(run), read_workflow(manifest), self._spec_of(run))

    def _spec_of(self, run: Any) -> Any:
        """The spec of the run's pipeline version, which has its tasks' names."""
        reference = run.pipeline_version_reference
        if reference is None:
            return run.pipeline_spec
        if reference.pipeline_version_id not in self._specs:
            read, ids = self._pipelines.pipeline_service_get_pipeline_version, reference.to_dict()
            self._specs[reference.pipeline_version_id] = self._ask(
                "read the run's pipeline version", read, **ids
            ).pipeline_spec
        return self._specs[reference.pipeline_version_id]

    def _place(self) -> dict[str, str]:
        return {"namespace": self.namespace} if self.namespace else {}

    def _get(self, doing: str, path: str, query: Mapping[str, str] = {}) -> Any:
        """Read what the generated client has no call for; a refusal becomes a ClusterError as in `_ask`."""
        response = self._ask(
            doing,
            self._client.call_api,
            path,
            "GET",
            query_params=list(query.items()),
            auth_settings=["Bearer"],
            _return_http_data_only=True,
            _preload_content=False,
        )
        if response.status != 200:
            raise self._refused(doing, response.status, _text(response))
        return response

    def _ask(self, doing: str, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Make a call; every way that it can fail becomes a ClusterError, which says "cannot" and what we were
        `doing`."""
        from urllib3.exceptions import HTTPError, MaxRetryError

        try:
            return call(*arguments, **options, _request_timeout=(_CONNECT_SECONDS, _READ_SECONDS))
        except self._api.ApiException as error:
            raise self._refused(doing, error.status, error.body or str(error.reason)) from error
        except HTTPError as error:
            why = error.reason if isinstance(error, MaxRetryError) and error.reason else error
            raise UnavailableError(
                f"{self.host}: cannot {doing}: {str(why).partition(': ')[2] or why}. Is it the right --host, and does "
                "the port-forward (or the VPN) still stand?"
            ) from error

    def _refused(self, doing: str, status: int, body: str) -> ClusterError:
        message = f"{self.host}: cannot {doing} ({status}): {_message(body)}"
        if status == 401:
            return ClusterError(
                f"{message} Log in: put a token into {TOKEN_ENV} or a session's cookie into {COOKIE_ENV}; in a pod, "
                f"mount a service account token with the audience pipelines.kubeflow.org at {TOKEN_PATH}."
            )
        if status == 403:
            place = f"namespace {self.namespace}" if self.namespace else "this KFP"
            return ClusterError(
                f"{message} Ask the administrator of {place} for the role kubeflow-pipelines-edit, or give another "
                "--namespace."
            )
        if status == 404:
            return NotFoundError(f"{message} Check the name, and that --host is the API of Kubeflow Pipelines 2.")
        if status == 429 or status >= 500:
            return UnavailableError(
                f"{message} Try again in a while; see the log of deployment ml-pipeline if it stays so."
            )
        return ClusterError(message)


def _read_token(configuration: Any) -> None:
    """Before each call: the token from the environment, or of the pod's service account, which is renewed in its
    file."""
    path = Path(os.environ.get(TOKEN_PATH_ENV, TOKEN_PATH))
    token = os.environ.get(TOKEN_ENV) or (path.read_text(encoding="utf-8").strip() if path.is_file() else "")
    if token:
        configuration.api_key["authorization"] = token


def _text(response: Any) -> str:
    return str(response.data.decode("utf-8", "replace"))


def _named(name: str) -> str:
    """A filter of the API: only what has this name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _message(body: str) -> str:
    """What an error's body says, on one line that ends with a period."""
    try:
        said = json.loads(body)
    except ValueError:
        said = body
    if isinstance(said, dict):
        said = said.get("error") or said.get("message") or said.get("error_message") or body
    line = " ".join(str(said).split())[:500]
    return line if line.endswith(".") else f"{line}."


def _pipeline_of(run: Any) -> str | None:
    return run.pipeline_version_reference.pipeline_id if run.pipeline_version_reference else None
