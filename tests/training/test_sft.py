"""train_sft: which tokens are trained, what is dropped, what comes out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.config import SFTConfig
from reasongenrm.data.chat import detect_family, encode_reason_example, install_template
from reasongenrm.errors import ConfigError, EmptyStageError, InputError
from reasongenrm.packing.batches import plan_batches
from reasongenrm.packing.trees import IGNORED
from reasongenrm.store.artifacts import ArtifactRef, Store, download, open_artifact, read_file
from reasongenrm.training.job import LOG, check_config
from reasongenrm.training.sft import encode_examples, loss_labels, train_sft
from tests.conftest import EmbeddedStore
from tests.tiny import FAMILIES, Family, tiny_tokenizer
from tests.training_cases import put_model, put_records, training_examples

CONFIG = SFTConfig(
    train_batch_size=4,
    max_length=2048,
    learning_rate=1e-2,
    num_train_epochs=4,
    dtype="float32",
)
TRAINED = {  # what the labels spell, by family: everything that the model writes
    "chatml": "Good.<|im_end|>\n<|im_start|>assistant\n[[A]]<|im_end|><|endoftext|>",
    "qwen2.5": "Good.<|im_end|>\n<|im_start|>assistant\n[[A]]<|im_end|><|endoftext|>",
    "qwen3": "Good.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n[[A]]<|im_end|><|endoftext|>",
    "gemma3": "Good.<end_of_turn>\n<start_of_turn>model\n[[A]]<end_of_turn><eos>",
    "phi4": "Good.<|im_end|><|im_start|>assistant<|im_sep|>[[A]]<|im_end|><|endoftext|>",
    "llama3": "Good.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[[A]]<|eot_id|><|end_of_text|>",
}
TRAINED_BY_REFERENCE = {
    "chatml": "Good.<|im_end|>[[A]]<|im_end|>",
    "qwen2.5": "Good.<|im_end|>[[A]]<|im_end|>",
    "qwen3": "Good.<|im_end|>[[A]]<|im_end|>",
    "gemma3": "Good.<end_of_turn>[[A]]<end_of_turn>",
    "phi4": "Good.<|im_end|>[[A]]<|im_end|>",
    "llama3": "Good.<|eot_id|>[[A]]<|eot_id|>",
}


def tokenizer_of(family: Family) -> Any:
    tokenizer = tiny_tokenizer(family)
    install_template(tokenizer, detect_family(tokenizer), "reason")
    return tokenizer


def trained_tokens(labels: list[int], tokenizer: Any) -> str:
    text: str = tokenizer.decode([label for label in labels if label != IGNORED])
    return text


# --- masks ---


@pytest.mark.parametrize("family", FAMILIES)
def test_all_that_the_model_writes_is_trained_and_nothing_of_the_prompt(family: Family) -> None:
    tokenizer = tokenizer_of(family)
    example = encode_reason_example(tokenizer, detect_family(tokenizer), "Which?", "Good.", "[[A]]")
    labels = loss_labels(example, "one_generation")
    assert trained_tokens(labels, tokenizer) == TRAINED[family]
    assert labels[: example.prompt_span[1]] == [IGNORED] * example.prompt_span[1]
    assert labels[example.prompt_span[1] :] == example.input_ids[example.prompt_span[1] :]


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_mask_leaves_out_the_markup_and_the_end(family: Family) -> None:
    tokenizer = tokenizer_of(family)
    example = encode_reason_example(tokenizer, detect_family(tokenizer), "Which?", "Good.", "[[A]]")
    labels = loss_labels(example, "reference")
    assert len(labels) == len(example.input_ids)
    assert trained_tokens(labels, tokenizer) == TRAINED_BY_REFERENCE[family]


def test_genrm_learns_the_verdict_and_the_end_alone() -> None:
    tokenizer = tokenizer_of("chatml")
    columns, drops = encode_examples(
        training_examples(3), tokenizer, detect_family(tokenizer), False, "one_generation", 2048
    )
    assert drops.counts() == {"num_in": 3, "num_out": 3}
    spelled = [trained_tokens(labels, tokenizer) for labels in columns["labels"]]
    assert spelled == [f"[[{letter}]]<|im_end|><|endoftext|>" for letter in "ABA"]
    assert "reason" not in tokenizer.decode(columns["input_ids"][0])


# --- what is dropped ---


def test_example_that_is_too_long_is_dropped_and_counted_not_cut() -> None:
    tokenizer = tokenizer_of("chatml")
    examples = training_examples(3)
    whole, _ = encode_examples(examples, tokenizer, detect_family(tokenizer), True, "one_generation", 10_000)
    limit = sorted(whole["length"])[1]
    kept, drops = encode_examples(examples, tokenizer, detect_family(tokenizer), True, "one_generation", limit)
    assert drops.counts() == {"num_in": 3, "num_out": 2, "num_dropped_longer_than_max_length": 1}
    assert kept["input_ids"] == [ids for ids in whole["input_ids"] if len(ids) <= limit]
    assert kept["length"] == [len(ids) for ids in kept["input_ids"]]


def test_example_without_a_reason_is_named() -> None:
    tokenizer = tokenizer_of("chatml")
    bare = training_examples(1)[0].model_copy(update={"reason": None})
    with pytest.raises(
        InputError, match=r"examples.jsonl: prompt p0 has no reason; expected one, .* Re-run select_reasons"
    ):
        encode_examples([bare], tokenizer, detect_family(tokenizer), True, "one_generation", 2048)


def test_max_length_that_leaves_nothing_is_named(store: Store, tmp_path: Path) -> None:
    model, examples = put_model(store, tmp_path), put_records(store, "s", "examples.jsonl", training_examples(2))
    config = CONFIG.model_copy(update={"max_length": 10})
    with pytest.raises(
        EmptyStageError, match=r"train_sft: none of 2 .* 2 longer_than_max_length .* Raise max_length \(now 10"
    ):
        train_sft(store, config, "sft", model, examples)


# --- runs ---


@pytest.fixture(scope="module")
def trained(
    store_env: EmbeddedStore, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, ArtifactRef, Path, Path]:
    """A store, a trained ReasonGenRM-sft in it, its files, and the model that it was trained from."""
    store = Store(f"{store_env.uri}/test-sft")
    base, folder = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("trained")
    model = put_model(store, base)
    examples = put_records(store, "select_reasons", "examples.jsonl", training_examples(8))
    ref = train_sft(store, CONFIG, "sft", model, examples)
    return store, ref, download(ref, folder), base


def mean_loss(base: Path, rows: list[int], columns: dict[str, list[Any]]) -> float:
    """Mean negative log-probability of the trained tokens of some rows, one row at a time, from plain logits."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    losses: list[float] = []
    for row in rows:
        ids = columns["input_ids"][row]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        labels = columns["labels"][row]
        losses += [-float(logprobs[at - 1, label]) for at, label in enumerate(labels) if label != IGNORED]
    return sum(losses) / len(losses)


def test_first_loss_is_the_mean_over_the_trained_tokens_of_the_batch(trained: tuple[Any, ...]) -> None:
    _, ref, _, base = trained
    tokenizer = tokenizer_of("chatml")
    columns, _ = encode_examples(
        training_examples(8), tokenizer, detect_family(tokenizer), True, "one_generation", 2048
    )
    plan = plan_batches(columns["length"], CONFIG, 1, 1000)
    log = json.loads(read_file(ref, LOG))
    assert log[0]["loss"] == pytest.approx(mean_loss(base, plan.order[:4], columns), abs=1e-5)
    assert [row["step"] for row in log] == list(range(1, 9))  # 4 epochs x 8 rows / 4 a batch
    assert log[-1]["num_tokens"] == 4 * sum(columns["length"])
    assert log[-1]["loss"] < log[0]["loss"] - 1
    assert {"learning_rate", "grad_norm", "mean_token_accuracy", "epoch"} <= set(log[0])


def test_checkpoint_loads_by_plain_transformers_and_stops_at_the_end_of_the_sequence(trained: tuple[Any, ...]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, ref, folder, _ = trained
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert tokenizer.eos_token == "<|endoftext|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.endswith("<|im_start|>reason\n")
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth")]
    assert list((folder / "tensorboard").iterdir())
    assert ref.metrics["num_steps"] == 8
    assert ref.counts == {"num_in": 8, "num_out": 8}


def test_same_training_is_not_done_twice_and_torch_is_not_needed_to_know(trained: tuple[Any, ...]) -> None:
    store, ref, _, _ = trained
    inputs = open_artifact(ref).inputs
    code = (
        "import sys\nfrom reasongenrm.config import SFTConfig\nfrom reasongenrm.training.sft import train_sft\n"
        "from reasongenrm.store.artifacts import ArtifactRef, Store\n"
        f"digests = {inputs!r}\n"
        "refs = [ArtifactRef(stage=name, key='k', digest=digests[name], uri='s3://gone/x') for name in ('model', "
        "'examples')]\n"
        f"config = SFTConfig.model_validate_json({CONFIG.model_dump_json()!r})\n"
        f"print(train_sft(Store({store.uri!r}), config, 'sft', *refs).uri)\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == ref.uri


def test_genrm_is_saved_in_bfloat16_and_opens_the_assistant_turn(store: Store, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = put_model(store, tmp_path / "model", "llama3")
    examples = put_records(store, "s", "examples.jsonl", training_examples(4))
    config = CONFIG.model_copy(
        update={"dtype": "bfloat16", "max_batch_tokens": 600, "gradient_checkpointing": True, "max_steps": 2}
    )
    folder = download(train_sft(store, config, "genrm", model, examples), tmp_path / "trained")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert tokenizer.eos_token == "<|end_of_text|>"


def test_steps_go_to_the_trackers_that_are_named(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # it is in maintenance mode; a server needs a database
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    client = MlflowClient()
    run_id = client.create_run(client.create_experiment("e")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    model = put_model(store, tmp_path / "model")
    examples = put_records(store, "s", "examples.jsonl", training_examples(4))
    config = CONFIG.model_copy(update={"max_steps": 2, "report_to": ("mlflow",)})
    log = json.loads(read_file(train_sft(store, config, "sft", model, examples), LOG))
    losses = [metric.value for metric in client.get_metric_history(run_id, "loss")]
    assert losses == [row["loss"] for row in log]
    assert len(losses) == 2
    assert client.get_run(run_id).info.run_name == "train_sft (sft)"


def test_tracker_that_is_not_installed_is_refused_before_anything_starts() -> None:
    with pytest.raises(
        ConfigError, match=r"train_sft: report_to names wandb, not installed here\. Run `pip install wandb`"
    ):
        check_config(CONFIG.model_copy(update={"report_to": ("mlflow", "wandb")}), "train_sft")


def test_how_rows_are_packed_changes_no_loss(store: Store, tmp_path: Path) -> None:
    """Attention does not cross from one example of a packed row to the next, and the mean is over the whole step."""
    model = put_model(store, tmp_path)
    examples = put_records(store, "s", "examples.jsonl", training_examples(4))
    logs = []
    for limit in (1, 16384):  # every example by itself; all four in one forward pass
        # The limit is no part of the stage's key, because of what is tested here: so the rates differ by nothing that
        # matters.
        config = CONFIG.model_copy(
            update={"max_steps": 2, "max_batch_tokens": limit, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
        )
        config = config.model_copy(update={"save_steps": 50 + limit})
        logs.append(json.loads(read_file(train_sft(store, config, "sft", model, examples), LOG)))
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_variant_that_is_not_trained_on_examples_is_refused(store: Store) -> None:
    ref = put_records(store, "s", "examples.jsonl", training_examples(1))
    with pytest.raises(ConfigError, match="train_sft: variant is 'dpo'; expected one of genrm, sft"):
        train_sft(store, CONFIG, "dpo", ref, ref)
