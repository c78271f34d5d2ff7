"""A checkpoint becomes an image that its manifest has named before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reasongenrm.config import DeployConfig, SFTConfig
from reasongenrm.deploy.manifest import render_inference_service, revision_of
from reasongenrm.deploy.model_image import main
from reasongenrm.errors import ConfigError
from reasongenrm.store.artifacts import ArtifactRef, Store
from reasongenrm.store.stage import Stage
from tests.kube.schemas import check

ROOT = Path(__file__).parents[2]
REPOSITORY = "registry.test:5000/team/judges"
MODEL = ArtifactRef(stage="train_dpo", key="0" * 16, digest="sha256:" + "5e" * 32, uri="s3://judges/run-1/train_dpo/m")
DECISION = ArtifactRef(
    stage="select_winner", key="1" * 16, digest="sha256:1", uri="s3://judges/d", metrics={"winner": "dpo"}
)


def settings(repository: str | None = REPOSITORY) -> DeployConfig:
    return DeployConfig(model_image=repository).with_judge_image("registry/cpu:1")


def checkpoint(store: Store, num_shards: int = 2) -> ArtifactRef:
    with Stage(store, "train_sft", SFTConfig(), {"model": "sha256:0"}, {"variant": "sft"}) as stage:
        stage.add_bytes("config.json", b"{}")
        for number in range(num_shards):
            stage.add_bytes(f"model-{number}.safetensors", bytes([number]))
        return stage.finish({})


def model_image(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """images/model.sh where docker is a script that notes what it is asked, and keeps what it is to build."""
    (folder / "bin").mkdir()
    (folder / "scratch").mkdir()
    docker = folder / "bin" / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n[ "$1" != build ] || cp -r . {folder}/built\n')
    docker.chmod(0o755)
    given = {"BUILDER": "docker", "PYTHON": sys.executable, "TMPDIR": str(folder / "scratch")} | environment
    given["PATH"] = f"{folder}/bin:{os.environ['PATH']}"
    command = ["bash", str(ROOT / "images" / "model.sh")]
    return subprocess.run(command, env=os.environ | given, text=True, capture_output=True, check=False)


def test_pods_mount_the_image_whose_tag_is_the_digest() -> None:
    """KServe v0.20.0 takes the scheme (pkg/controller/v1beta1/inferenceservice/utils/utils.go,
    SupportedStorageURIPrefixList) and hands what follows to the kubelet (pkg/utils/storage.go)."""
    service = render_inference_service(settings(), MODEL, DECISION)
    check(service)
    assert service["spec"]["predictor"]["model"]["storageUri"] == f"oci+native://{REPOSITORY}:sha256-5e5e5e5e5e5e5e5e"
    from_store = render_inference_service(settings(None), MODEL, DECISION)
    assert from_store["spec"]["predictor"]["model"]["storageUri"] == f"{MODEL.uri}/"
    assert revision_of(service) != revision_of(from_store)


@pytest.mark.parametrize(
    "repository", ["judges", "oci://registry.test/judges", "registry.test/judges:7", "registry.test/Judges", ""]
)
def test_repository_that_is_none_is_refused(repository: str) -> None:
    with pytest.raises(ConfigError, match=r"expected registry\.example/path in lower case, without a scheme and a tag"):
        render_inference_service(settings(repository), MODEL, DECISION)


def test_image_holds_the_checkpoint_and_has_the_name_that_the_manifest_says(store: Store, tmp_path: Path) -> None:
    model = checkpoint(store)
    done = model_image(tmp_path, MODEL=model.uri, REPOSITORY=REPOSITORY, PUSH="1")
    assert done.returncode == 0, done.stderr
    service = render_inference_service(settings(), model, DECISION)
    image = service["spec"]["predictor"]["model"]["storageUri"].removeprefix("oci+native://")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [f"build --file Dockerfile --tag {image} .", f"push {image}"]
    files = {path.relative_to(tmp_path / "built/models").as_posix() for path in (tmp_path / "built/models").iterdir()}
    assert files == {"config.json", "model-0.safetensors", "model-1.safetensors"}
    assert (tmp_path / "built" / "Dockerfile").read_text().splitlines() == [
        "FROM scratch",
        f'LABEL reasongenrm.io/model-digest="{model.digest}"',
        *[f'COPY ["models/{name}", "/models/{name}"]' for name in sorted(files)],
    ]
    assert [*(tmp_path / "scratch").iterdir()] == []


def test_checkpoint_that_is_damaged_makes_no_image(store: Store, tmp_path: Path) -> None:
    model = checkpoint(store)
    Store(model.uri).put_bytes("model-0.safetensors", b"?")
    done = model_image(tmp_path, MODEL=model.uri, REPOSITORY=REPOSITORY)
    assert (done.returncode, (tmp_path / "asked").exists()) == (3, False)
    assert "model-0.safetensors: damaged" in done.stderr
    assert [*(tmp_path / "scratch").iterdir()] == []


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"REPOSITORY": REPOSITORY}, "images/model.sh: MODEL is not set; expected the s3:// folder of a checkpoint"),
        ({"MODEL": "s3://b/m"}, "images/model.sh: REPOSITORY is not set; expected what deploy.model_image says"),
        ({"MODEL": "s3://b/m", "REPOSITORY": REPOSITORY, "BUILDER": "make"}, "BUILDER is 'make'; expected buildx"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_fetched(
    tmp_path: Path, environment: dict[str, str], message: str
) -> None:
    done = model_image(tmp_path, **environment)
    assert done.returncode == 1
    assert message in done.stderr


def test_checkpoint_with_more_files_than_an_image_has_layers_is_refused(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint(store, 120)
    assert main([model.uri, REPOSITORY, str(tmp_path / "image")]) == 2
    assert "has 121 files; an image has a layer for each, 120 at most" in capsys.readouterr().err
    assert not (tmp_path / "image").exists()
    assert main([model.uri]) == 2
