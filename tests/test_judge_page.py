"""docs/judge.md: every example runs as it stands there, against a judge in front of a predictor by rule."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reasongenrm.judge.judge_app import ServerSettings, create_app
from reasongenrm.judge.server.limits import Limits
from reasongenrm.judge.service import JudgeSettings
from tests.endpoints import serving
from tests.predictors import RulePredictor
from tests.waiting import HANG_SECONDS

PAGES = [Path(__file__).parents[1] / "docs" / "judge.md", Path(__file__).parents[1] / "docs" / "trainers.md"]
EXAMPLES = [
    pytest.param(language, code, id=f"{page.stem}-{language}-{number}")
    for page in PAGES
    if page.exists()
    for number, (language, code) in enumerate(
        re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    )
]


@pytest.fixture(scope="module")
def judge_url() -> Iterator[str]:
    with serving(RulePredictor().app) as predictor:
        app = create_app(JudgeSettings(f"{predictor}/v1"), Limits(), ServerSettings())
        with serving(app) as url:
            yield url


@pytest.mark.parametrize(("language", "code"), EXAMPLES)
def test_example_runs(language: str, code: str, judge_url: str, tmp_path: Path) -> None:
    assert "http://127.0.0.1:8080" in code
    here = code.replace("http://127.0.0.1:8080", judge_url)
    command = ["bash", "-euo", "pipefail", "-c", here] if language == "bash" else [sys.executable, "-c", here]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip(), "an example shows something"
    assert '"error":{' not in found.stdout, found.stdout
