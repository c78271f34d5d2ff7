"""Local scratch folders, removed when a stage ends, fails or, if it was killed, when the next one starts.

A folder is in use for as long as the lock on its lock file is held; the kernel lets go of it with the process.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_PREFIX = "reasongenrm-"
_YOUNG_SECONDS = 60.0  # a folder that is being made has no lock for a moment


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """An empty folder below TMPDIR, removed at the end; those of killed runs are removed first.

    Args:
        name: of the stage, to be told apart by a person.
    """
    _remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{name}-"))
    with (folder / "lock").open("w") as lock:
        _take(lock)
        work = folder / "work"
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(folder)


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            status, lock = folder.lstat(), (folder / "lock").open("r+")
        except OSError:  # removed by its owner just now, another user's, or none of ours
            continue
        with lock:
            young = time.time() - status.st_mtime < _YOUNG_SECONDS
            if status.st_uid == os.getuid() and not young and _take(lock):
                shutil.rmtree(folder, ignore_errors=True)  # another run may be removing it too


def _take(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
