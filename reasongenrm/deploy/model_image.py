"""python -m reasongenrm.deploy.model_image s3://MODEL REPOSITORY FOLDER: a folder that a builder makes an image of.

With `deploy.model_image`, pods mount the checkpoint from an image instead of downloading it from the store. The image
holds the checkpoint's files below /models and nothing else; its tag is the checkpoint's digest, so that a manifest
names the image before there is one. images/model.sh runs this and the builder.

Source: KServe v0.20.0, pkg/utils/storage.go, ConfigureOciNativeToContainer.
"""

import json
import re
import sys
from pathlib import Path

from reasongenrm.config import DeployConfig
from reasongenrm.errors import ConfigError, InputError, ReasonGenRMError
from reasongenrm.store.artifacts import ArtifactRef, download, open_artifact

_SCHEME = "oci+native://"  # a volume of the kubelet; plain oci:// is a container that shares its processes with ours
_DIGITS = 16  # of the digest in the tag, as in the name of the artifact's folder
_REPOSITORY = re.compile(r"[a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[a-z0-9]+((\.|_{1,2}|-+)[a-z0-9]+)*)+")
_MAX_FILES = 120  # an image has 127 layers at most


def storage_uri(config: DeployConfig, model: ArtifactRef) -> str:
    """Where KServe gets the checkpoint: its folder in the store (S3 needs the "/"), or its image."""
    if config.model_image is None:
        return model.uri.rstrip("/") + "/"
    return _SCHEME + image_name(config.model_image, model.digest)


def image_name(repository: str, digest: str) -> str:
    """The image of a checkpoint with this digest, "registry/path:sha256-0123456789abcdef".

    Raises:
        ConfigError: not a repository.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(
            f"repository '{repository}': expected registry.example/path in lower case, without a scheme and a tag. "
            "Change deploy.model_image or REPOSITORY."
        )
    return f"{repository}:sha256-{digest.removeprefix('sha256:')[:_DIGITS]}"


def prepare(model_uri: str, repository: str, folder: Path) -> str:
    """Fetch a checkpoint, verified, and write the Dockerfile of its image: a layer for each file, pulled side by side.

    Args:
        model_uri: the artifact's folder in the store.
        folder: gets `Dockerfile` and `models/`.

    Returns:
        The image's name.

    Raises:
        ConfigError: not a repository.
        StoreError: there is no such artifact, or a file is damaged.
        InputError: it has more files than an image has layers.
    """
    manifest = open_artifact(model_uri)
    name = image_name(repository, manifest.digest)
    if len(manifest.files) > _MAX_FILES:
        raise InputError(
            f"{model_uri}: has {len(manifest.files)} files; an image has a layer for each, {_MAX_FILES} at most. Save "
            "the checkpoint in larger files."
        )
    download(manifest.ref(), folder / "models")
    copied = [json.dumps([f"models/{entry.path}", f"/models/{entry.path}"]) for entry in manifest.files]
    label = f'LABEL reasongenrm.io/model-digest="{manifest.digest}"'
    (folder / "Dockerfile").write_text("\n".join(["FROM scratch", label, *(f"COPY {each}" for each in copied), ""]))
    return name


def main(arguments: list[str]) -> int:
    """The exit code: 0, with the image's name on stdout, else that of the error, whose message goes to stderr."""
    try:
        if len(arguments) != 3:
            raise InputError("usage: python -m reasongenrm.deploy.model_image s3://MODEL REPOSITORY FOLDER")
        name = prepare(arguments[0], arguments[1], Path(arguments[2]))
    except ReasonGenRMError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - images/model.sh passes it on
        return error.exit_code
    print(name)  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
