"""Extras: what is missing or does not fit is named with how to get it."""

import pytest

from reasongenrm.errors import ConfigError
from reasongenrm.processes import extras
from reasongenrm.processes.extras import missing_packages, require, unfit_packages

METADATA = [
    "pydantic>=2",
    'pytest>=1; extra == "train"',
    'no-such-package>=2; extra == "train"',
    'rich>=9999; extra == "serve"',
]


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requirements of our own with one package that nobody has, and one in a version that nobody has."""
    monkeypatch.setattr(extras.importlib.metadata, "requires", lambda _name: METADATA)


@pytest.mark.usefixtures("metadata")
def test_missing_and_unfit_packages_are_found_by_extra() -> None:
    assert missing_packages("train") == ["no-such-package is missing"]
    assert unfit_packages("train") == []
    assert missing_packages("serve") == []
    assert [found.startswith("rich is 1") for found in unfit_packages("serve")] == [True]
    assert missing_packages("local") == unfit_packages("local") == []


@pytest.mark.usefixtures("metadata")
def test_requiring_an_extra_says_how_to_get_it() -> None:
    require("serve", "local")
    with pytest.raises(
        ConfigError, match=r"extra 'train': no-such-package is missing\. Run: pip install 'reasongenrm\[train\]'"
    ):
        require("serve", "train")


@pytest.mark.usefixtures("metadata")
def test_a_module_that_is_not_there_is_told_by_the_extra_that_brings_it() -> None:
    found = extras.no_module(ModuleNotFoundError("", name="no_such_package.part"))
    assert str(found) == (
        "no-such-package is not installed here; it comes with extra 'train'. Run: pip install 'reasongenrm[train]' "
        "(in a clone: pip install -e '.[train]')."
    )
    assert extras.no_module(ModuleNotFoundError("", name="reasongenrm.gone")) is None
