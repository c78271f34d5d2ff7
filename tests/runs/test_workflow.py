"""Workflows as KFP keeps them: names of nodes of every shape, tries, compressed nodes, and what ends them."""

import base64
import gzip
import json
from typing import Any

import pytest

from reasongenrm.errors import ClusterError
from reasongenrm.runs.workflow import Workflow, read_workflow

NAME = "reason-reward-model-7xk2p"


def node(name: str, kind: str = "Pod", phase: str = "Running", **fields: Any) -> dict[str, Any]:
    named = {"id": f"{NAME}-{1000 + len(name)}", "name": f"{NAME}{name}", "templateName": "impl"}
    return {**named, "type": kind, "phase": phase, **fields}


def workflow(*nodes: dict[str, Any], spec: dict[str, Any] | None = None, **status: Any) -> Workflow:
    metadata = {"name": NAME, "namespace": "kubeflow", **status.pop("metadata", {})}
    nodes_by_id = {f"{number}": found for number, found in enumerate(nodes)}
    body = {"metadata": metadata, "spec": spec or {}, "status": {"nodes": nodes_by_id, **status}}
    return read_workflow(json.dumps(body))


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("(0).root(0).prepare-pairs(0).executor(0)", "prepare-pairs"),  # KFP's own configuration of Argo
        (".root.prepare-pairs.executor", "prepare-pairs"),  # without its retries
        (".root.train-sft-2.executor(1)", "train-sft-2"),  # a task with retries of its own
        ("(0).root(0).condition-1(0).deploy-kserve(0).executor(2)", "deploy-kserve"),
        (".root.condition-1.deploy-kserve.executor", "deploy-kserve"),
        ("(0).root(1).prepare-pairs(0).executor(0)", "prepare-pairs"),  # the whole DAG once more
    ],
)
def test_pod_works_for_the_task_that_its_node_is_below(name: str, task: str) -> None:
    found = workflow(node(name)).nodes_of(task)
    assert [pod.pod for pod in found.pods] == [f"{NAME}-impl-{1000 + len(name)}"]


@pytest.mark.parametrize(
    "name",
    [
        "(0).root(0).train-sft-2(0).executor(0)",
        "(0).root(0).train-sft-driver(0)",
        "(0).root-driver(0)",
        "(0).root(0).train-sft(0)",
        "(0)",
        "",
        ".onExit",
        "(0).root(0).loop(0).iteration-iterations(0:0.5)(0).executor(0)",
    ],
)
def test_other_nodes_are_no_pods_of_the_task(name: str) -> None:
    assert workflow(node(name)).nodes_of("train-sft").pods == ()


def test_tries_are_in_order_and_the_newest_tells_the_state() -> None:
    names = [f"(0).root(0).train-sft(0).executor({number})" for number in (10, 2, 0)]
    found = workflow(
        *(node(name) for name in names),
        node("(0).root(0).train-sft", "Retry", "Failed"),
        node("(0).root(0).train-sft(0)", "DAG", "Failed"),
        node("(0).root(1).train-sft(0)", "DAG", "Error"),
        node("(0).root(1).train-sft", "Retry", "Running"),
        node("(0).root(1).train-sft-driver(0)", "Pod", "Failed"),
        node("(0).root(1).train-sft-driver", "Retry", "Succeeded"),
    ).nodes_of("train-sft")
    assert [pod.tries[-1] for pod in found.pods] == ["(0)", "(2)", "(10)"]
    assert found.task
    assert (found.task.phase, found.task.tries) == ("Running", ("(0)", "(1)", ""))
    assert found.driver
    assert found.driver.phase == "Succeeded"
    assert [pod.phase for pod in found.driver_pods] == ["Failed"]


def test_name_of_a_pod_is_its_nodes_id_in_the_older_format() -> None:
    older = {"annotations": {"workflows.argoproj.io/pod-name-format": "v1"}}
    name = ".root.train-sft.executor"
    (pod,) = workflow(node(name), metadata=older).nodes_of("train-sft").pods
    assert pod.pod == f"{NAME}-{1000 + len(name)}"


def test_nodes_that_argo_has_compressed_are_read() -> None:
    """The string is Argo's own: argoproj/argo-workflows v4.0.5, workflow/hydrator/hydrator_test.go."""
    packed = (
        "H4sIAAAAAAAA/6pWSkosUrKqVspMUbJSUtJRykvMTYWwUjKLC3ISK/3gAiWVBVBWcUliUUlqimOJklVeaU6OjlJaZl5mcQZCpFZHKS0/nwbm1gICAAD/"
        "/8SSRamxAAAA"
    )
    assert len(workflow(compressedNodes=packed).nodes) == 2
    ours = json.dumps({"1": node(".root.train-sft.executor")}).encode()
    found = workflow(compressedNodes=base64.b64encode(gzip.compress(ours)).decode())
    assert len(found.nodes_of("train-sft").pods) == 1
    assert not found.is_offloaded


@pytest.mark.parametrize("packed", ["H4sIAAAAAAAA", "bm90IGd6aXA=", "***", "H4sIAAAAAAAA/6pWSkosUrKqVspMUbJSU7JRykvM"])
def test_compressed_nodes_that_cannot_be_read_are_told(packed: str) -> None:
    with pytest.raises(ClusterError, match=rf"workflow {NAME}: its status\.compressedNodes cannot be read .*expected"):
        workflow(compressedNodes=packed)


@pytest.mark.parametrize(
    ("spec", "was_terminated"),
    [
        ({}, False),
        ({"activeDeadlineSeconds": 86400}, False),  # a time limit of the pipeline
        ({"activeDeadlineSeconds": 0}, True),  # KFP's way
        ({"shutdown": "Terminate"}, True),  # `argo terminate`
    ],
)
def test_workflow_that_somebody_has_ended_is_known(spec: dict[str, Any], was_terminated: bool) -> None:
    assert workflow(spec=spec).was_terminated is was_terminated


@pytest.mark.parametrize(
    ("message", "was_stopped"),
    [
        ("retry exceeded workflow deadline 2026-11-24 10:00:00 +0000 UTC", True),
        ("Step exceeded its deadline", True),
        ("workflow shutdown with strategy:  Terminate", True),
        ("Stopped with strategy 'Stop'", True),
        ("main: Error (exit code 1)", False),
        ("pod deleted", False),
    ],
)
def test_task_that_was_stopped_is_known_by_what_argo_says(message: str, was_stopped: bool) -> None:
    found = workflow(node("(0).root(0).train-sft", "Retry", "Failed", message=message))
    assert found.nodes_of("train-sft").was_stopped is was_stopped
    assert not found.nodes_of("train-sft-2").was_stopped


def test_nodes_in_argos_database_are_out_of_reach() -> None:
    assert workflow(offloadNodeStatusVersion="fnv:3126205472").is_offloaded
