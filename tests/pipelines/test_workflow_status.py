"""How large the state of a run is that Argo keeps, against what a real cluster kept, and against what KFP can read."""

import gzip
from pathlib import Path
from typing import Any

import pytest
import yaml

from reasongenrm.config import load_config
from reasongenrm.pipelines.compile import compile_pipeline
from reasongenrm.runs.submit import arguments_of
from reasongenrm.store.run_records import choose_inputs
from tests.pipelines.workflow_status import Workflow, go_json

HERE = Path(__file__).parent
CONFIGS = Path(__file__).parents[2] / "pipelines" / "configs"
LIMIT = 350_000
INPUTS = {
    "preferences": "s3://reasongenrm/smoke-inputs/preferences.jsonl",
    "benchmark": "s3://reasongenrm/smoke-inputs/benchmark.jsonl",
    "model": "s3://reasongenrm/smoke-inputs/model",
    "teacher": "http://teacher.models.svc.cluster.local:8000/v1",
}
REFERENCE = "s3://reasongenrm/smoke/refs/0123456789abcdef"


def run_of(path: Path) -> Workflow:
    """A run of a config file, as `reasongenrm submit` starts it."""
    config = load_config(path)
    arguments = arguments_of(config, choose_inputs(config.inputs, **INPUTS), "s3://reasongenrm/smoke")
    spec, platform = yaml.safe_load_all(compile_pipeline(config.resources).ir)
    return Workflow(spec, platform, arguments, output=REFERENCE)


def test_figure_is_that_of_a_real_run() -> None:
    """On Kubernetes 1.36.2 with KFP 2.17.0 and Argo 4.0.5, the pipeline of commit b5b933e (the file: 17 tasks,
    references as artifacts, sections as parameters) had 90 nodes of 1,041,211 bytes when the 14th task began."""
    text = gzip.decompress((HERE / "data" / "measured_pipeline.yaml.gz").read_bytes())
    spec, platform = yaml.safe_load_all(text)
    arguments: dict[str, Any] = {f"{name}_uri": uri for name, uri in INPUTS.items()}
    # What a task said of an artifact then: address, digest, counts.
    metadata = {"uri": f"{REFERENCE}/sha256-0123456789abcdef", "digest": f"sha256:{'0' * 64}", "reused": False}
    metadata |= {"num_in": 12, "num_out": 12, "num_dropped_over_limit": 0, "num_dropped_too_long": 0}
    run = Workflow(spec, platform, {"store_uri": "s3://reasongenrm/smoke", **arguments}, True, metadata)
    assert len(run.nodes) == 112
    assert run.num_bytes(num_nodes=90) == pytest.approx(1_041_211, rel=0.15)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_run_stays_far_below_what_argo_compresses(path: Path) -> None:
    run = run_of(path)
    assert len(run.nodes) == 6 + 6 * 11
    assert run.num_bytes() <= LIMIT


def test_what_stands_in_every_task_is_counted_six_times() -> None:
    """Driver and executor, each a Retry node and its try; the executor twice, as a graph and as a pod."""
    patches = [
        given["value"]
        for node in run_of(CONFIGS / "smoke.yaml").nodes.values()
        for given in (*node.get("inputs", {}).get("parameters", ()), *node.get("outputs", {}).get("parameters", ()))
        if given["name"] == "pod-spec-patch"
    ]
    assert len(patches) == 6 * 11
    assert {patches.count(patch) for patch in patches} == {6}


def test_json_is_gos() -> None:
    assert go_json({"b": "<&>", "a": 1}) == '{"a":1,"b":"\\u003c\\u0026\\u003e"}'
