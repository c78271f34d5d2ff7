"""What an import finds wrong with a model's weights and tokenizer: real tiny checkpoints, each damaged in one way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from reasongenrm.config import ModelConfig
from reasongenrm.data import model_checks
from reasongenrm.data.chat import detect_family, install_template, render
from reasongenrm.data.import_model import import_model
from reasongenrm.data.model_checks import check_tokenizer, check_weights
from reasongenrm.data.model_folder import check_folder
from reasongenrm.errors import InputError
from reasongenrm.generation.turns import Turns
from reasongenrm.store.artifacts import Store, download
from tests.tiny import ARCHITECTURES, FAMILIES, Family, tiny_checkpoint

WEIGHTS = "model.safetensors"
LAST = "model.layers.1.mlp.down_proj.weight"
ROWS = 340  # of the tiny ChatML checkpoint's embedding


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "chatml")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A model folder of the test's own, to be broken."""
    return shutil.copytree(tiny, tmp_path / "model")


def weigh(folder: Path, *, scores: bool = True) -> int | None:
    return check_weights(check_folder(folder, "the-model"), folder, "the-model", scores=scores)


def talk(folder: Path, num_rows: int = ROWS, chat_family: str | None = None) -> model_checks.ModelChat:
    return check_tokenizer(folder, "the-model", num_rows, chat_family)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# --- weights ---


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_checkpoint_of_every_family_passes(tmp_path: Path, family: Family) -> None:
    path = tiny_checkpoint(tmp_path, family)
    num_rows = len(AutoTokenizer.from_pretrained(path))
    assert weigh(path) == num_rows
    found = talk(path, num_rows)
    assert (found.family.name, found.is_judge, found.is_named) == (family, False, False)
    judge = tiny_checkpoint(tmp_path / "judge", family, opening_role="reason")
    assert talk(judge, num_rows).is_judge


def test_weight_that_config_wants_and_files_lack_is_named_instead_of_drawn(store: Store, folder: Path) -> None:
    change_weights(folder, lambda weights: weights.pop(LAST))
    with pytest.raises(
        InputError, match=rf"the weights lack 1 of the 21 tensors that config.json wants \({LAST}\), which would be ran"
    ):
        import_model(store, ModelConfig(), str(folder))
    assert store.list() == []
    change_json(folder / "config.json", num_hidden_layers=4, layer_types=None)
    with pytest.raises(InputError, match=r"lack 19 of the 39 tensors that config.json wants \(.*, .*, .*, \.\.\.\)"):
        weigh(folder)


def test_tied_weights_may_be_there_once_and_untied_ones_may_not(folder: Path) -> None:
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)
    change_json(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"lack 1 of the 21 tensors .*lm_head.weight"):
        weigh(folder)
    change_weights(
        folder, lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    )
    assert weigh(folder) == ROWS


def test_files_of_the_model_without_its_head_are_read_as_transformers_reads_them(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({name.removeprefix("model."): tensor for name, tensor in weights.items()}, folder / WEIGHTS)
    assert weigh(folder) == ROWS
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert torch.equal(loaded[LAST], weights[LAST])


def test_weight_of_another_shape_is_named(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.update({LAST: torch.zeros(32, 65)}))
    with pytest.raises(
        InputError, match=rf"the-model/{WEIGHTS}: {LAST} has the shape \(32, 65\); config.json wants \(32, 64\)\. Copy"
    ):
        weigh(folder)


def test_weights_that_are_not_the_models_are_said_and_do_no_harm(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inverse = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(4)}
    change_weights(folder, lambda weights: weights.update(inverse))
    assert weigh(folder) == ROWS
    assert "the-model: 4 weights are none of the model's and are not used: model.layers.0.self_attn.rot" in caplog.text
    assert caplog.text.rstrip().endswith(", ...")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, number: float
) -> None:
    monkeypatch.setattr(model_checks, "_BLOCK", 640)  # ten rows, so that the tensor is read in four pieces

    def change(weights: dict[str, torch.Tensor]) -> None:
        weights.update({name: tensor.to(dtype) for name, tensor in weights.items()})
        weights[LAST][[3, 31], [5, 63]] = number

    change_weights(folder, change)
    with pytest.raises(
        InputError, match=rf"the-model/{WEIGHTS}: {LAST} holds 2 numbers that are NaN or infinite, of 2,048\. The file"
    ):
        weigh(folder)


def test_pieces_are_the_whole_tensor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import safe_open

    change_weights(folder, lambda weights: weights.update(scalar=torch.tensor(3.0), none=torch.zeros(0, 4)))
    weights = load_file(folder / WEIGHTS)
    monkeypatch.setattr(model_checks, "_BLOCK", 100)
    with safe_open(folder / WEIGHTS, "pt") as opened:
        for name, tensor in weights.items():
            pieces = list(model_checks._blocks(opened, name))
            assert torch.equal(torch.cat(pieces) if tensor.ndim and pieces else tensor, tensor)
        assert len(list(model_checks._blocks(opened, LAST))) == 32  # a row of 64 each


def test_config_that_describes_no_model_is_named(folder: Path) -> None:
    change_json(folder / "config.json", hidden_act="nope")
    with pytest.raises(InputError, match=r"the-model/config.json: transformers cannot build the model .*nope.*Copy"):
        weigh(folder)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gemma2", "it caps attention's logits"),
        ("gemma3", "also reads images; the text models of Gemma 3"),
        ("granite", "it scales its logits"),
        ("gpt_oss", "its attention has sinks"),
        ("falcon", "for others it is not proven"),
    ],
)
def test_architecture_that_is_not_scored_exactly_is_refused_by_name(folder: Path, model_type: str, reason: str) -> None:
    change_json(folder / "config.json", model_type=model_type)
    with pytest.raises(
        InputError, match=rf"model_type is '{model_type}'; expected one of llama, mistral.*: .*{reason}"
    ):
        weigh(folder)
    assert weigh(folder, scores=False) is None  # a teacher is not asked for probabilities


def test_what_is_accepted_is_what_is_proven() -> None:
    assert set(model_checks.EXACT) == set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0; expected none: it caps its logits"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type is 'longrope'; expected none: its angles depend"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, "rope_type is 'dynamic'; expected none"),
    ],
)
def test_setting_that_is_not_scored_exactly_is_named(folder: Path, settings: dict[str, Any], message: str) -> None:
    change_json(folder / "config.json", **settings)
    with pytest.raises(InputError, match=rf"the-model/config.json: {message}"):
        weigh(folder)


def test_teacher_s_numbers_are_looked_at_all_the_same(folder: Path) -> None:
    change_json(folder / "config.json", model_type="gemma2")
    change_weights(folder, lambda weights: weights[LAST].fill_(float("nan")))
    with pytest.raises(InputError, match="holds 2,048 numbers that are NaN"):
        weigh(folder, scores=False)


def test_real_shapes_of_the_new_families_are_built_without_memory(tmp_path: Path) -> None:
    """Qwen3-8B as its config.json describes it: 8.19 billion parameters in 399 tensors."""
    AutoConfig.for_model(
        "qwen3",
        vocab_size=151_936,
        hidden_size=4096,
        intermediate_size=12_288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    ).save_pretrained(tmp_path)
    model = model_checks._empty_model(tmp_path, "the-model")
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert model.num_parameters() == 8_190_735_360
    assert len(model.state_dict()) == 399


# --- tokenizer ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda form: form.update(version="2.0"), r"Unknown tokenizer version '2.0'"),
        (lambda form: form["model"].update(type="BPE9"), r"did not match any variant of untagged enum"),
        (lambda form: form["model"].update(merges=[["zz", "yy"]]), r"Token `zz` out of vocabulary"),
        # The library panics at this one.
        (
            lambda form: form.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            r"Cannot parse precompiled_charsmap",
        ),
    ],
)
def test_tokenizer_that_the_library_cannot_read_is_one_message_without_a_trace(
    folder: Path, capfd: pytest.CaptureFixture[str], change: Callable[[Any], object], message: str
) -> None:
    form = json.loads((folder / "tokenizer.json").read_text())
    change(form)
    (folder / "tokenizer.json").write_text(json.dumps(form))
    with pytest.raises(
        InputError,
        match=rf"the-model/tokenizer.json: tokenizers [\d.]+ cannot read it: .*{message}.* Copy it again, or",
    ):
        talk(folder)
    printed = capfd.readouterr()
    assert "panicked" not in printed.err + printed.out
    assert "backtrace" not in printed.err + printed.out


def test_token_without_a_row_is_named(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["extra", "words", "more", "still"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        InputError,
        match=r"the-model: 4 tokens of the tokenizer have no row in the embedding \('extra' is 340, 'words' is 341, "
        r"'more' is 342, \.\.\.\), which has 340: .*resize_token_embeddings",
    ):
        talk(folder)
    assert talk(folder, 344).family.name == "chatml"


def test_control_token_without_a_row_that_nobody_uses_does_no_harm(tmp_path: Path) -> None:
    """As <image_soft_token> of Gemma 3's text models: no text becomes it."""
    path = tiny_checkpoint(tmp_path, "gemma3")
    tokenizer = AutoTokenizer.from_pretrained(path)
    num_rows = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(path)
    assert talk(path, num_rows).family.name == "gemma3"
    install_template(tokenizer, detect_family(tokenizer), "reason")
    assert max(render(tokenizer, [{"role": "user", "content": "<image_soft_token>"}])) < num_rows
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = "<image_soft_token>"
    tokenizer.save_pretrained(path)
    with pytest.raises(InputError, match=r"1 tokens of the tokenizer have no row .*'<image_soft_token>' is"):
        talk(path, num_rows)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for message in messages %}", r"cannot be rendered from a user's message: .*Unexpected end of template"),
        ("{{ documents[0].title }}", r"cannot be rendered from a user's message: .*None"),
        ("{{ raise_exception('pass tools') }}", r"cannot be rendered from a user's message: pass tools\. Expected one"),
        ("{{ messages | nope }}", r"cannot be rendered .*No filter named 'nope'"),
        ("{{ messages[0]['content'][0]['text'] }}", r"leaves out what the user says; it renders ''"),
        ("<|im_start|>assistant\n", r"leaves out what the user says; it renders '<\|im_start\|>assistant"),
    ],
)
def test_template_that_breaks_or_wants_arguments_is_named(folder: Path, template: str, message: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=rf"the-model: its chat template {message}"):
        talk(folder)


def test_model_without_a_pad_token_is_imported_and_its_judge_gets_one(store: Store, tmp_path: Path) -> None:
    """Nothing needs a base model's: rows are packed, and the engines mask what they pad."""
    path = tiny_checkpoint(tmp_path / "model", "llama3")
    assert AutoTokenizer.from_pretrained(path).pad_token is None
    tokenizer = AutoTokenizer.from_pretrained(download(import_model(store, ModelConfig(), str(path)), tmp_path / "in"))
    install_template(tokenizer, detect_family(tokenizer), "reason")
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"


# --- model.chat_family ---


def renamed(folder: Path, *names: tuple[str, str]) -> None:
    """A checkpoint in which tokens are called otherwise, in its tokenizer and its template alike."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        text = (folder / name).read_text()
        for old, new in names:
            text = text.replace(old, new)
        (folder / name).write_text(text)


def test_named_family_travels_with_the_model(store: Store, folder: Path, tmp_path: Path) -> None:
    """ChatML on a vocabulary of Llama 2's kind, as many fine-tunes have it: the sequence ends with </s>."""
    renamed(folder, ("<|endoftext|>", "</s>"))
    with pytest.raises(InputError, match=r"none of the supported chat families.*name the family in model.chat_family"):
        import_model(store, ModelConfig(), str(folder))
    ref = import_model(store, ModelConfig(chat_family="chatml"), str(folder))
    assert ref.metrics["chat_family"] == "chatml"
    into = download(ref, tmp_path / "stored")
    tokenizer, model = AutoTokenizer.from_pretrained(into), AutoModelForCausalLM.from_pretrained(into)
    turns = Turns(tokenizer, model.generation_config)
    assert (turns.family.name, turns.family.sequence_end) == ("chatml", "</s>")
    install_template(tokenizer, turns.family, "reason")
    assert Turns(tokenizer, model.generation_config).family == turns.family
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "[[A]]"}], tokenize=False
    )
    assert text == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n[[A]]<|im_end|></s>"


def test_family_that_the_vocabulary_tells_and_the_template_denies_is_named(folder: Path, tmp_path: Path) -> None:
    """ChatML on Llama 3's vocabulary, which has both families' tokens."""
    path = tiny_checkpoint(tmp_path / "llama", "llama3")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (folder / "chat_template.jinja").read_text()
    tokenizer.save_pretrained(path)
    with pytest.raises(
        InputError,
        match=r"has not the markup of the chat family llama3; it renders '<\|im_start\|>user\\nWhich one, .* "
        r"Set model.chat_family to chatml\.$",
    ):
        talk(path, 400)
    found = talk(path, 400, "chatml")
    assert (found.family.name, found.family.sequence_end, found.is_named) == ("chatml", "<|end_of_text|>", True)


def test_tokenizer_that_puts_a_space_before_a_piece_is_refused(tmp_path: Path) -> None:
    """As Llama 2's and Mistral's, to whose vocabulary ChatML's tokens have been added."""
    from tokenizers import pre_tokenizers

    path = tiny_checkpoint(tmp_path, "gemma3")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "</s>"]})
    tokenizer.chat_template = (tiny_checkpoint(tmp_path / "chatml", "chatml") / "chat_template.jinja").read_text()
    tokenizer.save_pretrained(path)
    assert talk(path, 500, "chatml").family.sequence_end == "<eos>"
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.save_pretrained(path)
    with pytest.raises(
        InputError,
        match=r"the-model: its tokenizer gives a text other tokens by itself .* \('\u2581.*Use a model with a b",
    ):
        talk(path, 500, "chatml")


def test_named_family_whose_markup_the_template_has_not_is_an_error(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, "phi4")
    with pytest.raises(
        InputError, match=r"has not the markup of the chat family chatml; .* Set model.chat_family to phi4"
    ):
        talk(path, 400, "chatml")


def test_qwen_3_without_a_think_block_is_named_qwen_2_5(tmp_path: Path) -> None:
    """Qwen3's 2507 instruct models have its tokens and never think."""
    path = tiny_checkpoint(tmp_path, "qwen3")
    assert talk(path, 400).family.name == "qwen3"
    found = talk(path, 400, "qwen2.5")
    assert (found.family.name, found.family.after_assistant, found.is_named) == ("qwen2.5", "", True)
    assert not talk(path, 400, "qwen3").is_named


def test_judge_is_of_the_family_that_its_template_names(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, "qwen2.5", opening_role="reason")
    assert talk(path, 400, "qwen2.5").is_judge
    with pytest.raises(InputError, match=r"is a judge of the chat family qwen2.5, but model.chat_family is chatml"):
        talk(path, 400, "chatml")
