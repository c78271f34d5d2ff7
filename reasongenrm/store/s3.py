"""How we talk to S3: the boto3 client, parallel transfers, what each failure means to the user.

`store.py` imports this module when a store is first used, because boto3 takes a quarter of a second to import.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
)

from reasongenrm.errors import ConfigError, StoreError
from reasongenrm.http_client import without_login
from reasongenrm.store.s3_settings import wrong_settings

STORE_DIR = "REASONGENRM_STORE_DIR"  # set by the embedded store alone, to tell a full disk from other failures
MIB = 1 << 20
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_RESERVED_FRACTION = 0.02  # SeaweedFS stops writing at 1 % free; the other per cent is for what it has just written
_PART_BYTES = 16 * MIB  # S3 allows 10,000 parts; s3transfer enlarges them by itself beyond 156 GiB


def make_client() -> Any:
    """An S3 client of the standard AWS variables; a dead endpoint shows within seconds, not minutes.

    One client serves all stores (it may be shared by threads): making one takes a quarter of a second.

    Raises:
        ConfigError: a variable holds what no client can use; the message says what to type, and never a key.
    """
    for problem in wrong_settings():
        raise ConfigError(problem)
    settings = ((name, value) for name, value in os.environ.items() if name.upper().startswith(("AWS_", *_PROXIES)))
    return _client_of(tuple(sorted(settings)))


@lru_cache(maxsize=4)
def _client_of(settings: tuple[tuple[str, str], ...]) -> Any:  # noqa: ARG001 - boto3 reads them from the environment
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 4},
        max_pool_connections=16,
        user_agent_extra="reasongenrm",
    )
    return boto3.session.Session().client("s3", config=config)


def upload(client: Any, bucket: str, files: Mapping[str, Path]) -> None:
    """Write files to keys, large ones in parts, several parts at a time; a key appears whole or not at all.

    boto3 sends a CRC32 with every request; the server compares it with what arrived.
    """
    with _transfers(client) as manager:
        for future in [manager.upload(str(path), bucket, key) for key, path in files.items()]:
            future.result()


def download(client: Any, bucket: str, files: Mapping[str, Path]) -> None:
    """Read keys into files, large ones in parts; a file appears whole or not at all."""
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    with _transfers(client) as manager:
        for future in [manager.download(bucket, key, str(path)) for key, path in files.items()]:
            future.result()


def _transfers(client: Any) -> Any:
    parts = {"multipart_threshold": _PART_BYTES, "multipart_chunksize": _PART_BYTES}
    return create_transfer_manager(
        client, TransferConfig(**parts, max_concurrency=4, preferred_transfer_client="classic")
    )


def status(error: ClientError) -> int:
    """The HTTP status of an answer."""
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


@contextmanager
def errors(uri: str, action: str, name: str = "", num_bytes: int = 0) -> Iterator[None]:
    """Turn whatever boto3 or the disk raises into one StoreError: what the verb `action` was to do with the objects
    `name` of the store `uri`, and how many bytes were to be written (0 for none).
    """
    what = f"store {uri}: cannot {action} {name}".rstrip() + (f" ({num_bytes / MIB:,.1f} MiB)" if num_bytes else "")
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise StoreError(f"{what}: {_explain(error, uri, num_bytes)}") from error
    except OSError as error:
        raise StoreError(f"{what}: {error}. Free space or fix the rights of that file, and run again.") from error


def _endpoint() -> str:
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return without_login(named) if named else "AWS (AWS_ENDPOINT_URL is not set)"


def _explain(error: BotoCoreError | ClientError, uri: str, num_bytes: int) -> str:
    """What came back and what to do about it."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
        return f"{error}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
    if isinstance(error, NoRegionError):
        return "no region is set. Set AWS_REGION (any value does for a server that is not AWS)."
    if isinstance(error, EndpointConnectionError | ConnectTimeoutError):
        return f"nobody answers at {_endpoint()}. Start the store, or set AWS_ENDPOINT_URL to where it is."
    if isinstance(error, HTTPClientError):
        return f"the connection to {_endpoint()} broke ({error}). Is it running? Run again; finished work is kept."
    if not isinstance(error, ClientError):
        return f"{error}. Check AWS_ENDPOINT_URL ({_endpoint()}) and the other AWS variables."
    code, message = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
    found = f"{_endpoint()} answered {status(error)} {code}: {message}".rstrip(": .")
    if code == "NoSuchBucket":
        return f"there is no such bucket at {_endpoint()}. Create it, or name another in the store's URI."
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"):
        return f"{found}. The credentials are wrong: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    if status(error) == 403:
        return f"{found}. The credentials may not do this: check them, and the rights on the bucket of {uri}."
    if status(error) == 404:
        return "there is no such object. Re-run the stage that writes it, or check the URI."
    if status(error) >= 500 and STORE_DIR in os.environ:
        folder = os.environ[STORE_DIR]
        usage = shutil.disk_usage(folder)
        if usage.free < num_bytes + _RESERVED_FRACTION * usage.total:
            return (
                f"the disk of {folder} is full: {num_bytes / MIB:,.1f} MiB were needed, {usage.free / MIB:,.1f} MiB "
                "are free, of which the server keeps 1 % of the disk. Free some space and run again; finished work is "
                "kept."
            )
    if status(error) >= 500:
        return f"{found}, also when retried. Look at its log; is its disk full? Run again: finished work is kept."
    return f"{found}. Check the URI and the AWS variables."
