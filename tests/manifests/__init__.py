"""Rendered manifests, as `kubectl apply -k` would send them."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.waiting import HANG_SECONDS

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
OVERLAYS = sorted(path.parent.name for path in (MANIFESTS / "overlays").glob("*/kustomization.yaml"))
ADDONS = sorted(path.parent.name for path in (MANIFESTS / "addons").glob("*/kustomization.yaml"))

# Labels of what KServe makes of the InferenceService of the name "reasongenrm" (its Deployment's pods, its Service).
# Source: kserve 0.20, pkg/constants/constants.go; labels of the InferenceService are taken over.
PREDICTOR = {
    "app": "isvc.reasongenrm-0a1b2c3d-predictor",
    "app.kubernetes.io/name": "reasongenrm",
    "app.kubernetes.io/part-of": "reasongenrm",
    "component": "predictor",
    "serving.kserve.io/inferenceservice": "reasongenrm-0a1b2c3d",
}
# And of its transformer, the judge's server.
TRANSFORMER = PREDICTOR | {"app": "isvc.reasongenrm-0a1b2c3d-transformer", "component": "transformer"}


def render(folder: Path) -> list[dict[str, Any]]:
    """The objects of one kustomization."""
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run(
        [kubectl, "kustomize", folder], capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return [item for item in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if item]


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    """The objects of one of our overlays; not to be changed."""
    return render(MANIFESTS / "overlays" / overlay)


@cache
def prerequisites() -> frozenset[tuple[str, str, str]]:
    """(kind, namespace, name) of every row of the table in manifests/README.md; nothing else counts as documented."""
    found: set[tuple[str, str, str]] = set()
    for line in (MANIFESTS / "README.md").read_text(encoding="utf-8").splitlines():
        row = re.match(r"\| (?P<kind>[A-Z]\w+) `(?P<name>[a-z0-9-]+)` \|(?P<namespaces>[^|]*)\|", line)
        if row:
            namespaces = re.findall(r"`([a-z0-9-]+)`", row["namespaces"]) or [""]
            found |= {(row["kind"], namespace, row["name"]) for namespace in namespaces}
    return frozenset(found)
