"""What keeps pods from starting, read off their state; and how long each cause may last."""

import math
from typing import Any

import pytest

from reasongenrm.kubernetes.health import pod_troubles, service_troubles


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p"}, "status": status}


def container(name: str = "kserve-container", restarts: int = 0, **states: Any) -> dict[str, Any]:
    return {"name": name, "image": "judge:1", "ready": False, "restartCount": restarts, **states}


def failed(**more: Any) -> dict[str, Any]:
    return {"terminated": {"exitCode": 137, "reason": "OOMKilled", **more}}


def test_pod_that_loads_has_no_trouble() -> None:
    assert list(pod_troubles([pod(phase="Running", containerStatuses=[container(state={"running": {}})])])) == []


def test_first_crash_is_told_and_the_second_restart_is_fatal() -> None:
    once = container(restarts=1, state={"running": {}}, lastState=failed())
    (trouble,) = pod_troubles([pod(containerStatuses=[once])])
    assert trouble.text == "pod p: kserve-container ended with exit code 137 (OOMKilled), 1 restart"
    assert trouble.patience == math.inf
    assert trouble.previous
    (trouble,) = pod_troubles([pod(containerStatuses=[once | {"restartCount": 2}])])
    assert trouble.patience == 0.0


def test_storage_initializer_that_fails_is_told_with_its_own_message() -> None:
    loader = container("storage-initializer", 2, state=failed(message="NoSuchKey:\n  model"), lastState=failed())
    (trouble,) = pod_troubles([pod(initContainerStatuses=[loader])])
    assert "storage-initializer ended with exit code 137 (OOMKilled), 2 restarts: NoSuchKey: model" in trouble.text
    assert not trouble.previous


def test_container_that_recovered_is_no_trouble() -> None:
    again = container(restarts=5, state={"running": {}}, lastState=failed()) | {"ready": True}
    assert list(pod_troubles([pod(containerStatuses=[again])])) == []


def test_full_cluster_is_waited_for() -> None:
    (trouble,) = pod_troubles([pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "no GPU"}])])
    assert trouble.text == "pod p waits for a node: no GPU"
    assert trouble.patience == math.inf


@pytest.mark.parametrize(
    "reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError"]
)
def test_image_and_configuration_may_mend_themselves_for_a_minute(reason: str) -> None:
    waiting = container(state={"waiting": {"reason": reason, "message": "m"}})
    (trouble,) = pod_troubles([pod(containerStatuses=[waiting])])
    assert (reason in trouble.text, trouble.patience) == (True, 60.0)


def test_failure_of_kserve_counts_only_while_there_is_no_deployment() -> None:
    failure = {"reason": "NoSupportingRuntime", "message": "none"}
    service = {"status": {"modelStatus": {"transitionStatus": "InvalidSpec", "lastFailureInfo": failure}}}
    assert [trouble.cause for trouble in service_troubles(service, None)] == ["spec/NoSupportingRuntime"]
    assert list(service_troubles(service, {})) == []
    service["status"]["modelStatus"]["transitionStatus"] = "UpToDate"  # it is never taken back
    assert list(service_troubles(service, None)) == []


def test_deadline_that_kserve_fixes_is_no_trouble_but_pods_that_are_refused_are() -> None:
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    assert list(service_troubles({}, {"status": {"conditions": [late]}})) == []
    refused = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota"}
    (trouble,) = service_troubles({}, {"status": {"conditions": [late, refused]}})
    assert trouble.text == "no pod can be created: FailedCreate: quota"


def test_components_own_condition_tells_and_the_models_failure_is_not_the_judges_servers() -> None:
    failure = {"reason": "NoSupportingRuntime", "message": "none"}
    refused = {"type": "TransformerReady", "status": "False", "reason": "ReconcileFailed", "message": "quota"}
    model = {"transitionStatus": "InvalidSpec", "lastFailureInfo": failure}
    service = {"status": {"modelStatus": model, "conditions": [refused]}}
    (trouble,) = service_troubles(service, None, "Transformer")
    assert trouble.text == "KServe cannot write the Deployment: quota"
    assert [found.cause for found in service_troubles(service, None)] == ["spec/NoSupportingRuntime"]
