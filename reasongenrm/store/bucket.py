"""python -m reasongenrm.store.bucket s3://NAME: make the bucket, unless it exists, before the first run.

Runs in a Job, which tries again when the object store is not up yet. The AWS variables say where and who.
"""

import sys
from typing import Any

from reasongenrm.errors import InputError, ReasonGenRMError
from reasongenrm.store.artifacts import Store

_DEFAULT_REGION = "us-east-1"  # the one region that AWS refuses as a location constraint


def make_bucket(uri: str) -> bool:
    """Make the bucket of a store's address, s3://bucket with or without a prefix.

    Returns:
        Whether it was made; False: it was there already, and these credentials may read it.

    Raises:
        ConfigError: not such an address.
        StoreError: the server does not answer, refuses, or the bucket belongs to another account.
    """
    from botocore.exceptions import ClientError

    from reasongenrm.store.s3 import errors, make_client, status

    bucket = Store(uri).bucket
    with errors(uri, "make the bucket"):
        client = make_client()
        try:
            client.head_bucket(Bucket=bucket)
            return False
        except ClientError as error:
            if status(error) != 404:
                raise
        region = client.meta.region_name
        where: dict[str, Any] = {}
        if region not in (None, _DEFAULT_REGION, "aws-global"):
            where["CreateBucketConfiguration"] = {"LocationConstraint": region}
        try:
            client.create_bucket(Bucket=bucket, **where)
        except ClientError as error:
            if error.response["Error"].get("Code") == "BucketAlreadyOwnedByYou":  # made by another pod of the Job
                return False
            raise
        return True


def main(arguments: list[str]) -> int:
    """The exit code: 0 the bucket is there, else that of the error, whose message goes to stderr."""
    try:
        if len(arguments) != 1:
            raise InputError("usage: python -m reasongenrm.store.bucket s3://BUCKET")
        made = make_bucket(arguments[0])
    except ReasonGenRMError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the last line of the pod's log
        return error.exit_code
    print(f"{arguments[0]}: {'made' if made else 'there already'}")  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
