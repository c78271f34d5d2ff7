"""The bucket's Job, against the server of the add-on object-store as its manifest starts it."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from reasongenrm.errors import ConfigError, StoreError
from reasongenrm.store.bucket import main, make_bucket
from reasongenrm.store.s3 import make_client
from tests.waiting import HANG_SECONDS

MANIFEST = Path(__file__).parents[2] / "manifests" / "addons" / "object-store" / "seaweedfs.yaml"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the manifest's own arguments; only folders and ports are this machine's, and it stays on
    loopback."""
    folder = tmp_path_factory.mktemp("object-store")
    (folder / "data").mkdir()
    credentials = [{"accessKey": "id", "secretKey": "secret"}]
    identities = {"identities": [{"name": "reasongenrm", "credentials": credentials, "actions": ["Admin"]}]}
    (folder / "s3.json").write_text(json.dumps(identities), encoding="utf-8")
    documents = yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))
    (container,) = next(item for item in documents if item["kind"] == "StatefulSet")["spec"]["template"]["spec"][
        "containers"
    ]
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = free_ports(8)
    here = {
        "-dir": folder / "data",
        "-s3.config": folder / "s3.json",
        "-s3.ip.bind": "127.0.0.1",
        "-s3.port": s3,
        "-s3.port.grpc": s3_grpc,
        "-master.port": master,
        "-master.port.grpc": master_grpc,
        "-volume.port": volume,
        "-volume.port.grpc": volume_grpc,
        "-filer.port": filer,
        "-filer.port.grpc": filer_grpc,
        "-volume.preStopSeconds": 0,  # nobody else writes
    }
    arguments = [item for item in container["args"] if item.partition("=")[0] not in here]
    command = [str(Path(sys.executable).with_name(container["command"][0])), *arguments]
    command += [f"{name}={value}" for name, value in here.items()]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process:
        try:
            probe = container["readinessProbe"]["httpGet"]["path"]
            wait_for(f"http://127.0.0.1:{s3}{probe}", process, folder / "log")
            yield f"http://127.0.0.1:{s3}"
        finally:
            process.kill()  # a clean stop takes it 15 s, and nothing here is kept


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while True:
        assert process.poll() is None, log.read_text(encoding="utf-8")[-2000:]
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=HANG_SECONDS):
                return
        except OSError:
            time.sleep(0.1)


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment that the Job's secret gives its pod."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return monkeypatch


def test_bucket_is_made_once_and_keeps_what_is_in_it(endpoint: str, account: pytest.MonkeyPatch) -> None:
    account.setenv("AWS_ENDPOINT_URL", endpoint)
    assert make_bucket("s3://made/prefix")
    client = make_client()
    client.put_object(Bucket="made", Key="kept", Body=b"1")
    assert not make_bucket("s3://made")
    assert client.get_object(Bucket="made", Key="kept")["Body"].read() == b"1"


def test_region_of_ones_own_is_told_to_the_server(endpoint: str, account: pytest.MonkeyPatch) -> None:
    account.setenv("AWS_ENDPOINT_URL", endpoint)
    account.setenv("AWS_REGION", "eu-central-1")
    assert main(["s3://made-elsewhere"]) == 0
    assert main(["s3://made-elsewhere"]) == 0


def test_wrong_credentials_are_an_error_not_a_bucket_that_is_there(endpoint: str, account: pytest.MonkeyPatch) -> None:
    account.setenv("AWS_ENDPOINT_URL", endpoint)
    account.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match=r"store s3://refused: cannot make the bucket: .*403.*credentials"):
        make_bucket("s3://refused")


def test_server_that_is_not_up_fails_the_pod_with_a_message(
    account: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    account.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert main(["s3://later"]) == StoreError.exit_code
    assert "nobody answers at http://127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize("uri", ["bucket", "s3://", "http://bucket"])
def test_address_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"expected s3://bucket"):
        make_bucket(uri)
    assert main([uri]) == main([]) == ConfigError.exit_code
