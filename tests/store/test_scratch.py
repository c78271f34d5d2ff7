"""Scratch folders of the living stay, those of the killed go."""

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import pytest

from reasongenrm.store.scratch import _own_lock, scratch_folder, take_lock

KILLED = """
import os, signal
from reasongenrm.store.scratch import scratch_folder
with scratch_folder("train_sft") as folder:
    (folder / "model.safetensors").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TMPDIR of the test's own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_folder_of_a_killed_run_is_removed_by_the_next_one(temporary: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED], check=False).returncode == -signal.SIGKILL
    (abandoned,) = temporary.iterdir()
    assert (abandoned / "work/model.safetensors").exists()
    with scratch_folder("distill_reasons"):
        assert not abandoned.exists()


def test_folder_in_use_and_folders_of_others_are_left_alone(temporary: Path) -> None:
    other = temporary / "reasongenrm-notes"
    other.mkdir()
    with scratch_folder("train_sft") as first, scratch_folder("train_sft") as second:
        assert first.exists()
        assert second != first
    assert [*temporary.iterdir()] == [other]


def test_folders_made_at_the_same_time_are_never_taken_for_abandoned_ones(temporary: Path) -> None:
    program = """
from reasongenrm.store.scratch import scratch_folder
for number in range(200):
    with scratch_folder("train_sft") as folder:
        (folder / "part").write_text("mine")
        assert (folder / "part").read_text() == "mine"
"""
    runs = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert list(temporary.iterdir()) == []


def test_folder_that_its_owner_removes_while_it_is_looked_at_is_no_error(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = temporary / "reasongenrm-train_sft-ended"
    removed.mkdir()
    (removed / "lock").touch()
    really_open = Path.open

    def open_and_remove(path: Path, mode: str = "r") -> IO[Any]:
        file = really_open(path, mode)
        if path.parent == removed:
            shutil.rmtree(removed)
        return file

    monkeypatch.setattr(Path, "open", open_and_remove)
    with scratch_folder("train_sft") as folder:
        assert folder.exists()
    assert list(temporary.iterdir()) == []


def test_folder_that_another_run_took_for_abandoned_before_it_was_locked_is_left_to_it(temporary: Path) -> None:
    taken = temporary / "taken"
    taken.mkdir()
    with (taken / "lock").open("w") as lock:
        assert take_lock(lock)
        assert _own_lock(taken) is None
    own = _own_lock(taken)
    assert own is not None
    own.close()
