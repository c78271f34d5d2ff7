"""Compiles the pipeline for a cluster; `reasongenrm compile` and `reasongenrm submit` call it.

    reason_reward_model.yaml              for the KFP UI, `kfp pipeline create` and `reasongenrm submit`
    reason_reward_model.kubernetes.yaml   Pipeline and PipelineVersion, for `kubectl apply`

The same code and the same images give the same bytes.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from reasongenrm import __version__
from reasongenrm.config import ResourcesConfig
from reasongenrm.runs.kfp import RUN_NAMESPACE

HEADER = "# Made by `reasongenrm compile` from pipelines/reason_reward_model.py; do not edit.\n"
PIPELINE_NAME = "reason-reward-model"
DEFAULTS = ResourcesConfig()
_HASH_DIGITS = 8


@dataclass(frozen=True)
class Compiled:
    """The pipeline, compiled.

    Attributes:
        ir: KFP's intermediate representation: the pipeline's spec and what it says about Kubernetes, as YAML.
        kubernetes: Pipeline and PipelineVersion (pipelines.kubeflow.org/v2beta1), as YAML.
        version: what this version is called, like "0.1.0-1f0c94de": ours, and a hash of the content. KFP lets nobody
            change the spec of a version, so whatever changes (an image, a default) must come under another name.
    """

    ir: str
    kubernetes: str
    version: str

    @property
    def version_name(self) -> str:
        """What the PipelineVersion is called in the KFP UI; its object's name has dashes for the dots."""
        return f"{PIPELINE_NAME}-{self.version}"

    def files(self, path: Path) -> dict[Path, str]:
        """What belongs into `path` and, next to it, into `<stem>.kubernetes.yaml`."""
        return {path: self.ir, path.with_suffix(".kubernetes.yaml"): self.kubernetes}


def compile_pipeline(resources: ResourcesConfig = DEFAULTS, namespace: str = RUN_NAMESPACE) -> Compiled:
    """Compile the pipeline.

    Args:
        resources: what a cluster gives the tasks; it is part of the compiled pipeline, and so of its version.
        namespace: of the Kubernetes objects. A KFP of one user sees only those where it is itself
            (kubeflow/pipelines 2.17.0, backend/src/apiserver/client_manager/client_manager.go), and without a
            namespace `kubectl apply` would put them where the kubeconfig happens to be.
    """
    return _compiled(resources.model_dump_json(), namespace)


@cache
def _compiled(resources: str, namespace: str) -> Compiled:
    # At every setting of a task KFP looks up the source of every frame of the stack (kfp 2.17.0,
    # dsl/pipeline_task.py, _ensure_container_spec_exists). A thread of its own has a short stack.
    with ThreadPoolExecutor(1) as thread:
        spec, platform = thread.submit(_compile, ResourcesConfig.model_validate_json(resources)).result()
    body = _dump(spec, platform)
    version = f"{__version__}-{hashlib.sha256(body.encode()).hexdigest()[:_HASH_DIGITS]}"
    return Compiled(HEADER + body, HEADER + _dump(*_manifests(spec, platform, version, namespace)), version)


def compile_to(path: Path, resources: ResourcesConfig = DEFAULTS, namespace: str = RUN_NAMESPACE) -> Compiled:
    """Write the pipeline's two files (see `Compiled.files`)."""
    compiled = compile_pipeline(resources, namespace)
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, text in compiled.files(path).items():
        file.write_text(text, encoding="utf-8")
    return compiled


def stale_files(path: Path) -> list[Path]:
    """Which of the two files are not there, or do not hold what compiling gives now."""
    files = compile_pipeline().files(path)
    return [file for file, text in files.items() if not file.is_file() or file.read_text(encoding="utf-8") != text]


def _compile(resources: ResourcesConfig) -> tuple[Any, Any]:
    from kfp.compiler import Compiler

    from reasongenrm.pipelines.reason_reward_model import reason_reward_model

    with TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        Compiler().compile(reason_reward_model(resources), str(path))
        spec, platform = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    for executor in spec["deploymentSpec"]["executors"].values():
        _name_component(executor["container"])
    return spec, platform


def _name_component(container: dict[str, Any]) -> None:
    """Have a pod run the component that its image has installed (components/__main__.py), instead of the source that
    KFP puts into the command, some six times in the state of a run."""
    name = container["args"][container["args"].index("--function_to_execute") + 1]
    container["command"] = ["python3", "-m", "reasongenrm.components"]
    container["args"] = [name, "{{$}}"]


def _manifests(spec: Any, platform: Any, version: str, namespace: str) -> tuple[Any, Any]:
    """What `kfp dsl compile --kubernetes-manifest-format --include-pipeline-manifest` writes, of a spec that may have
    been changed."""
    described = {"description": spec["pipelineInfo"]["description"]}
    pipeline = {
        "apiVersion": "pipelines.kubeflow.org/v2beta1",
        "kind": "Pipeline",
        "metadata": {"name": PIPELINE_NAME, "namespace": namespace},
        "spec": {"displayName": PIPELINE_NAME, **described},
    }
    name = f"{PIPELINE_NAME}-{version}"
    pipeline_version = {
        "apiVersion": "pipelines.kubeflow.org/v2beta1",
        "kind": "PipelineVersion",
        "metadata": {"name": name.replace(".", "-"), "namespace": namespace},
        "spec": {
            "displayName": name,
            "pipelineName": PIPELINE_NAME,
            "pipelineSpec": spec,
            "platformSpec": platform,
            **described,
        },
    }
    return pipeline, pipeline_version


def _dump(*documents: Any) -> str:
    return yaml.safe_dump_all(documents, sort_keys=True)
