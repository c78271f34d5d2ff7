"""The InferenceService in the manifests is what the code renders, and fits the runtime and accounts of the overlays."""

import copy

import pytest
import yaml

from tests.kube.references import check_references
from tests.kube.schemas import check
from tests.kube.syntax import ManifestError
from tests.manifests import MANIFESTS, prerequisites, rendered
from tests.manifests.example import HEAD, example

FILE = MANIFESTS / "serving" / "inferenceservice.yaml"


def test_example_is_what_a_deployment_renders() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert text == HEAD + yaml.safe_dump(example(), sort_keys=False), (
        f"run: python -m tests.manifests.example > {FILE.relative_to(MANIFESTS.parent)}"
    )


@pytest.mark.parametrize("overlay", ["gpu", "production"])
def test_example_fits_the_overlay(overlay: str) -> None:
    check(example())
    check_references([*rendered(overlay), example()], prerequisites())


def test_example_with_a_runtime_that_is_not_there_is_found() -> None:
    service = copy.deepcopy(example())
    service["spec"]["predictor"]["model"]["runtime"] = "reasongenrm-vlm"
    with pytest.raises(ManifestError, match="ServingRuntime reasongenrm/reasongenrm-vlm"):
        check_references([*rendered("gpu"), service], prerequisites())
