"""Secrets that a pod mounts as folders of files, read into the environment, where libraries look for them.

KFP repeats what it patches into a pod some six times in the state of a run (docs/decisions/0016): a mounted secret is
one entry, its keys as environment variables are one each.
"""

import os
from pathlib import Path

FOLDER = Path("/var/run/secrets/reasongenrm")  # one folder per secret below it, one file per key


def read_mounted_secrets(folder: Path = FOLDER) -> None:
    """Set each key that is not set already; a line break at the end is no part of a value.

    Kubernetes keeps the files behind a link called "..data"; each key is a link of its own next to it.
    """
    for path in sorted(folder.glob("*/*")):
        if path.is_file() and not path.name.startswith("."):
            os.environ.setdefault(path.name, path.read_text(encoding="utf-8").rstrip("\r\n"))
