"""The doctor: what is missing is named with how to get it, and only what is needed makes it fail."""

from pathlib import Path

import pytest

from reasongenrm.errors import ConfigError
from reasongenrm.processes import doctor
from reasongenrm.processes.doctor import examine, missing_packages, require, unfit_packages
from reasongenrm.store.artifacts import Store

METADATA = [
    "pydantic>=2",
    'pytest>=1; extra == "train"',
    'no-such-package>=2; extra == "train"',
    'rich>=9999; extra == "serve"',
]


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requirements of our own with one package that nobody has, and one in a version that nobody has."""
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _name: METADATA)


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
def test_findings_say_what_to_do_exactly_where_something_is_wrong() -> None:
    findings = {finding.name: finding for finding in examine()}
    assert not findings["extra 'train'"].ok
    assert "pip install 'reasongenrm[train]'" in findings["extra 'train'"].advice
    assert findings["extra 'local'"].ok
    assert all(finding.ok != bool(finding.advice) for finding in findings.values())
    assert {name for name, finding in findings.items() if not finding.needed} == {
        "extra 'vllm'",
        "extra 'deepspeed'",
        "extra 'liger'",
        "SmolLM2-135M-Instruct",
        "NVIDIA GPU",
    }


def test_disk_is_that_of_the_stores_folder_to_be(tmp_path: Path) -> None:
    findings = {finding.name: finding for finding in examine(str(tmp_path / "not" / "yet"))}
    assert findings["disk"].found.endswith(f"GiB free at {tmp_path}")


def test_store_that_answers_is_told_from_one_that_does_not(store: Store) -> None:
    assert examine(store.uri)[-1].ok
    other = examine("s3://no-such-bucket-here/prefix")[-1]
    assert (other.name, other.ok, other.needed) == ("store", False, True)
    assert "no-such-bucket-here" in other.advice
