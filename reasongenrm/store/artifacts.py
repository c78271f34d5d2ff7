"""Objects in one S3 bucket and prefix, and artifacts: whole sets of files with a manifest.

A stage's output is an artifact, a folder `<stage>/<key>/<digest>/` that exists once its manifest.json has been written,
last. Between stages travels an `ArtifactRef`, a small JSON that says where the artifact lies and what is in it.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator

from reasongenrm.errors import ConfigError, InputError, StoreError, mistake_in, validated
from reasongenrm.http_client import without_login
from reasongenrm.records import Record, parse_records

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Of files of rows; a name that ends so is a file, never a data set's name on the hub.
DATA_ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSED_ENDINGS = (".gz", ".zst")
DATA_FILE_ENDINGS = tuple(kind + packed for kind in DATA_ENDINGS for packed in ("", *COMPRESSED_ENDINGS))
R = TypeVar("R", bound=Record)
_DELETE_BATCH = 1000  # DeleteObjects takes no more


class Store:
    """One bucket and prefix. Names are relative to the prefix; endpoint and credentials come from the AWS variables.

    Args:
        uri: "s3://bucket" or "s3://bucket/prefix".

    Raises:
        ConfigError: another scheme, or no bucket.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise ConfigError(
                f"store '{without_login(uri)}': expected s3://bucket or s3://bucket/prefix. Give it such a URI."
            )
        if not uri.startswith("s3://") or not uri.isprintable() or " " in uri:
            typed = "".join(part for part in f"s3{uri[2:]}" if part.isprintable() and part != " ")
            raise ConfigError(
                f"store {uri!r}: expected it in small letters, without spaces and line breaks. Type {typed}."
            )
        self.bucket = parts.netloc
        self.prefix = parts.path.strip("/")
        self.uri = "s3://" + "/".join(filter(None, (self.bucket, self.prefix)))

    @cached_property
    def _s3(self) -> Any:
        """The S3 module, imported late: a quarter of a second."""
        from reasongenrm.store import s3

        return s3

    @cached_property
    def _client(self) -> Any:
        with self._s3.errors(self.uri, "open the store"):
            return self._s3.make_client()

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def uri_of(self, name: str) -> str:
        """The s3:// URI of an object or a folder."""
        return f"{self.uri}/{name}".rstrip("/")

    def check(self) -> None:
        """Ask the bucket for one name; creates nothing.

        Raises:
            StoreError: no credentials, wrong credentials, no such bucket, or no answer from the endpoint.
        """
        with self._s3.errors(self.uri, "list the store"):
            self._client.list_objects_v2(Bucket=self.bucket, Prefix=self._key(""), MaxKeys=1)

    def put_bytes(self, name: str, data: bytes) -> None:
        """Write one small object; it is there whole or not at all."""
        with self._s3.errors(self.uri, "write", name, len(data)):
            self._client.put_object(Bucket=self.bucket, Key=self._key(name), Body=data)

    def get_bytes(self, name: str) -> bytes:
        """Read one object whole.

        Raises:
            StoreError: there is no such object.
        """
        with self._s3.errors(self.uri, "read", name):
            body: bytes = self._client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read()
            return body

    def put_files(self, files: Mapping[str, Path]) -> None:
        """Write files by name, large ones in parallel parts; afterwards the sizes that the store reports are compared.

        Raises:
            StoreError: the store refused, or holds another size than was sent.
        """
        sizes = {name: path.stat().st_size for name, path in files.items()}
        with self._s3.errors(self.uri, "write", _few(files), sum(sizes.values())):
            self._s3.upload(self._client, self.bucket, {self._key(name): path for name, path in files.items()})
            for name, size in sizes.items():
                stored = self._client.head_object(Bucket=self.bucket, Key=self._key(name))["ContentLength"]
                if stored != size:
                    raise StoreError(
                        f"store {self.uri}: sent {size:,} bytes as {name}, but {stored:,} are there. "
                        "Check that nothing else writes to this store, and run again."
                    )

    def get_files(self, files: Mapping[str, Path]) -> None:
        """Read objects into files, each of which appears whole or not at all.

        Raises:
            StoreError: there is no such object, or no room for it.
        """
        with self._s3.errors(self.uri, "read", _few(files)):
            self._s3.download(self._client, self.bucket, {self._key(name): path for name, path in files.items()})

    def exists(self, name: str) -> bool:
        """Whether there is an object of exactly this name (by listing: a HEAD cannot tell a missing bucket)."""
        with self._s3.errors(self.uri, "look up", name):
            page = self._client.list_objects_v2(Bucket=self.bucket, Prefix=self._key(name), MaxKeys=1)
        return any(item["Key"] == self._key(name) for item in page.get("Contents", ()))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Names that begin with `prefix`, sorted, each with its size in bytes."""
        where, start = {"Bucket": self.bucket, "Prefix": self._key(prefix)}, len(self._key(""))
        with self._s3.errors(self.uri, "list", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(**where)
            items = [item for page in pages for item in page.get("Contents", ())]
        return dict(sorted((item["Key"][start:], item["Size"]) for item in items))

    def list(self, prefix: str = "") -> list[str]:
        """Names that begin with `prefix`, sorted."""
        return [*self.sizes(prefix)]

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; names that are not there are fine.

        Raises:
            StoreError: an object could not be deleted.
        """
        names = [*names]
        with self._s3.errors(self.uri, "delete", _few(names)):
            for start in range(0, len(names), _DELETE_BATCH):
                objects = [{"Key": self._key(name)} for name in names[start : start + _DELETE_BATCH]]
                answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
                for error in answer.get("Errors", ()):
                    raise StoreError(
                        f"store {self.uri}: cannot delete {error['Key']}: {error.get('Code')} {error.get('Message')}. "
                        "Check that the credentials may delete objects."
                    )


def _few(names: Iterable[str]) -> str:
    """The first names of many."""
    names = [*names]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class FileEntry(Record):
    """One file of an artifact. `path` is relative to the artifact's folder, `sha256` 64 hex digits."""

    path: str
    size: int
    sha256: str

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        """A manifest from elsewhere must not lead a download out of its folder."""
        if not path or path.startswith("/") or ".." in path.split("/") or "\\" in path:
            raise ValueError(f"'{path}' does not stay inside the artifact's folder")
        return path


class ArtifactRef(Record):
    """What travels between stages: where an artifact lies, its content address, and what it counted and measured."""

    stage: str
    key: str
    digest: str
    uri: str
    counts: dict[str, int] = Field(default={})
    metrics: dict[str, Any] = Field(default={})

    def write(self, path: str | Path) -> None:
        """Write the reference as JSON."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> "ArtifactRef":
        """Read a reference.

        Raises:
            InputError: the file is missing or is no reference.
        """
        expected = "an artifact reference. Re-run its stage."
        try:
            with validated(str(path), expected):
                return cls.model_validate_json(Path(path).read_bytes())
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; expected {expected}") from error


class Manifest(Record):
    """What an artifact holds and where it comes from; its presence makes the artifact exist."""

    schema_version: int = SCHEMA_VERSION
    stage: str
    key: str
    digest: str
    created_at: str
    files: tuple[FileEntry, ...]
    config: dict[str, Any]
    inputs: dict[str, str]
    input_uris: dict[str, str]
    code_version: str
    source_sha256: str
    counts: dict[str, int]
    metrics: dict[str, Any]
    uri: str = Field(exclude=True)  # where it was found: a copied or renamed bucket keeps its artifacts

    def ref(self) -> ArtifactRef:
        """The reference that travels between stages."""
        return ArtifactRef(
            stage=self.stage, key=self.key, digest=self.digest, uri=self.uri, counts=self.counts, metrics=self.metrics
        )


def _manifest(store: Store, folder: str = "") -> Manifest:
    """Read the manifest.json in a folder of the store ("" or ending in "/")."""
    data, uri = store.get_bytes(folder + MANIFEST), store.uri_of(folder)
    try:
        manifest = Manifest.model_validate({**json.loads(data), "uri": uri})
    except (ValueError, TypeError) as error:  # ValidationError is a ValueError
        found = mistake_in(error) if isinstance(error, ValidationError) else error
        raise StoreError(f"{uri}/{MANIFEST}: damaged: {found}. Delete this folder and re-run the stage.") from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise StoreError(
            f"{uri}/{MANIFEST}: schema {manifest.schema_version}, expected {SCHEMA_VERSION}. "
            "Use the version of reasongenrm that wrote it, or re-run the stage."
        )
    return manifest


def open_artifact(ref: "ArtifactRef | str") -> Manifest:
    """Read the manifest of an artifact, given by its reference or its folder's URI.

    Raises:
        StoreError: there is no finished artifact, or another one than the reference names.
    """
    uri = ref if isinstance(ref, str) else ref.uri
    store = Store(uri)
    if not store.exists(MANIFEST):
        raise StoreError(f"{uri}: no finished artifact here (no {MANIFEST}). Re-run the stage that writes it.")
    manifest = _manifest(store)
    if isinstance(ref, ArtifactRef) and manifest.digest != ref.digest:
        raise StoreError(f"{uri}: holds {manifest.digest}, expected {ref.digest}. Made again; re-run what reads it.")
    return manifest


def input_of(ref: "ArtifactRef | str", name: str) -> ArtifactRef:
    """An artifact that this one was made from, by the name that its stage gives it.

    Raises:
        StoreError: one of the two is not there any more.
    """
    return open_artifact(open_artifact(ref).input_uris[name]).ref()


def download(ref: "ArtifactRef | str", into: Path) -> Path:
    """Fetch a whole artifact into a folder; every file's size and SHA-256 are compared with the manifest.

    Raises:
        StoreError: the artifact is unfinished, or a file is missing or damaged; the message names it.
    """
    manifest = open_artifact(ref)
    fetch(Store(manifest.uri), manifest.files, into)
    return into


def fetch(store: Store, entries: Iterable[FileEntry], into: Path) -> None:
    """Fetch files into a folder and compare each with its entry; raises as `download` does, or when there is no
    room."""
    entries = [*entries]
    into.mkdir(parents=True, exist_ok=True)
    needed, free = sum(entry.size for entry in entries), shutil.disk_usage(into).free
    if needed > free:
        raise StoreError(
            f"{store.uri}: no room for it in {into}: {needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free. "
            "Free some, or set TMPDIR to a folder on a larger disk, and run again; finished work is kept."
        )
    store.get_files({entry.path: into / entry.path for entry in entries})
    for entry in entries:
        _verify(entry, (into / entry.path).stat().st_size, sha256_file(into / entry.path), store.uri)


def read_file(ref: "ArtifactRef | str", name: str) -> bytes:
    """Read one file of an artifact, verified.

    Raises:
        StoreError: the artifact is unfinished, has no such file, or the file is damaged.
    """
    manifest = open_artifact(ref)
    for entry in manifest.files:
        if entry.path == name:
            data = Store(manifest.uri).get_bytes(name)
            _verify(entry, len(data), hashlib.sha256(data).hexdigest(), manifest.uri)
            return data
    raise StoreError(
        f"{manifest.uri}: has no file {name}; it holds {_few(entry.path for entry in manifest.files)}. "
        "Give the artifact of the stage that writes it."
    )


def read_records(ref: "ArtifactRef | str", name: str, kind: type[R]) -> list[R]:
    """Read one JSON Lines file of an artifact.

    Raises:
        StoreError: see `read_file`.
        InputError: a line is not a valid `kind`.
    """
    return parse_records(read_file(ref, name), kind, f"{ref if isinstance(ref, str) else ref.uri}/{name}")


def _verify(entry: FileEntry, size: int, sha256: str, where: str) -> None:
    if (size, sha256) != (entry.size, entry.sha256):
        raise StoreError(
            f"{where}/{entry.path}: damaged: {size:,} bytes, sha256 {sha256[:12]}; "
            f"the manifest says {entry.size:,} bytes, {entry.sha256[:12]}. Delete this folder and re-run its stage."
        )


def finished(store: Store, prefix: str = "") -> Iterator[Manifest]:
    """Every artifact whose folder's name begins with `prefix` and whose files are all there, by name."""
    sizes = store.sizes(prefix)
    for name in sizes:
        if name.count("/") == 3 and name.endswith(f"/{MANIFEST}"):
            folder = name.removesuffix(MANIFEST)
            manifest = _manifest(store, folder)
            if all(sizes.get(folder + entry.path) == entry.size for entry in manifest.files):
                yield manifest


def list_artifacts(store: Store) -> list[Manifest]:
    """Every finished artifact, oldest first; `inputs` holds the digests of the artifacts it was made from."""
    return sorted(finished(store), key=lambda manifest: (manifest.created_at, manifest.uri))


def read_uri(uri: str) -> bytes:
    """Read one s3:// object or one local file whole.

    Raises:
        InputError: there is no such file or object; the message names it.
        StoreError: the store failed.
    """
    if uri.lower().startswith("s3://"):
        folder, _, name = uri.rpartition("/")
        store = Store(folder)
        if not name or not store.exists(name):
            raise InputError(f"{uri}: no such object; expected one file. Check the URI.")
        return store.get_bytes(name)
    path = Path(uri).expanduser()
    if not path.is_file():
        raise InputError(f"{uri}: no such file; expected a local file or s3://bucket/name. Check the path.")
    return path.read_bytes()


def is_hub_name(uri: str) -> bool:
    """Whether a data set's URI is a name on the Hugging Face hub: its form alone decides, `owner/name`."""
    return _HUB_NAME.fullmatch(uri) is not None and not uri.endswith(DATA_FILE_ENDINGS)


def digest_bytes(data: bytes) -> str:
    """The content address of bytes, "sha256:" and 64 hex digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
