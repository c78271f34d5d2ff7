"""When there is an address of the new pods, and what stands in the log while they are waited for."""

from typing import Any

import pytest

from reasongenrm.deploy.rollout import Target, Timeline, address_of
from reasongenrm.kubernetes.kinds import INFERENCE_SERVICE, LLM_INFERENCE_SERVICE


def service(url: str, ready: str = "True", transition: str = "UpToDate") -> dict[str, Any]:
    return {
        "status": {
            "address": {"url": url},
            "conditions": [{"type": "Ready", "status": ready}],
            "modelStatus": {"transitionStatus": transition},
        }
    }


URL = "http://judge-0a1b2c3d-transformer.reasongenrm.svc.cluster.local"


def test_there_is_an_address_once_kserve_calls_the_pods_ready() -> None:
    target = Target(INFERENCE_SERVICE, "reasongenrm", "judge-0a1b2c3d", has_judge=True)
    assert address_of(service(URL), target) == URL
    assert address_of(service(URL, ready="Unknown"), target) is None
    assert address_of(service(URL, transition="InProgress"), target) is None
    assert address_of({}, target) is None


def test_address_of_an_llm_inference_service_is_that_of_our_judge_in_front_of_it() -> None:
    target = Target(LLM_INFERENCE_SERVICE, "reasongenrm", "judge-0a1b2c3d", has_judge=True)
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}], "url": "http://the.model"}}
    assert address_of(ready, target) == "http://judge-0a1b2c3d-judge.reasongenrm.svc.cluster.local"
    assert address_of({}, target) is None


def test_timeline_is_a_log_as_well(caplog: pytest.LogCaptureFixture) -> None:
    timeline = Timeline()
    timeline.say("created")
    assert [entry["what"] for entry in timeline.entries] == ["created"]
    assert caplog.messages == ["deploy: created (0 s)"]
