"""A Job that submits a run from inside the cluster: its manifest and the ConfigMap it reads.

It meets Pod Security "restricted", talks to nothing but the KFP API, and ends when the run has started.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from reasongenrm import __version__
from reasongenrm.config import RunConfig
from reasongenrm.kubernetes.pod_parts import CONTAINER_SECURITY, POD_SECURITY
from reasongenrm.runs.kfp import TOKEN_PATH, UI_ENV
from reasongenrm.store.run_records import RunInputs

CONFIG_FOLDER, CONFIG_FILE = "/config", "run.yaml"
TOKEN_AUDIENCE = "pipelines.kubeflow.org"  # that KFP accepts: kubeflow/pipelines, backend/src/common/const.go
_TOKEN_SECONDS = 7200
_KEEP_SECONDS = 7 * 24 * 3600  # of an ended Job, with its log


def submit_job(
    config: RunConfig,
    inputs: RunInputs,
    store_uri: str,
    *,
    name: str,
    experiment: str,
    namespace: str,
    host: str,
    ui: str | None,
    image: str,
    service_account: str,
) -> list[dict[str, Any]]:
    """ConfigMap and Job, to be applied together.

    Args:
        config: everything the run is asked, as it stands now; it travels in the ConfigMap.
        inputs: reachable by pods.
        name: of the run; the Job and the ConfigMap are called "submit-<name>".
        namespace: of the run.
        host: the KFP API as the Job reaches it.
        ui: the KFP UI as people reach it, for the run's page in the Job's log; None: the log says how to get there.
        image: of kind "cpu".
        service_account: who submits; needs no right in Kubernetes.
    """
    uris = {key.removesuffix("_uri"): uri for key, uri in inputs.model_dump().items()}
    values = {**config.model_dump(mode="json", exclude_none=True), "inputs": uris}
    labels = {
        "app.kubernetes.io/name": "reasongenrm-submit",
        "app.kubernetes.io/part-of": "reasongenrm",
        "app.kubernetes.io/version": __version__,
    }
    metadata = {"name": f"submit-{name}", "namespace": namespace, "labels": labels}
    data = {CONFIG_FILE: yaml.safe_dump(values, sort_keys=False)}
    options = {
        "host": host,
        "namespace": namespace,
        "experiment": experiment,
        "name": name,
        "store": store_uri,
        "config": f"{CONFIG_FOLDER}/{CONFIG_FILE}",
    }
    container = {
        "name": "submit",
        "image": image,
        "command": ["python", "-m", "reasongenrm", "submit"],
        "args": [f"--{option}={value}" for option, value in options.items()],
        "env": [{"name": "HOME", "value": "/tmp"}, *([{"name": UI_ENV, "value": ui}] if ui else [])],
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
            {"name": "token", "mountPath": TOKEN_PATH.rpartition("/")[0], "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    token = {"path": "token", "audience": TOKEN_AUDIENCE, "expirationSeconds": _TOKEN_SECONDS}
    pod = {
        "restartPolicy": "Never",
        "serviceAccountName": service_account,
        "automountServiceAccountToken": False,
        "securityContext": POD_SECURITY,
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": metadata["name"]}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
        ],
    }
    job = {
        "backoffLimit": 0,  # a second try could start a second run
        "ttlSecondsAfterFinished": _KEEP_SECONDS,
        "template": {"metadata": {"labels": dict(labels)}, "spec": pod},  # a copy: YAML would write an alias
    }
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job},
    ]


def as_yaml(objects: Iterable[Mapping[str, Any]]) -> str:
    """The objects as one file for `kubectl apply`; the config in it reads as a file of its own."""
    return yaml.dump_all(objects, Dumper=_Readable, sort_keys=False)


class _Readable(yaml.SafeDumper):
    """Writes a text of several lines as a block instead of one quoted line."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _represent_text)
