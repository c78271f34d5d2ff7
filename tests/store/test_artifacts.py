"""Objects, artifacts and references, against a real server; every failure is one clear error."""

import hashlib
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from reasongenrm.config import SelectConfig
from reasongenrm.errors import ConfigError, InputError, StoreError
from reasongenrm.store import artifacts as store_module
from reasongenrm.store import s3
from reasongenrm.store.artifacts import (
    ArtifactRef,
    FileEntry,
    Store,
    digest_bytes,
    download,
    list_artifacts,
    open_artifact,
    read_file,
    read_uri,
)
from reasongenrm.store.seaweed import EmbeddedStore
from reasongenrm.store.stage import Stage
from tests.waiting import HANG_SECONDS


@pytest.fixture
def artifact(store: Store) -> ArtifactRef:
    """A finished artifact of two files, one in a folder."""
    with Stage(store, "import_model", SelectConfig(), {"model": digest_bytes(b"a model")}) as stage:
        stage.add_bytes("config.json", b"{}")
        stage.add_bytes("tokenizer/vocabulary.txt", b"good\nbad\n")
        return stage.finish({"num_files": 2}, {"chat_family": "chatml"})


def test_names_are_relative_to_the_prefix_and_listed_in_order(store: Store) -> None:
    for name in ("b/2", "a", "b/10"):
        store.put_bytes(name, name.encode())
    neighbour = Store(store.uri + "-neighbour")
    neighbour.put_bytes("a", b"not ours")
    assert store.list() == ["a", "b/10", "b/2"]
    assert store.list("b/") == ["b/10", "b/2"]
    assert store.sizes("b/1") == {"b/10": 4}
    assert store.get_bytes("b/10") == b"b/10"
    assert store.uri_of("b/2") == store.uri + "/b/2"


def test_object_exists_only_under_its_whole_name(store: Store) -> None:
    store.put_bytes("folder/name", b"")
    assert store.exists("folder/name")
    assert not store.exists("folder/nam")
    assert not store.exists("folder")


def test_delete_takes_many_names_in_batches_and_forgives_absent_ones(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_DELETE_BATCH", 3)
    for number in range(8):
        store.put_bytes(f"object-{number}", b"x")
    store.delete([f"object-{number}" for number in range(7)] + ["absent"])
    assert store.list() == ["object-7"]


def test_large_file_goes_up_in_parts_and_comes_back_the_same(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PART_BYTES", 5 << 20)
    data = bytes(range(256)) * (11 << 12)  # 11 MiB: parts of 5, 5 and 1
    (tmp_path / "there").write_bytes(data)
    store.put_files({"large": tmp_path / "there"})
    head = boto3.session.Session().client("s3").head_object(Bucket=store.bucket, Key=f"{store.prefix}/large")
    assert head["ETag"].endswith('-3"')
    store.get_files({"large": tmp_path / "new/folder/back"})
    assert (tmp_path / "new/folder/back").read_bytes() == data


def test_absent_object_leaves_no_file_behind(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot read absent: there is no such object"):
        store.get_files({"absent": tmp_path / "file"})
    with pytest.raises(StoreError, match=r"cannot read absent: there is no such object\. Re-run the stage"):
        store.get_bytes("absent")
    assert [*tmp_path.iterdir()] == []


def test_server_compares_what_arrives_with_the_checksum(store: Store) -> None:
    client = boto3.session.Session().client("s3")
    with pytest.raises(client.exceptions.ClientError, match="BadDigest"):
        client.put_object(Bucket=store.bucket, Key="damaged", Body=b"arrived", ChecksumCRC32="AAAAAA==")


@pytest.mark.parametrize("uri", ["http://bucket/prefix", "s3://", "/tmp/store", "s3://bucket/prefix?x=1"])
def test_uri_that_is_no_store_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"expected s3://bucket or s3://bucket/prefix"):
        Store(uri)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("AWS_ACCESS_KEY_ID", "WRONG", "403 InvalidAccessKeyId.*The credentials are wrong: check AWS_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "403 SignatureDoesNotMatch.*The credentials are wrong"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1", r"nobody answers at http://127\.0\.0\.1:1\. Start the store"),
        ("AWS_PROFILE", "absent", "profile .absent. could not be found.*or AWS_PROFILE"),
    ],
)
def test_wrong_settings_are_told_at_once_with_what_to_do(
    store: Store, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    started = time.monotonic()
    with pytest.raises(StoreError, match=message):
        store.check()
    assert time.monotonic() - started < HANG_SECONDS


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "AWS_ENDPOINT_URL_S3",
            "10.0.0.1:9000",
            r"not begin with http.*Type AWS_ENDPOINT_URL_S3=http://10\.0\.0\.1:9000",
        ),
        ("AWS_ENDPOINT_URL", "minio.example", r"Type AWS_ENDPOINT_URL=http://minio\.example, or https://\."),
        ("AWS_ENDPOINT_URL", "localhost:9000\n", r"Type AWS_ENDPOINT_URL=http://localhost:9000, or https://\."),
        ("AWS_ENDPOINT_URL_S3", "http://a:9000x", "its port is no number from 1 to 65535"),
        (
            "AWS_ENDPOINT_URL_S3",
            "http://me:canary@a:9000",
            "'http://a:9000' with a user or a password, which S3",
        ),
        ("AWS_ENDPOINT_URL_S3", "me:canary@a:9000", "'a:9000': it does not begin with http"),
        ("AWS_SECRET_ACCESS_KEY", "canary\n", "AWS_SECRET_ACCESS_KEY holds a line break.*Set it again"),
        ("AWS_ACCESS_KEY_ID", "canary ", "AWS_ACCESS_KEY_ID holds a line break, a space"),
        ("AWS_SESSION_TOKEN", "can\u00e9ary", "AWS_SESSION_TOKEN holds .* another character that no key has"),
    ],
)
def test_settings_that_no_client_can_use_say_what_to_type_and_show_no_key(
    store: Store, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=message) as caught:
        store.check()
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("uri", ["S3://bucket/prefix", "s3://bucket/prefix\n", "s3://bucket /prefix"])
def test_an_s3_uri_is_typed_in_one_way(uri: str) -> None:
    for use in (Store, lambda uri: read_uri(f"{uri}/name")):
        with pytest.raises(ConfigError, match=r"Type s3://bucket/prefix"):
            use(uri)


def test_no_credentials_at_all_are_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match=r"Unable to locate credentials.*Set AWS_ACCESS_KEY_ID"):
        store.check()


def test_missing_bucket_is_told_and_nothing_is_created(store_env: EmbeddedStore, tmp_path: Path) -> None:
    store = Store("s3://no-such-bucket/prefix")
    (tmp_path / "file").write_bytes(b"x")
    for attempt in (
        store.check,
        lambda: store.put_bytes("a", b""),
        lambda: store.put_files({"a": tmp_path / "file"}),
        lambda: store.exists("a"),
    ):
        with pytest.raises(StoreError, match=rf"no such bucket at {store_env.env['AWS_ENDPOINT_URL']}\. Create it"):
            attempt()


class _AlwaysBroken(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def broken_endpoint() -> Iterator[str]:
    """A server that answers 500 to everything."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _AlwaysBroken) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_endpoint_that_always_answers_500_ends_in_one_error(
    store: Store, broken_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", broken_endpoint)
    monkeypatch.delenv("REASONGENRM_STORE_DIR")
    started = time.monotonic()
    with pytest.raises(StoreError, match=rf"{broken_endpoint} answered 500.*also when retried\. Look at its log"):
        store.check()
    assert time.monotonic() - started < HANG_SECONDS


def test_artifact_lies_below_stage_key_and_digest(store: Store, artifact: ArtifactRef) -> None:
    # The content address by hand: one line a file, sorted by path.
    lines = "".join(
        f"{path}\0{len(data)}\0{hashlib.sha256(data).hexdigest()}\n"
        for path, data in (("config.json", b"{}"), ("tokenizer/vocabulary.txt", b"good\nbad\n"))
    )
    digest = hashlib.sha256(lines.encode()).hexdigest()
    assert artifact.digest == "sha256:" + digest
    assert artifact.uri == f"{store.uri}/import_model/{artifact.key}/sha256-{digest[:16]}"
    folder = artifact.uri.removeprefix(store.uri + "/")
    assert store.list() == [f"{folder}/{name}" for name in ("config.json", "manifest.json", "tokenizer/vocabulary.txt")]
    assert open_artifact(artifact) == open_artifact(artifact.uri) == open_artifact(artifact.uri + "/")
    assert open_artifact(artifact).ref() == artifact


def test_download_is_verified_and_keeps_the_folders(artifact: ArtifactRef, tmp_path: Path) -> None:
    folder = download(artifact, tmp_path / "model")
    assert (folder / "tokenizer/vocabulary.txt").read_bytes() == b"good\nbad\n"
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["config.json", "vocabulary.txt"]
    assert read_file(artifact, "config.json") == b"{}"
    with pytest.raises(StoreError, match=r"has no file weights; it holds config\.json, tokenizer/vocabulary\.txt"):
        read_file(artifact, "weights")


@pytest.mark.parametrize("damage", [b"good\nbaD\n", b"good\n"])
def test_damaged_file_is_named(artifact: ArtifactRef, tmp_path: Path, damage: bytes) -> None:
    Store(artifact.uri).put_bytes("tokenizer/vocabulary.txt", damage)
    message = r"tokenizer/vocabulary\.txt: damaged: . bytes, sha256 .{12}; the manifest says 9 bytes"
    with pytest.raises(StoreError, match=message):
        download(artifact, tmp_path)
    with pytest.raises(StoreError, match=message):
        read_file(artifact, "tokenizer/vocabulary.txt")


def test_artifact_without_its_manifest_does_not_exist(store: Store, artifact: ArtifactRef) -> None:
    Store(artifact.uri).delete(["manifest.json"])
    with pytest.raises(StoreError, match=r"no finished artifact here \(no manifest\.json\)\. Re-run the stage"):
        open_artifact(artifact)
    assert list_artifacts(store) == []


def test_artifact_made_again_with_other_bytes_is_told_from_the_one_referred_to(artifact: ArtifactRef) -> None:
    other = artifact.model_copy(update={"digest": digest_bytes(b"other")})
    with pytest.raises(StoreError, match=rf"holds {artifact.digest}, expected {other.digest}\. Made again"):
        open_artifact(other)


def test_damaged_manifest_and_one_of_a_newer_version_are_told(artifact: ArtifactRef) -> None:
    folder = Store(artifact.uri)
    manifest = json.loads(folder.get_bytes("manifest.json"))
    folder.put_bytes("manifest.json", b"{")
    with pytest.raises(StoreError, match=r"manifest\.json: damaged: .*Delete this folder and re-run the stage"):
        open_artifact(artifact)
    folder.put_bytes("manifest.json", json.dumps({**manifest, "schema_version": 2}).encode())
    with pytest.raises(StoreError, match="schema 2, expected 1"):
        open_artifact(artifact)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", ""])
def test_manifest_cannot_lead_a_download_out_of_its_folder(path: str) -> None:
    with pytest.raises(ValueError, match="does not stay inside the artifact's folder"):
        FileEntry(path=path, size=0, sha256="0" * 64)


def test_download_without_room_says_how_much_is_needed(artifact: ArtifactRef, tmp_path: Path) -> None:
    folder = Store(artifact.uri)
    manifest = json.loads(folder.get_bytes("manifest.json"))
    manifest["files"][0]["size"] = 10**15
    folder.put_bytes("manifest.json", json.dumps(manifest).encode())
    with pytest.raises(StoreError, match=r"no room for it in .*: 1,000,000,000 MB are needed, .* MB are free"):
        download(artifact, tmp_path)


def test_reference_survives_its_file(artifact: ArtifactRef, tmp_path: Path) -> None:
    artifact.write(tmp_path / "new/ref.json")
    assert ArtifactRef.read(tmp_path / "new/ref.json") == artifact


def test_reference_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json: no such file; expected an artifact reference"):
        ArtifactRef.read(tmp_path / "absent.json")
    (tmp_path / "ref.json").write_text('{"stage": "distill_reasons"}')
    with pytest.raises(InputError, match=r"ref\.json: key: Field required, found .*; expected an artifact reference"):
        ArtifactRef.read(tmp_path / "ref.json")


def test_lineage_leads_from_an_artifact_to_what_it_was_made_from(store: Store, artifact: ArtifactRef) -> None:
    with Stage(store, "select_reasons", SelectConfig(), {"model": artifact}) as stage:
        stage.add_bytes("examples.jsonl", b"{}\n")
        child = stage.finish({"num_in": 1, "num_out": 1})
    store.put_bytes("train_sft/0123456789abcdef/sha256-unfinished/config.json", b"{}")
    store.put_bytes("train_sft/0123456789abcdef/checkpoints/00000001/manifest.json", b"{}")
    first, second = list_artifacts(store)
    assert (first.ref(), second.ref()) == (artifact, child)
    assert second.inputs == {"model": first.digest}
    assert second.input_uris == {"model": artifact.uri}


def test_uri_is_read_from_the_disk_and_from_the_store(store: Store, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"local")
    store.put_bytes("rows.jsonl", b"remote")
    assert read_uri(str(tmp_path / "rows.jsonl")) == b"local"
    assert read_uri(store.uri_of("rows.jsonl")) == b"remote"
    for absent in (str(tmp_path / "absent"), store.uri_of("absent"), store.uri + "/"):
        with pytest.raises(InputError, match=f"{absent}: no such (file|object)"):
            read_uri(absent)


def test_importing_the_store_does_not_import_boto3() -> None:
    code = "import sys, reasongenrm.store.artifacts, reasongenrm.store.stage; "
    code += "assert not {'boto3', 'torch'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
