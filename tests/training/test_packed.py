"""Losses of packed micro-batches are those of separate sequences, value and gradient, float64, 1e-10: SFT and DPO."""

import math
import random
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from reasongenrm.config import DPOConfig, SFTConfig
from reasongenrm.errors import TrainingError
from reasongenrm.packing.attention import tensors
from reasongenrm.packing.batches import pair_tree, plan_batches
from reasongenrm.packing.kernels import prepare_for_packed_rows
from reasongenrm.packing.trees import IGNORED, pack
from reasongenrm.training import trainers
from reasongenrm.training.packed import (
    REFERENCE_COLUMNS,
    MicroBatches,
    PackedDPOTrainer,
    PackedSFTTrainer,
    _share,
    sum_by_branch,
)
from tests.tiny import ARCHITECTURES, exact_architecture, exact_model, tiny_checkpoint, tiny_tokenizer

BETA = 0.3


def numbers(count: int, seed: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(100) for _ in range(count)]


def sft_rows() -> Dataset:
    """Six examples of 4 to 14 tokens, of which the last half is trained."""
    ids = [numbers(4 + 2 * row, row) for row in range(6)]
    labels = [[IGNORED] * (len(row) // 2) + row[len(row) // 2 :] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels, "length": [len(row) for row in ids]})


def dpo_rows() -> Dataset:
    """Four pairs behind prompts of 1 to 10 tokens, with log-probabilities of a reference."""
    columns: dict[str, list[Any]] = {
        "prompt_ids": [numbers(1 + 3 * row, row) for row in range(4)],
        "chosen_ids": [numbers(2 + row, 10 + row) for row in range(4)],
        "rejected_ids": [numbers(5 - row, 20 + row) for row in range(4)],
    }
    columns["length"] = [sum(len(columns[name][row]) for name in list(columns)[:3]) for row in range(4)]
    columns |= {name: [-20.0 - side - row for row in range(4)] for side, name in enumerate(REFERENCE_COLUMNS)}
    return Dataset.from_dict(columns)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    tiny_checkpoint(tmp_path, "chatml")
    return exact_model(tmp_path)


def plain_output(model: Any, batch: dict[str, Any]) -> Any:
    """What TRL's fused head gives, from whole logits in float64: its kernel computes in float32."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "segments")}
    logits = model(**inputs, use_cache=False).logits
    logprobs = logits.log_softmax(-1)
    mask = batch["targets"] != IGNORED
    picked = logprobs.gather(-1, batch["targets"].clamp(min=0)[..., None])[..., 0]
    return SimpleNamespace(
        log_probs=picked * mask,
        label_mask=mask,
        entropy=-(logprobs.exp() * logprobs).sum(-1) * mask,
        mean_logits=logits.mean(-1) * mask,
        is_top1=(logits.argmax(-1) == batch["targets"]) & mask,
    )


def logprob_sum(model: Any, ids: list[int], wanted: list[bool]) -> torch.Tensor:
    logprobs = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    picked = logprobs[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    return (picked * torch.tensor(wanted[1:])).sum()


def gradient(model: Any, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


def step_loss(trainer: Any, model: Any, batches: list[dict[str, Any]]) -> torch.Tensor:
    """As the Trainer adds up a step's micro-batches: their mean."""
    losses = [trainer(plain_output(model, batch), batch)[0] * batch["weight"] for batch in batches]
    return torch.stack(losses).sum() / len(losses)


@pytest.mark.parametrize("limit", [1, 20, 1000])
def test_sft_step_is_the_mean_over_all_trained_tokens_of_its_examples(model: Any, limit: int) -> None:
    rows = sft_rows()
    plan = plan_batches(rows["length"], SFTConfig(train_batch_size=6, num_train_epochs=1), 1, max_batch_tokens=limit)
    assert plan.num_micro_batches == {1: 6, 20: 3, 1000: 1}[limit]
    losses, count = [], 0
    for row in rows:
        is_trained = [label != IGNORED for label in row["labels"]]
        losses.append(-logprob_sum(model, row["input_ids"], is_trained))
        count += sum(is_trained[1:])
    expected = torch.stack(losses).sum() / count
    expected_gradient = gradient(model, expected)
    prepare_for_packed_rows(model)
    batches = list(MicroBatches(rows, plan, pairs=False))
    loss = step_loss(lambda *given: PackedSFTTrainer.loss_and_sums(None, *given), model, batches)  # type: ignore[arg-type]
    assert abs(loss.item() - expected.item()) < 1e-10
    assert (gradient(model, loss) - expected_gradient).norm() < 1e-10 * expected_gradient.norm()


@pytest.mark.parametrize("limit", [1, 25, 1000])
def test_dpo_step_is_the_papers_loss_meaned_over_its_pairs(model: Any, limit: int) -> None:
    rows = dpo_rows()
    plan = plan_batches(rows["length"], DPOConfig(train_batch_size=4, num_train_epochs=1), 1, max_batch_tokens=limit)
    assert plan.num_micro_batches == {1: 4, 25: 2, 1000: 1}[limit]
    losses = []
    for row in rows:
        rewards = []
        for side, reference in zip(("chosen_ids", "rejected_ids"), REFERENCE_COLUMNS, strict=True):
            ids = row["prompt_ids"] + row[side]
            wanted = [place >= len(row["prompt_ids"]) for place in range(len(ids))]
            rewards.append(BETA * (logprob_sum(model, ids, wanted) - row[reference]))
        losses.append(torch.log1p(torch.exp(rewards[1] - rewards[0])))  # -log sigmoid(chosen - rejected)
    expected = torch.stack(losses).mean()
    expected_gradient = gradient(model, expected)
    prepare_for_packed_rows(model)
    batches = list(MicroBatches(rows, plan, pairs=True))
    trainer: Any = SimpleNamespace(beta=BETA)
    loss = step_loss(lambda *given: PackedDPOTrainer.loss_and_sums(trainer, *given), model, batches)
    assert abs(loss.item() - expected.item()) < 1e-10
    assert (gradient(model, loss) - expected_gradient).norm() < 1e-10 * expected_gradient.norm()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_trainers_first_loss_of_every_architecture_is_that_of_separate_sequences(
    model_type: str, tmp_path: Path
) -> None:
    model, rows = exact_architecture(model_type).float(), sft_rows()
    losses, count = [], 0
    with torch.no_grad():
        for row in rows:
            is_trained = [label != IGNORED for label in row["labels"]]
            losses.append(-logprob_sum(model, row["input_ids"], is_trained))
            count += sum(is_trained[1:])
    trainer = trainers.build_trainer(
        SFTConfig(train_batch_size=6, max_steps=1, dtype="float32", logging_steps=1, save_steps=1),
        lambda: model,
        None,
        tiny_tokenizer("chatml"),
        rows,
        stage="x",
        output_dir=tmp_path,
        num_processes=1,
    )
    trainer.train()
    [loss] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert loss == pytest.approx((torch.stack(losses).sum() / count).item(), rel=1e-5)


def test_what_is_logged_of_a_pair_is_worked_out_by_hand() -> None:
    row = {"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5]}
    batch = (
        tensors(pack([pair_tree(row)]))
        | {"num_branches": 2}
        | {name: torch.tensor([-3.0 - at]) for at, name in enumerate(REFERENCE_COLUMNS)}
    )
    assert batch["targets"].tolist() == [[IGNORED, 3, 4, 5]]
    output = SimpleNamespace(
        log_probs=torch.tensor([[0.0, -1.0, -0.5, -5.0]]),
        label_mask=torch.tensor([[False, True, True, True]]),
        entropy=torch.tensor([[0.0, 1.0, 2.0, 3.0]]),
        mean_logits=torch.tensor([[0.0, 1.0, 3.0, 7.0]]),
        is_top1=torch.tensor([[0.0, 1.0, 0.0, 1.0]]),
    )
    trainer: Any = SimpleNamespace(beta=0.5)
    loss, sums = PackedDPOTrainer.loss_and_sums(trainer, output, batch)
    found = {name: float(top / below) for name, (top, below) in sums.items()}
    # chosen: -1.5 against -3; rejected: -5 against -4.
    assert found == {
        "entropy": 2.0,
        "mean_token_accuracy": 0.5,
        "logits/chosen": 2.0,
        "logits/rejected": 7.0,
        "logps/chosen": -1.5,
        "logps/rejected": -5.0,
        "rewards/chosen": 0.75,
        "rewards/rejected": -0.5,
        "rewards/margins": 1.25,
        "rewards/accuracies": 1.0,
    }
    assert float(loss) == pytest.approx(math.log1p(math.exp(-1.25)))


def test_sums_leave_out_what_is_shared() -> None:
    batch = {"branches": torch.tensor([[-1, 0, 0, 1]]), "num_branches": 2}
    assert sum_by_branch(torch.tensor([[9.0, 1.0, 2.0, 4.0]]), batch).tolist() == [3.0, 4.0]


def test_every_process_asks_the_reference_model_as_often() -> None:
    lengths = [5, 9, 2, 4, 7]
    shares = [_share(lengths, 10, rank, 2) for rank in range(2)]
    assert shares[0] == [[1], [0, 3]]  # longest first; 9, 7 + 2 would be one pass but 7 + 5 is none
    assert shares[1] == [[4], [2]]
    assert [len(share) for share in (_share(lengths, 10, rank, 3) for rank in range(3))] == [2, 2, 2]
    assert {
        row for share in (_share(lengths, 10, rank, 3) for rank in range(3)) for rows in share for row in rows
    } == set(range(5))


def test_model_is_loaded_once_the_settings_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's ZeRO-3 and FSDP tell transformers through them how to load; later, every process would hold
    everything."""
    order: list[str] = []
    made = trainers._arguments

    def arguments(*given: Any, **named: Any) -> Any:
        order.append("settings")
        return made(*given, **named)

    def load() -> Any:
        order.append("model")
        tiny_checkpoint(tmp_path / "model", "chatml")
        return AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)

    monkeypatch.setattr(trainers, "_arguments", arguments)
    config = SFTConfig(train_batch_size=2, max_steps=1, dtype="float32")
    trainer = trainers.build_trainer(
        config, load, None, tiny_tokenizer("chatml"), sft_rows(), stage="x", output_dir=tmp_path, num_processes=1
    )
    assert order == ["settings", "model"]
    assert trainer.args.activation_checkpointing  # the shape is not known


class Casts(TorchDispatchMode):
    """Counts how often each of a model's weights is cast to bfloat16."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.counts = dict.fromkeys((weight.data_ptr() for weight in model.parameters() if weight.ndim == 2), 0)

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        cast = func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16
        if cast and args[0].data_ptr() in self.counts:
            self.counts[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_are_cast_once_an_optimizer_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    """Two steps of four micro-batches in bfloat16: the same numbers as with a cast a micro-batch, with fewer casts."""

    def trained(name: str) -> tuple[list[int], list[float], dict[str, torch.Tensor]]:
        tiny_checkpoint(tmp_path / name, "chatml")
        trainer = trainers.build_trainer(
            SFTConfig(train_batch_size=4, max_steps=2, max_batch_tokens=1, gradient_checkpointing=checkpointing),
            lambda: AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32),
            None,
            tiny_tokenizer("chatml"),
            sft_rows(),
            stage="x",
            output_dir=tmp_path / f"{name}-output",
            num_processes=1,
        )
        assert trainer.plan.num_micro_batches == 4
        with Casts(trainer.model) as casts:
            trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        weights = {key: tensor.clone() for key, tensor in trainer.model.state_dict().items()}
        return sorted(casts.counts.values()), losses, weights

    counts, losses, weights = trained("kept")
    monkeypatch.setattr(PackedSFTTrainer, "_casts_kept", lambda _: nullcontext())
    plain_counts, plain_losses, plain_weights = trained("plain")
    head = 2 * 8  # TRL's own function casts it, forward and backward
    assert counts == [2] * (len(counts) - 1) + [head]
    again = 2 if checkpointing else 1  # a layer is computed twice
    assert plain_counts == [again * 8] * (len(counts) - 1) + [head]
    assert losses == plain_losses
    for key, tensor in weights.items():
        assert torch.equal(tensor, plain_weights[key]), key


def test_gpu_out_of_memory_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    tiny_checkpoint(tmp_path / "model", "chatml")
    trainer = trainers.build_trainer(
        SFTConfig(train_batch_size=6, max_steps=2, gradient_checkpointing=False),
        lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32),
        None,
        tiny_tokenizer("chatml"),
        sft_rows(),
        stage="train_sft",
        output_dir=tmp_path,
        num_processes=1,
    )
    monkeypatch.setattr("reasongenrm.training.packed.forward", full)
    # 4 + 6 + ... + 14 tokens, but the last of an example is not read
    with pytest.raises(
        TrainingError,
        match=r"train_sft: step 1 of 2: out of GPU memory .* 48 tokens.*max_batch_tokens to 24 .*gradient_che",
    ):
        trainer.train()
