"""Scratch folders of the living stay, those of the killed go."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from reasongenrm.store.scratch import scratch_folder

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


def _make_old(folder: Path) -> None:
    os.utime(folder, (0, 0))


def test_folder_of_a_killed_run_is_removed_by_the_next_one(temporary: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED], check=False).returncode == -signal.SIGKILL
    (abandoned,) = temporary.iterdir()
    assert (abandoned / "work/model.safetensors").exists()
    with scratch_folder("distill_reasons"):
        assert abandoned.exists(), "it may just be being made"
    _make_old(abandoned)
    with scratch_folder("distill_reasons"):
        assert not abandoned.exists()


def test_folder_in_use_and_folders_of_others_are_left_alone(temporary: Path) -> None:
    other = temporary / "reasongenrm-notes"
    other.mkdir()
    with scratch_folder("train_sft") as first:
        _make_old(first.parent)
        _make_old(other)
        with scratch_folder("train_sft") as second:
            assert first.exists()
            assert second != first
    assert [*temporary.iterdir()] == [other]
