"""Secrets in a pod: folders of files, read into the environment."""

import os
from pathlib import Path

import pytest

from reasongenrm.processes.mounted_secrets import read_mounted_secrets


def mount(folder: Path, **keys: str) -> None:
    """A secret as the kubelet mounts it: the files in a folder with a time, a link to it, a link for each key."""
    real = folder / "..2026_11_30_12_00_00.123456789"
    real.mkdir(parents=True)
    (folder / "..data").symlink_to(real.name)
    for key, value in keys.items():
        (real / key).write_text(value)
        (folder / key).symlink_to(f"..data/{key}")


def test_each_key_of_each_secret_is_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    mount(tmp_path / "s3", AWS_ACCESS_KEY_ID="somebody", AWS_SECRET_ACCESS_KEY=" of=our own \n")
    mount(tmp_path / "reasongenrm-hub", HF_TOKEN="hf_x\r\n")
    (tmp_path / "reasongenrm-teacher").mkdir()  # an optional secret that is not there is an empty folder
    before = set(os.environ)
    read_mounted_secrets(tmp_path)
    assert os.environ["AWS_ACCESS_KEY_ID"] == "somebody"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == " of=our own "
    assert os.environ["HF_TOKEN"] == "hf_x"
    assert set(os.environ) - before == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"}
    for name in set(os.environ) - before:
        monkeypatch.delenv(name)


def test_variable_that_is_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "mine")
    mount(tmp_path / "hub", HF_TOKEN="theirs")
    read_mounted_secrets(tmp_path)
    assert os.environ["HF_TOKEN"] == "mine"


def test_machine_without_mounted_secrets_is_left_alone(tmp_path: Path) -> None:
    before = dict(os.environ)
    read_mounted_secrets(tmp_path / "nowhere")
    assert dict(os.environ) == before
