"""Local scratch folders that go away: at the end, after an error, and after a kill when the next one is made.

A folder is in use for as long as the lock on its lock file is held; the kernel releases it with the process.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_PREFIX = "reasongenrm-"


def take_lock(file: IO[str]) -> bool:
    """Lock an open file for as long as it is open, here or in a child that inherits it; False if it is locked
    already."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def scratch_folder(name: str, parent: Path | None = None) -> Iterator[Path]:
    """An empty folder, removed at the end; those of killed runs in `parent` (None: TMPDIR) are removed first."""
    parent = parent or Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    lock = None
    while lock is None:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{name}-", dir=parent))
        lock = _own_lock(folder)
    with lock:
        work = folder / "work"
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(folder)


def _own_lock(folder: Path) -> IO[str] | None:
    """The lock of a new folder; None if another run took the folder for an abandoned one before it was locked."""
    lock = (folder / "lock").open("w")
    if take_lock(lock) and (folder / "lock").exists():
        return lock
    lock.close()
    return None


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            lock = (folder / "lock").open("r+")
        except OSError:  # just removed by its owner, just being made, another user's, or not ours
            continue
        with lock:  # the folder itself may be gone by now, with its owner
            if os.fstat(lock.fileno()).st_uid == os.getuid() and take_lock(lock):
                shutil.rmtree(folder, ignore_errors=True)  # another run may be removing it too
