"""Which address leads to the new pods, and what stands in the log while they are waited for."""

from typing import Any

import pytest

from reasongenrm.deploy.rollout import Target, Timeline, address_of

STABLE = Target("reasongenrm", "judge", "m")
NAMED = Target("reasongenrm", "judge", "m", predictor="c1")


def service(url: str, ready: str = "True", transition: str = "UpToDate") -> dict[str, Any]:
    return {
        "status": {
            "address": {"url": url},
            "conditions": [{"type": "Ready", "status": ready}],
            "modelStatus": {"transitionStatus": transition},
        }
    }


OLD = "http://judge-predictor.reasongenrm.svc.cluster.local"
NEW = "http://judge-c1-predictor.reasongenrm.svc.cluster.local"


@pytest.mark.parametrize(
    ("target", "url", "found"),
    [
        (STABLE, OLD, OLD),
        (STABLE, f"{OLD}:8080", f"{OLD}:8080"),
        (NAMED, OLD, None),  # the predictor was renamed, the status has not noticed
        (NAMED, NEW, NEW),
        (STABLE, "http://127.0.0.1:8000", "http://127.0.0.1:8000"),
    ],
)
def test_address_is_that_of_the_pods_that_are_waited_for(target: Target, url: str, found: str | None) -> None:
    assert address_of(service(url), target) == found


def test_there_is_no_address_before_kserve_calls_the_pods_ready() -> None:
    assert address_of(service(OLD, ready="Unknown"), STABLE) is None
    assert address_of(service(OLD, transition="InProgress"), STABLE) is None
    assert address_of({}, STABLE) is None


def test_timeline_is_a_log_as_well(caplog: pytest.LogCaptureFixture) -> None:
    timeline = Timeline()
    timeline.say("created")
    assert [entry["what"] for entry in timeline.entries] == ["created"]
    assert caplog.messages == ["deploy: created (0 s)"]


WITH_JUDGE = Target("reasongenrm", "judge", "m", has_transformer=True)
ENTRY = "http://judge-transformer.reasongenrm.svc.cluster.local"


def test_address_is_the_judges_server_where_there_is_one_and_never_the_one_before() -> None:
    assert address_of(service(ENTRY), WITH_JUDGE) == ENTRY
    assert address_of(service(OLD), WITH_JUDGE) is None  # the judge's server is new, the status has not noticed
    assert address_of(service(ENTRY), STABLE) is None  # and now it is gone
