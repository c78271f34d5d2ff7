"""docs/install.md names what is there: folders, versions, targets, commands."""

import re
import subprocess
from pathlib import Path

import pytest
import typer

from reasongenrm.cli import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
THIRD_PARTY = ROOT / "manifests" / "third-party"


def test_every_folder_and_file_that_it_names_is_there() -> None:
    named = set(re.findall(r"(?<![\w/.-])((?:manifests|components|pipelines|reasongenrm|images)/[\w./-]*\w)", PAGE))
    named |= {
        str((ROOT / "docs" / link).resolve().relative_to(ROOT)) for link in re.findall(r"\]\((\.\./[^)#]+)\)", PAGE)
    }
    named -= {"manifests/overlays/OVERLAY", "manifests/third-party/NAME"}
    assert {"manifests/overlays/gpu", "manifests/third-party/kserve/crds", "manifests/kind/versions.env"} <= named
    missing = sorted(name for name in named if not (ROOT / name.removesuffix("/")).exists())
    assert missing in ([], ["images/wheels"])  # made by who builds without a network


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


def test_make_targets_and_commands_exist() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"(?:`|^|&& )make ([a-z0-9-]+)\b", PAGE, re.MULTILINE))
    assert {"kind-up", "kind-e2e", "kind-down", "images"} <= targets
    assert [target for target in sorted(targets) if f"make {target} " not in listed] == []
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"reasongenrm (\w+) (?:--|`)", PAGE)) | set(re.findall(r"`reasongenrm (\w+)", PAGE))
    assert {"submit", "doctor", "runs", "rollback"} <= named
    assert sorted(named - commands) == []
