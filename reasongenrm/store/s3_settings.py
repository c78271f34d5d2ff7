"""The AWS variables as people set them: what no client can use, and what to type instead. It needs no boto3."""

import os
import re

from reasongenrm.errors import ConfigError
from reasongenrm.http_client import parse_address

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?(/\S*)?")


def wrong_settings() -> list[str]:
    """What the AWS variables hold that no client can use, each with what to type instead."""
    found = []
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        url = os.environ.get(name)
        if not url:
            continue
        try:
            address = parse_address(url, "http://127.0.0.1:9000")
        except ConfigError as error:
            typed = f" Type {name}=http://{url.strip()}, or https://." if _HOST_AND_PORT.fullmatch(url.strip()) else ""
            found.append(f"{name} is {error}{typed}")
            continue
        if address.headers:
            found.append(
                f"{name} is '{address}' with a user or a password, which S3 does not take. Leave them out, and set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
    for name in _KEYS:
        key = os.environ.get(name, "")
        if not (key.isascii() and key.isprintable() and " " not in key):
            found.append(
                f"{name} holds a line break, a space or another character that no key has; expected the key alone. Set "
                f"it again without what was copied along with it, such as {name}=$(tr -d '[:space:]' < FILE)."
            )
    return found
