"""The InferenceService that manifests/serving/inferenceservice.yaml shows: what a deployment with default settings
writes.

`python -m tests.manifests.example > manifests/serving/inferenceservice.yaml` rewrites it.
"""

import sys
from typing import Any

import yaml

from reasongenrm.components.images import image
from reasongenrm.config import DeployConfig
from reasongenrm.deploy.manifest import render_inference_service
from reasongenrm.store.artifacts import ArtifactRef

HEAD = """\
# What the pipeline's deploy step writes, as an example: addresses and digests are made up. Nothing applies this file;
# the step writes its own with the judge that won, and `reasongenrm rollback` restores the previous one.
"""


def example() -> dict[str, Any]:
    """As the deploy step renders it."""
    model = ArtifactRef(
        stage="train_dpo",
        key="0" * 16,
        digest="sha256:" + "1" * 64,
        uri="s3://reasongenrm/run-1/train_dpo/" + "0" * 16 + "/model",
    )
    decision = ArtifactRef(
        stage="select_winner",
        key="2" * 16,
        digest="sha256:" + "3" * 64,
        uri="s3://reasongenrm/run-1/select_winner/" + "2" * 16 + "/decision",
        metrics={"winner": "dpo", "passed": True},
    )
    return render_inference_service(DeployConfig().with_judge_image(image("cpu")), model, decision)


if __name__ == "__main__":
    sys.stdout.write(HEAD + yaml.safe_dump(example(), sort_keys=False))
