from importlib import reload

import pytest

from reasongenrm import __version__
from reasongenrm.components import images


def test_every_image_of_the_table_has_the_package_version_as_its_tag() -> None:
    table = images.read_table()
    assert list(table) == list(images.NAMES)
    assert all(
        reference == f"ghcr.io/reasongenrm/reasongenrm-{name}:{__version__}" for name, reference in table.items()
    )


def test_an_image_can_be_replaced_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REASONGENRM_IMAGE_VLLM", "localhost:5000/judge:7")
    try:
        assert ("localhost:5000/judge:7", images.read_table()["cpu"]) == (reload(images).VLLM, images.CPU)
    finally:
        monkeypatch.undo()
        reload(images)
