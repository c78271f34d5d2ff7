"""What `pip install reasongenrm` gives without extras: version, doctor, plans, judging by endpoint; other commands name
the extra that they want."""

import json
import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.endpoints import FakeEndpoint, completion, serving
from tests.judges_service import FakeJudge

DEMO = Path(__file__).parents[1] / "examples" / "demo"


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
        for top in {file.parts[0] for file in files} - {"..", "__pycache__", "reasongenrm"}:
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


# Runs commands in one process, as the entry point does, and prints how each ended.
COMMANDS = """
import contextlib, io, json, sys, traceback
from reasongenrm.cli import app

ended = {}
for command in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            app(command)
        except SystemExit as error:
            code = error.code
        except BaseException:
            code = "defect"
            traceback.print_exc()
    ended[command[0]] = [code, said.getvalue()]
print(json.dumps(ended))
"""


def test_every_other_command_says_which_extra_it_wants(environment: dict[str, str], tmp_path: Path) -> None:
    data, model = ("--preferences", str(tmp_path / "p.jsonl")), ("--model", str(tmp_path))
    (tmp_path / "p.jsonl").write_text("{}")
    (tmp_path / ".reasongenrm" / "store").mkdir(parents=True)
    run_of = (*data, "--benchmark", "b.jsonl", *model)
    wanted = {
        "run": (run_of, "pipeline"),
        "submit": (("--store", "s3://b/c", *run_of), "pipeline"),
        "compile": ((), "pipeline"),
        "serve": (model, "train"),
        "judge-server": (("--predictor", "http://127.0.0.1:9/v1"), "judge"),
        "web": ((), "web"),
        "models": ((), "local"),
        "prepare": ((*data, *model), "local"),
        "evaluate": (("--benchmark", str(DEMO / "benchmark.jsonl"), *model), "train"),
    }
    commands = json.dumps([[name, *options] for name, (options, _) in wanted.items()])
    ran = run(environment, tmp_path, "-c", COMMANDS, commands)
    assert ran.stderr == ""
    for name, (code, said) in json.loads(ran.stdout).items():
        assert code in (2, 3), (name, code, said)
        assert f"pip install 'reasongenrm[{wanted[name][1]}" in " ".join(said.split()), (name, said)


def test_preferences_in_text_are_converted_and_other_files_name_their_extra(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "p.csv").write_text("prompt,chosen,rejected\nQ,good,bad\n")
    ran = run(environment, tmp_path, "-m", "reasongenrm", "convert", "p.csv", "-o", "out.jsonl")
    assert ran.returncode == 0, ran.stderr
    assert json.loads((tmp_path / "out.jsonl").read_text())["chosen"][1]["content"] == "good"
    for name in ("p.parquet", "p.jsonl.zst", "owner/name"):
        (tmp_path / Path(name).name).write_bytes(b"x")
        ran = run(environment, tmp_path, "-m", "reasongenrm", "convert", name)
        assert (ran.returncode, "pip install 'reasongenrm[data]'" in ran.stderr) == (2, True), ran.stderr


def test_a_plan_needs_no_extra(environment: dict[str, str], tmp_path: Path) -> None:
    ran = run(environment, tmp_path, "-m", "reasongenrm", "plan", "--model", "8b")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "GPU-hours" in ran.stdout
    assert not list(tmp_path.iterdir())


def test_an_endpoint_is_evaluated(environment: dict[str, str], tmp_path: Path) -> None:
    endpoint = FakeEndpoint(lambda _body, _number: completion("The first is right.\n\n[[A]]"))
    with serving(endpoint.app) as url:
        judged = ("--endpoint", f"{url}/v1", "--benchmark", str(DEMO / "benchmark.jsonl"))
        asked = (*judged, "--limit", "2", "--format", "json")
        ran = run(environment, tmp_path, "-m", "reasongenrm", "evaluate", *asked)
    assert ran.returncode == 0, ran.stderr
    evaluation = json.loads(ran.stdout)
    assert (evaluation["benchmark"]["num_rows"], evaluation["accuracy"]) == (2, 0.5)  # always A: right in one order
    assert (tmp_path / "report" / "report.html").is_file()
