"""The page about serving: a cluster would take its examples, and its rights are those of the table."""

import re

import pytest
import yaml

from reasongenrm.config import DeployConfig
from reasongenrm.kubernetes.rights import SERVING
from tests.kube.schemas import check
from tests.manifests import ROOT

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
EXAMPLES = {body["kind"]: body for body in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))}


@pytest.mark.parametrize("kind", ["Ingress", "HTTPRoute"])
def test_example_that_publishes_the_judge_is_valid_and_names_its_service(kind: str) -> None:
    check(EXAMPLES[kind])
    config = DeployConfig()
    assert EXAMPLES[kind]["metadata"]["namespace"] == config.namespace
    (rule,) = EXAMPLES[kind]["spec"]["rules"]
    service = rule["http"]["paths"][0]["backend"]["service"] if kind == "Ingress" else rule["backendRefs"][0]
    assert (service["name"], service["port"]) in ((config.name, {"number": 80}), (config.name, 80))
    if kind == "HTTPRoute":
        assert rule["timeouts"]["request"] == f"{config.judge.request_seconds:.0f}s"


def test_rights_that_the_page_names_are_those_of_the_table() -> None:
    listed = re.search(r"Rights that the step needs in the serving namespace: (.*?)\.\n", PAGE, re.DOTALL)
    assert listed is not None
    named = {}
    for entry in " ".join(listed[1].split()).split("; "):
        resource, verbs = entry.split(" ", 1)
        named[resource] = set(verbs.split(", "))
    granted = {resource: set(verbs) for (_, resource), verbs in SERVING.items()}
    assert all(verbs <= granted[resource] for resource, verbs in named.items())
    assert granted.keys() - named.keys() == {"events"}  # for whoever looks
