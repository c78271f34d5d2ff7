"""When there is an address of the new pods, and what stands in the log while they are waited for."""

from typing import Any

import pytest

from reasongenrm.deploy.rollout import Timeline, address_of


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
    assert address_of(service(URL)) == URL
    assert address_of(service(URL, ready="Unknown")) is None
    assert address_of(service(URL, transition="InProgress")) is None
    assert address_of({}) is None


def test_timeline_is_a_log_as_well(caplog: pytest.LogCaptureFixture) -> None:
    timeline = Timeline()
    timeline.say("created")
    assert [entry["what"] for entry in timeline.entries] == ["created"]
    assert caplog.messages == ["deploy: created (0 s)"]
