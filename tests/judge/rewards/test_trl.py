"""The reward function, called as GRPOTrainer calls it, and by GRPOTrainer itself."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.judge.api import ListwiseRequest, PointwiseRequest
from reasongenrm.judge.client.client_errors import JudgeKeyError
from reasongenrm.judge.rewards.trl import JudgeReward
from tests.judges_service import FakeJudge, refused


def called(reward: JudgeReward, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
    """What GRPOTrainer._calculate_rewards passes and does."""
    return asyncio.run(
        reward(
            prompts=prompts,
            completions=completions,
            completion_ids=[[1]] * len(prompts),
            trainer_state=None,
            **columns,
        )
    )


def test_a_group_is_ranked_against_itself_and_no_other() -> None:
    fake = FakeJudge()
    with fake.running() as url:
        found = called(JudgeReward(url), ["p", "p", "q", "p", "q"], ["a", "bb", "x", "ccc", "yy"])
    assert found == pytest.approx([0.1, 0.5, 0.1, 0.9, 0.9])
    assert sorted(len(one.answers) for one in fake.requests if isinstance(one, ListwiseRequest)) == [2, 3]


def test_a_completion_without_a_rival_has_no_reward() -> None:
    metrics: dict[str, float] = {}
    with FakeJudge().running() as url:
        found = called(JudgeReward(url), ["p", "q", "q"], ["a", "x", "yy"], log_metric=metrics.__setitem__)
    assert found == [None, 0.1, 0.9]
    assert metrics == {"judge/unjudged_fraction": pytest.approx(1 / 3)}


def test_conversations_and_references_go_to_the_judge_as_such() -> None:
    fake = FakeJudge()
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    extra: dict[str, list[Any]] = {}
    with fake.running() as url:
        found = called(
            JudgeReward(url, mode="reference", reference_column="gold", rubric="brevity"),
            [chat, chat],
            [[{"role": "assistant", "content": "Hello"}], [{"role": "assistant", "content": "Ho"}]],
            gold=["Hey", None],
            log_extra=extra.__setitem__,
        )
    assert found == [0.9, None]
    assert extra == {"judge_reason": ["It is given.", None]}
    (asked,) = fake.requests
    assert isinstance(asked, PointwiseRequest)
    assert [turn.content for turn in asked.turns()] == ["Be brief.", "Hi"]
    assert (asked.answer, asked.reference, asked.rubric) == ("Hello", "Hey", "brevity")


def test_the_anchor_needs_no_column() -> None:
    with FakeJudge().running() as url:
        assert called(JudgeReward(url, mode="anchor"), ["p", "p"], ["longer than that", "a"]) == [0.9, 0.1]


def test_one_refused_completion_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeJudge(lambda _, number: refused(422, "too_long", "too long") if number == 0 else None)
    with fake.running() as url, caplog.at_level(logging.WARNING):
        found = called(JudgeReward(url, mode="anchor", concurrency=1), ["p", "p"], ["a", "b"])
    assert found == [None, 0.1]
    assert "too long" in caplog.text
    assert "1 of 2 completions have no reward" in caplog.text


def test_a_wrong_key_ends_the_training() -> None:
    with FakeJudge(key="secret").running() as url, pytest.raises(JudgeKeyError):
        called(JudgeReward(url, api_key="other"), ["p", "p"], ["a", "b"])


@pytest.mark.parametrize(
    ("mode", "prompts", "words"),
    [
        ("reference", ["p"], "no column 'reference'"),
        ("anchor", [[{"role": "tool", "content": "Hi"}]], "role: Input should be 'system', 'user' or 'assistant'"),
        ("group", ["p"] * 33, "the judge ranks up to 32"),
    ],
)
def test_data_that_the_judge_cannot_be_asked_about_is_named(mode: Any, prompts: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        called(JudgeReward("http://127.0.0.1:9", mode=mode), prompts, ["a"] * len(prompts))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # TRL 1.16 reads it
@pytest.mark.parametrize("mode", ["group", pytest.param("reference", marks=pytest.mark.slow)])
def test_grpo_trains_on_it(mode: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import is_async_callable

    from tests.tiny import tiny_checkpoint

    folder = tiny_checkpoint(tmp_path / "model", "chatml")
    rows = [{"prompt": [{"role": "user", "content": text}], "reference": "word"} for text in ("Hi", "Name a prime.")]
    config = GRPOConfig(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        max_steps=1,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    fake = FakeJudge()
    with fake.running() as url:
        reward = JudgeReward(url, mode=mode)
        assert is_async_callable(reward)
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
        )
        trainer.train()
    logged = next(row for row in trainer.state.log_history if "reward" in row)
    assert logged["judge/unjudged_fraction"] == 0.0
    assert f"rewards/judge_{mode}/mean" in logged
    if mode == "group":
        assert logged["reward"] == pytest.approx(0.5)  # of a pair, one wins what the other loses
        assert len(fake.requests) == 2
        assert all(isinstance(one, ListwiseRequest) and len(one.answers) == 2 for one in fake.requests)
    else:
        assert len(fake.requests) == 4
        assert all(isinstance(one, PointwiseRequest) and one.reference == "word" for one in fake.requests)
