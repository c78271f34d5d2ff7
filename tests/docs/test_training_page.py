"""docs/training.md: its Python is run, with a tiny model and the demo's teacher in the place of large ones."""

import json
import re
from pathlib import Path

import pytest

from reasongenrm.demo.formats import teacher_server, write_demo_data
from reasongenrm.evaluation.judge_style import style_of
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


RUN = """
distill: {teacher_model: demo-format-checker, num_samples: 2, max_tokens: 96}
score: {max_length: 8192}
select: {formula: product, min_score: 0.0}
sft: {dtype: float32, train_batch_size: 4, max_length: 8192, num_train_epochs: 1}
"""


def test_training_from_python_makes_a_checkpoint_that_writes_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [code] = re.findall(r"^```python\n(from pathlib.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(tmp_path / "Qwen2.5-0.5B-Instruct", "chatml")
    pairs, _ = write_demo_data(tmp_path / "demo")
    Path("pairs.jsonl").write_text("".join(pairs.read_text().splitlines(keepends=True)[:4]))
    Path("run.yaml").write_text(RUN)
    with teacher_server() as teacher:
        exec(compile(code.replace("http://teacher.example:8000/v1", teacher), "docs/training.md", "exec"), {})
    assert style_of(tmp_path / "judge") == "reason"
    assert len(json.loads((tmp_path / "judge" / "training_log.json").read_text())) > 0
    # Four pairs in both orders, four examples per step.
    assert "{'num_in': 8, 'num_out': 8} 2\n" in capsys.readouterr().out
