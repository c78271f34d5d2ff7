"""What is left of a training process that failed under torchrun."""

from pathlib import Path

import pytest

from reasongenrm.config import SFTConfig, TrainConfig
from reasongenrm.errors import ConfigError, TrainingError
from reasongenrm.training.job import TrainingJob
from reasongenrm.training.torchrun import _failure, _work
from reasongenrm.training.world import World
from tests.tiny import tiny_checkpoint


def job(folder: Path, config: TrainConfig) -> TrainingJob:
    return TrainingJob(
        stage="train_sft",
        config=config.model_dump(mode="json"),
        inputs={},
        extra={},
        store_uri="s3://nowhere",
        model_dir=folder / "model",
        dataset_dir=folder / "dataset",
        output_dir=folder,
        resume_from=None,
        opening_role="reason",
        num_processes=2,
    )


def test_what_a_process_raises_reaches_the_stage(tmp_path: Path) -> None:
    from datasets import Dataset

    tiny_checkpoint(tmp_path / "model", "chatml")
    Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[1, 2]], "length": [2]}).save_to_disk(tmp_path / "dataset")
    asked = job(tmp_path, SFTConfig(optim="sgdd"))
    assert _work(asked, rank=1) == ConfigError.exit_code
    error = _failure(asked, World(num_processes=2), "ended with exit code 1", tmp_path / "none.txt")
    assert isinstance(error, ConfigError)
    assert "sgdd is not a valid" in str(error)


def test_process_that_trains_alone_where_several_were_asked_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under PET_* variables, which only torchrun reads, TRL and accelerate are one process and say nothing."""
    from datasets import Dataset

    for name, value in {"NNODES": "1", "NPROC_PER_NODE": "2", "NODE_RANK": "0"}.items():
        monkeypatch.setenv(f"PET_{name}", value)
    tiny_checkpoint(tmp_path / "model", "chatml")
    rows = {"input_ids": [[1, 2]] * 2, "labels": [[1, 2]] * 2, "length": [2] * 2}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "dataset")
    asked = job(tmp_path, SFTConfig(train_batch_size=2))
    assert _work(asked, rank=0) == TrainingError.exit_code
    error = _failure(asked, World(num_processes=2), "ended", tmp_path / "none.txt")
    assert isinstance(error, TrainingError)
    assert "would run as 1 process(es) of kind NO with sharding 'none'; expected 2 process(es)" in str(error)


def test_process_that_dies_without_a_word_leaves_the_end_of_its_output(tmp_path: Path) -> None:
    (tmp_path / "stderr.txt").write_text("line\n" * 50 + "Signal 9 (SIGKILL) received\n")
    error = _failure(
        job(tmp_path, SFTConfig()), World(num_processes=2), "ended with exit code 1", tmp_path / "stderr.txt"
    )
    assert isinstance(error, TrainingError)
    assert "2 processes: torchrun ended with exit code 1. The end of what it wrote:\nline" in str(error)
    assert "Signal 9 (SIGKILL) received\nIf a process was killed for memory" in str(error)
    second = _failure(
        job(tmp_path, SFTConfig()), World(2, 1, 4, ("host", 1)), "ended with exit code 1", tmp_path / "stderr.txt"
    )
    assert "node 1 of 2 nodes x 4 processes: torchrun" in str(second)
    assert "If no process failed here, another node's log says what happened first" in str(second)
