"""What `pip install reasongenrm` gives without extras: the version, the doctor, and the client of a judge."""

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.judges_service import FakeJudge


def installed_with(name: str) -> set[str]:
    """The distributions that a plain install of `name` brings, by their canonical names."""
    found: set[str] = set()
    todo = [Requirement(name)]
    while todo:
        wanted = todo.pop()
        extras = wanted.extras or {""}
        key = canonicalize_name(wanted.name)
        if key in found and extras == {""}:
            continue
        found.add(key)
        for line in distribution(wanted.name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(needed)
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """In which Python finds a plain install's packages alone: links to them in a folder, and no site-packages."""
    folder = tmp_path_factory.mktemp("plain")
    for name in installed_with("reasongenrm"):
        installed = distribution(name)
        files = installed.files
        assert files, name
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            (folder / top).symlink_to(Path(str(installed.locate_file(top))))
    (folder / "reasongenrm").symlink_to(Path(__file__).parents[1] / "reasongenrm")
    return {**os.environ, "PYTHONPATH": str(folder)}


def run(environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, in that environment and in a folder without our code."""
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def test_what_a_plain_install_lacks_is_absent_in_the_test(environment: dict[str, str], tmp_path: Path) -> None:
    ran = run(environment, tmp_path, "-c", "import torch")
    assert "No module named 'torch'" in ran.stderr


def test_version_is_printed(environment: dict[str, str], tmp_path: Path) -> None:
    ran = run(environment, tmp_path, "-m", "reasongenrm", "--version")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("reasongenrm ")


def test_doctor_says_what_is_missing(environment: dict[str, str], tmp_path: Path) -> None:
    ran = run(environment, tmp_path, "-m", "reasongenrm", "doctor", "--json")
    assert ran.returncode == 1, ran.stderr
    assert "torch" in ran.stdout
    assert ran.stderr == ""


def test_a_running_judge_is_asked_by_the_command_and_from_python(environment: dict[str, str], tmp_path: Path) -> None:
    with FakeJudge().running() as url:
        pair = ("--question", "Name a prime.", "--answer-a", "seven", "--answer-b", "9")
        ran = run(environment, tmp_path, "-m", "reasongenrm", "judge", "--url", url, *pair, "--json")
        assert (ran.returncode, ran.stderr) == (0, "")
        assert '"preferred": "A"' in ran.stdout
        code = f"from reasongenrm import Judge\nprint(Judge({url!r}).compare('Name a prime.', 'seven', '9').preferred)"
        ran = run(environment, tmp_path, "-c", code)
        assert (ran.stdout, ran.stderr) == ("A\n", "")
