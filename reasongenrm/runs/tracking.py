"""A stage's run in MLflow, where MLFLOW_TRACKING_URI names a server: its settings, figures and report.

It agrees with KFP's MLflow plug-in (kubeflow/pipelines 2.17.0, backend/src/v2/common/plugins/mlflow/handler.go), which
makes a run for each task and hands its id over as MLFLOW_RUN_ID: the stages of a task are its children. A trainer's own
reports (`report_to: [mlflow]`) go to the stage's run in the same way.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from reasongenrm.processes.extras import how_to_install, missing_packages
from reasongenrm.store.artifacts import ArtifactRef, open_artifact, read_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

URI, RUN_ID, EXPERIMENT, EXPERIMENT_ID = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"),
    *("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"),
)
DEFAULT_EXPERIMENT = "reasongenrm"
# MLflow's own names: mlflow/utils/mlflow_tags.py and mlflow/utils/validation.py at 3.17.2.
_PARENT = "mlflow.parentRunId"
_MAX_PARAM_CHARS = 6000
_MAX_REPORT_BYTES = 16 * 2**20
_REPORTS = (".html", ".md")

_logger = logging.getLogger(__name__)
End = Literal["FINISHED", "FAILED", "KILLED"]


class TrackedRun:
    """A run in MLflow from `start` to `end`; without MLFLOW_TRACKING_URI all of it does nothing.

    A tracker that does not answer is said once and left alone: it is no reason to stop hours of work.
    """

    def __init__(self) -> None:
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._before: str | None = None

    def start(self, name: str) -> None:
        """Make the run, a child of MLFLOW_RUN_ID's if that is set, and set MLFLOW_RUN_ID to it."""
        if not os.environ.get(URI):
            return
        if missing_packages("mlflow"):  # a platform may set the variable in every pod
            _logger.warning("%s is set, but MLflow is not installed. %s", URI, how_to_install("mlflow"))
            return
        # A server that is away should cost a task seconds: MLflow's own 7 tries take minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        self._client = client = MlflowClient()
        with self._forgiven():
            self._before = os.environ.get(RUN_ID)
            tags = {_PARENT: self._before} if self._before else {}
            run = client.create_run(_experiment(client, self._before), run_name=name, tags=tags)
            self._run_id = os.environ[RUN_ID] = run.info.run_id

    def log(self, ref: ArtifactRef) -> None:
        """Log an artifact: settings as parameters, counts and numbers as metrics, where it is, its report if small."""
        if self._client is None:
            return
        manifest = open_artifact(ref)
        params = {"artifact": ref.uri, **_flat(manifest.config, "config.")}
        numbers = {
            **ref.counts,
            **{name: value for name, value in ref.metrics.items() if isinstance(value, int | float)},
        }
        with self._forgiven():
            for name, value in params.items():
                self._client.log_param(self._run_id, name, str(value)[:_MAX_PARAM_CHARS])
            for name, number in numbers.items():
                self._client.log_metric(self._run_id, name, float(number))
            for file in manifest.files:
                if file.path.endswith(_REPORTS) and file.size <= _MAX_REPORT_BYTES:
                    self._client.log_text(self._run_id, read_file(ref, file.path).decode(), file.path)

    def end(self, status: End) -> None:
        """End the run, and set MLFLOW_RUN_ID to what it was."""
        if self._client is not None:
            with self._forgiven():
                self._client.set_terminated(self._run_id, status)
        if self._run_id:
            os.environ.pop(RUN_ID)
            if self._before is not None:
                os.environ[RUN_ID] = self._before

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            why = " ".join(str(error).split())[:300]
            _logger.warning("MLflow (%s) is left out from here on: %s", URI, why)
            self._client = None


def _experiment(client: "MlflowClient", parent: str | None) -> str:
    """The id of the parent's experiment, or of the one that the environment names; made where there is none."""
    if parent:
        return str(client.get_run(parent).info.experiment_id)
    if os.environ.get(EXPERIMENT_ID):
        return os.environ[EXPERIMENT_ID]
    name = os.environ.get(EXPERIMENT) or DEFAULT_EXPERIMENT
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
