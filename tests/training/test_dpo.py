"""train_dpo: whose log-probabilities are moved, and by which loss."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.config import DPOConfig
from reasongenrm.data.chat import detect_family, encode_reason_example, install_template
from reasongenrm.data.prompts import judge_prompt
from reasongenrm.errors import EmptyStageError
from reasongenrm.records import Preference
from reasongenrm.store.artifacts import Store, download, read_file
from reasongenrm.training.dpo import encode_preferences, train_dpo
from reasongenrm.training.job import LOG
from tests.tiny import FAMILIES, Family, exact, tiny_checkpoint, tiny_tokenizer
from tests.training_cases import preferences, put_model, put_records

CONFIG = DPOConfig(
    train_batch_size=3,
    max_length=2048,
    learning_rate=1e-3,
    lr_scheduler_type="constant",
    warmup_ratio=0.0,
    dtype="float32",
)


def tokenizer_of(family: Family) -> Any:
    tokenizer = tiny_tokenizer(family)
    install_template(tokenizer, detect_family(tokenizer), "reason")
    return tokenizer


def logprob_sum(model: Any, ids: list[int], start: int, stop: int) -> float:
    """Sum of the log-probabilities of ids[start:stop], from plain logits."""
    import torch

    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[at - 1, ids[at]]) for at in range(start, stop))


@pytest.mark.parametrize("family", FAMILIES)
def test_pair_is_the_prompt_and_two_reasons_with_their_closing_token(family: Family) -> None:
    tokenizer = tokenizer_of(family)
    columns, drops = encode_preferences(preferences(1), tokenizer, detect_family(tokenizer), 2048)
    closing = detect_family(tokenizer).turn_end
    assert tokenizer.decode(columns["chosen_ids"][0]) == "The colours are named." + closing
    assert tokenizer.decode(columns["rejected_ids"][0]) == "It is short." + closing
    assert tokenizer.decode(columns["prompt_ids"][0]).endswith(detect_family(tokenizer).opening("reason"))
    parts = [len(columns[name][0]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    assert columns["length"] == [sum(parts)]
    assert drops.counts() == {"num_in": 1, "num_out": 1}


def test_leaving_the_verdict_away_is_masking_it_out_of_the_whole_sequence(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = exact(AutoModelForCausalLM.from_pretrained(tiny_checkpoint(tmp_path, "chatml")))
    tokenizer = tokenizer_of("chatml")
    pair = preferences(3)[2]
    columns, _ = encode_preferences([pair], tokenizer, detect_family(tokenizer), 2048)
    text = judge_prompt(pair.prompt.question, pair.prompt.answer_a, pair.prompt.answer_b)
    whole = encode_reason_example(tokenizer, detect_family(tokenizer), text, pair.chosen, pair.chosen_verdict)
    cut = columns["prompt_ids"][0] + columns["chosen_ids"][0]
    masked = logprob_sum(model, whole.input_ids, *whole.reason_span)
    assert len(cut) < len(whole.input_ids)
    assert logprob_sum(model, cut, len(columns["prompt_ids"][0]), len(cut)) == pytest.approx(masked, abs=1e-9)


def test_pair_with_one_side_too_long_is_dropped_and_counted() -> None:
    tokenizer = tokenizer_of("chatml")
    short, long = preferences(2)
    long = long.model_copy(update={"rejected": "It is short. " * 50})
    columns, drops = encode_preferences([short, long], tokenizer, detect_family(tokenizer), 400)
    assert drops.counts() == {"num_in": 2, "num_out": 1, "num_dropped_longer_than_max_length": 1}
    assert "prompt p1" in drops.examples["longer_than_max_length"]
    assert len(columns["prompt_ids"]) == 1


def test_max_length_that_leaves_nothing_is_named(store: Store, tmp_path: Path) -> None:
    model = put_model(store, tmp_path, opening_role="reason")
    pairs = put_records(store, "s", "preferences.jsonl", preferences(2))
    with pytest.raises(EmptyStageError, match=r"train_dpo: none of 2 .* Raise max_length \(now 10"):
        train_dpo(store, CONFIG.model_copy(update={"max_length": 10}), model, pairs)


def dpo_loss(policy: Any, reference: Any, pairs: list[Preference], tokenizer: Any, beta: float) -> tuple[float, float]:
    """Mean sigmoid loss and mean reward margin over pairs (docs/method.md, section 6), one sequence at a time."""
    columns, _ = encode_preferences(pairs, tokenizer, detect_family(tokenizer), 2048)
    losses, margins = [], []
    for row in range(len(pairs)):
        prompt = columns["prompt_ids"][row]
        ratio = []
        for side in ("chosen_ids", "rejected_ids"):
            ids = prompt + columns[side][row]
            sums = [logprob_sum(model, ids, len(prompt), len(ids)) for model in (policy, reference)]
            ratio.append(sums[0] - sums[1])
        margins.append(beta * (ratio[0] - ratio[1]))
        losses.append(math.log1p(math.exp(-margins[-1])))
    return sum(losses) / len(losses), sum(margins) / len(margins)


def test_loss_begins_at_log_2_and_is_the_papers_after_a_step(store: Store, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = put_model(store, tmp_path / "sft", opening_role="reason")
    pairs = preferences(3)
    records = put_records(store, "select_preferences", "preferences.jsonl", pairs)
    one = train_dpo(store, CONFIG.model_copy(update={"max_steps": 1}), model, records)
    two = train_dpo(store, CONFIG.model_copy(update={"max_steps": 2}), model, records)
    first, second = json.loads(read_file(two, LOG))
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5)

    folder = download(one, tmp_path / "one")  # the policy with which the second step begins
    policy, reference = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tmp_path / "sft"))
    loss, margin = dpo_loss(policy, reference, pairs, AutoTokenizer.from_pretrained(folder), CONFIG.beta)
    assert second["loss"] == pytest.approx(loss, abs=1e-4)
    assert second["rewards/margins"] == pytest.approx(margin, abs=1e-3)
    assert second["rewards/margins"] > 0.1
    assert second["rewards/accuracies"] == 1.0
    assert {"learning_rate", "grad_norm", "num_tokens", "logps/chosen", "rewards/rejected"} <= set(second)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|endoftext|>"


def test_reference_is_asked_once_for_a_model_and_its_pairs(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    model = put_model(store, tmp_path / "sft", opening_role="reason")
    pairs = preferences(3)
    records = put_records(store, "select_preferences", "preferences.jsonl", pairs)
    train_dpo(store, CONFIG.model_copy(update={"max_steps": 1}), model, records)
    first = capfd.readouterr()
    assert "train_dpo (reference model): 3/3 pair" in first.out
    assert "reference_log_probs: wrote" in first.err
    (name,) = [name for name in store.list("reference_log_probs/") if name.endswith("log_probs.json")]
    kept = json.loads(store.get_bytes(name))

    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    columns, _ = encode_preferences(pairs, tokenizer_of("chatml"), detect_family(tokenizer_of("chatml")), 2048)
    for row in range(3):
        prompt = columns["prompt_ids"][row]
        for side in ("chosen", "rejected"):
            ids = prompt + columns[f"{side}_ids"][row]
            expected = logprob_sum(reference, ids, len(prompt), len(ids))
            assert kept[f"ref_{side}_logps"][row] == pytest.approx(expected, rel=1e-5)

    train_dpo(store, CONFIG.model_copy(update={"max_steps": 1, "learning_rate": 1e-4, "beta": 0.3}), model, records)
    second = capfd.readouterr()
    assert "reference model" not in second.out
    assert "reference_log_probs: reused" in second.err

    other = put_records(store, "select_preferences", "preferences.jsonl", pairs[:2])  # other pairs, other probabilities
    train_dpo(store, CONFIG.model_copy(update={"max_steps": 1, "train_batch_size": 2}), model, other)
    assert "reference_log_probs: wrote" in capfd.readouterr().err


def test_equal_runs_end_with_the_same_bytes(store: Store, tmp_path: Path) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # which add up the gradients of the prompts' keys, each shared by two reasons
    try:
        model = put_model(store, tmp_path, opening_role="reason")
        records = put_records(store, "select_preferences", "preferences.jsonl", preferences(8))
        config = CONFIG.model_copy(update={"train_batch_size": 8, "max_steps": 3})
        one, other = (train_dpo(Store(f"{store.uri}/{name}"), config, model, records) for name in ("one", "other"))
    finally:
        torch.set_num_threads(threads)
    assert one.digest == other.digest
