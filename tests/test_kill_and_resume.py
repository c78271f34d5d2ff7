"""The whole run, killed again and again: it goes on, ends with the records of an undisturbed run, and leaves nothing
twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from reasongenrm.runs.local import open_store
from reasongenrm.store.artifacts import list_artifacts, read_file
from tests.tiny import tiny_checkpoint
from tests.waiting import HANG_SECONDS

ROOT = Path(__file__).parents[1]
# Work enough in every stage to be caught in the middle of; checkpoints and parts to go on from.
SETTINGS = (
    "distill.teacher_model=demo-format-checker",  # each run serves it at another port
    "genrm.max_steps=4",
    "sft.max_steps=4",
    "genrm.save_steps=1",
    "sft.save_steps=1",
    "pairs.limit=6",
    "preferences.chosen_above=-1",
    "preferences.rejected_below=1",
)


def start(folder: Path, model: Path, log: Path) -> subprocess.Popen[bytes]:
    """`reasongenrm run` in a process group of its own."""
    demo = ROOT / "examples" / "demo"
    command = [sys.executable, "-m", "reasongenrm", "run", "--store", str(folder), "--model", str(model), "--no-try"]
    command += ["--preferences", str(demo / "preferences.jsonl"), "--benchmark", str(demo / "benchmark.jsonl")]
    command += ["--config", str(ROOT / "pipelines" / "configs" / "smoke.yaml"), "--teacher", "demo"]
    command += [part for setting in SETTINGS for part in ("--set", setting)]
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def wait_for_stage(process: subprocess.Popen[bytes], log: Path, stage: str, seconds: float) -> None:
    """Until `stage` has started and run for some seconds."""
    for _ in range(6000):
        if f"] {stage}" in log.read_text(encoding="utf-8", errors="replace"):
            time.sleep(seconds)
            return
        assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-2000:]
        time.sleep(0.05)
    raise AssertionError(f"{stage} did not start")


def records(folder: Path) -> dict[str, list[Any]]:
    """What each stage made: its content's address, and for evaluations the judgments without their times."""
    made: dict[str, list[Any]] = {}
    with open_store(str(folder)) as store:
        for manifest in list_artifacts(store):
            content: Any = manifest.digest
            if manifest.stage == "evaluate_rewardbench":
                lines = read_file(manifest.ref(), "judgments.jsonl").splitlines()
                content = [{**json.loads(line), "seconds": None} for line in lines]
            if manifest.stage not in ("select_winner", "deploy_kserve"):  # they tell times
                made.setdefault(manifest.stage, []).append(json.dumps(content))
        left_over = [name for name in store.list() if "/parts/" in name or "/checkpoints/" in name]
    assert left_over == []
    return {stage: sorted(contents) for stage, contents in made.items()}


@pytest.mark.slow
def test_run_killed_three_times_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", "chatml")
    log = tmp_path / "undisturbed.log"
    assert start(tmp_path / "undisturbed", model, log).wait() == 0, log.read_text(encoding="utf-8")[-2000:]
    for stage, seconds in (("distill_reasons", 1.0), ("train_sft", 6.0), ("evaluate_rewardbench", 2.0)):
        log = tmp_path / f"killed-in-{stage}.log"
        process = start(tmp_path / "killed", model, log)
        wait_for_stage(process, log, stage, seconds)
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _gone, alive = psutil.wait_procs(family, HANG_SECONDS)
        assert alive == []
    log = tmp_path / "last.log"
    assert start(tmp_path / "killed", model, log).wait() == 0, log.read_text(encoding="utf-8")[-2000:]
    undisturbed, killed = records(tmp_path / "undisturbed"), records(tmp_path / "killed")
    assert killed == undisturbed
    assert {stage: len(contents) for stage, contents in killed.items()} == {
        "import_model": 1,
        "prepare_pairs": 1,
        "distill_reasons": 1,
        "score_reasons": 2,
        "select_reasons": 1,
        "train_sft": 2,
        "sample_reasons": 1,
        "select_preferences": 1,
        "reference_log_probs": 1,
        "train_dpo": 1,
        "evaluate_rewardbench": 4,
    }
