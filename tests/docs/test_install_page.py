"""docs/install.md names the versions that are pinned."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
THIRD_PARTY = ROOT / "manifests" / "third-party"


@pytest.mark.parametrize(
    ("row", "folders"),
    [
        ("cert-manager", ["cert-manager"]),
        ("Kubeflow Pipelines", ["kfp", "kfp/cluster-scoped"]),
        ("KServe", ["kserve", "kserve/crds", "kserve/runtimes"]),
        ("Kubeflow Trainer, JobSet", ["trainer", "jobset"]),
        ("Kueue, KEDA", ["kueue", "keda"]),
    ],
)
def test_versions_are_the_pinned_ones(row: str, folders: list[str]) -> None:
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {row}"))
    for folder in folders:
        pins = re.findall(r"(?:ref=|download/)(v?[\d.]+\d)", (THIRD_PARTY / folder / "kustomization.yaml").read_text())
        assert pins
        assert all(pin in line for pin in pins), (folder, pins, line)


def test_kinds_version_is_the_pinned_one() -> None:
    pins = (ROOT / "manifests" / "kind" / "versions.env").read_text()
    assert f"kind {re.search('KIND_VERSION=(.+)', pins)[1]}" in PAGE  # type: ignore[index]
