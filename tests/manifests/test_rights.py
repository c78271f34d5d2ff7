"""What the pipeline's accounts may do: all that the code does, and nothing besides."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.kubernetes import kinds, rights
from reasongenrm.kubernetes.kinds import Kind
from tests.manifests import OVERLAYS, ROOT, rendered

SERVING, RUN = "reasongenrm", "kubeflow"
RIGHTS = {
    (place, group, resource): set(verbs)
    for place, table in ((SERVING, rights.SERVING), (RUN, rights.RUN))
    for (group, resource), verbs in table.items()
}

# What a call of reasongenrm.kubernetes.cluster.Cluster asks of the API.
VERBS = {
    "get": {"get"},
    "list": {"list"},
    "create": {"create"},
    "replace": {"update"},
    "patch": {"patch"},
    "delete": {"delete"},
}


def granted(objects: list[dict[str, Any]], account: str) -> dict[tuple[str, str, str], set[str]]:
    """The rights that one account of the run namespace has by these objects."""
    roles = {
        (item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]): item
        for item in objects
        if item["kind"] in ("Role", "ClusterRole")
    }
    found: dict[tuple[str, str, str], set[str]] = {}
    for binding in objects:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        if ("ServiceAccount", account, RUN) not in {
            (subject["kind"], subject["name"], subject["namespace"]) for subject in binding["subjects"]
        }:
            continue
        place, reference = binding["metadata"].get("namespace", ""), binding["roleRef"]
        role = roles[reference["kind"], place if reference["kind"] == "Role" else "", reference["name"]]
        for rule in role["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    found.setdefault((place, group, resource), set()).update(rule["verbs"])
    return found


@pytest.mark.parametrize("account", rights.ACCOUNTS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rights_are_exactly_those_of_the_table(overlay: str, account: str) -> None:
    assert granted(rendered(overlay), account) == RIGHTS


def used_by_the_code() -> set[tuple[str, str, str]]:
    """(group, resource, verb) of every call of the cluster client in the package."""
    used = set()
    for path in sorted((ROOT / "reasongenrm").rglob("*.py")):
        if path.name in ("cluster.py", "connection.py"):
            continue
        text = path.read_text(encoding="utf-8")
        for method, name in re.findall(rf"cluster\.({'|'.join(VERBS)})\(\s*([A-Z][A-Z_]+)\b", text):
            kind = kind_of(path, name)
            used |= {(kind.group, kind.plural, verb) for verb in VERBS[method]}
    return used


def kind_of(path: Path, name: str) -> Kind:
    """The kind behind a constant that a module uses."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found = {**vars(kinds), **vars(module)}[name]  # some are imported where they are used
    assert isinstance(found, Kind), f"{module.__name__}.{name}"
    return found


def test_code_does_nothing_that_the_table_does_not_allow() -> None:
    allowed = {(group, resource, verb) for (_, group, resource), verbs in RIGHTS.items() for verb in verbs}
    used = used_by_the_code()
    assert used - allowed == set()
    assert ("", "services", "update") in used
    assert ("trainer.kubeflow.org", "trainjobs", "delete") in used


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_rule_is_wider_than_it_must_be(overlay: str) -> None:
    rules = [
        (item, rule) for item in rendered(overlay) if item["kind"] in ("Role", "ClusterRole") for rule in item["rules"]
    ]
    assert len(rules) > 5
    for item, rule in rules:
        where = f"{item['kind']} {item['metadata']['name']}"
        values = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert "*" not in values, where
        assert not {"secrets", "roles", "rolebindings", "serviceaccounts/token", "pods/exec"} & {*rule["resources"]}, (
            where
        )
        assert not {"escalate", "bind", "impersonate", "deletecollection"} & {*rule["verbs"]}, where
        if item["kind"] == "ClusterRole":
            assert rule["resourceNames"] == ["inferenceservices.serving.kserve.io"]
            assert rule["verbs"] == ["get"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_accounts_of_ours_may_nothing_and_get_no_token(overlay: str) -> None:
    accounts = [item for item in rendered(overlay) if item["kind"] == "ServiceAccount"]
    assert {"reasongenrm-serving", "reasongenrm-training"} <= {item["metadata"]["name"] for item in accounts}
    assert all(item["automountServiceAccountToken"] is False for item in accounts)
    bindings = [item for item in rendered(overlay) if item["kind"].endswith("RoleBinding")]
    bound = {subject["name"] for item in bindings for subject in item["subjects"]}
    assert bound == set(rights.ACCOUNTS)


def test_attached_secret_is_what_the_storage_initializer_finds() -> None:
    (account,) = [item for item in rendered("gpu") if item["metadata"]["name"] == "reasongenrm-serving"]
    assert account["secrets"] == [{"name": "reasongenrm-s3"}]
