"""Parameters counted as torch and the hub count them; FLOPs and bytes worked by hand."""

import json
from pathlib import Path

import pytest

from reasongenrm.errors import InputError
from reasongenrm.training.shapes import SHAPES, ModelShape, find_shape, shape_of_config
from tests.tiny import tiny_checkpoint

# Two layers of width 10 with two heads of 5 and one K/V head, 20 between, 100 tokens in the vocabulary.
SMALL = ModelShape(
    name="small",
    num_layers=2,
    hidden_size=10,
    intermediate_size=20,
    num_heads=2,
    num_kv_heads=1,
    head_dim=5,
    vocab_size=100,
    tied=True,
)
# The embedding; in each layer 10 x (10 + 10 + 5 + 5) of attention, 3 x 10 x 20 of the MLP, 2 x 10 of norms; a norm.
SMALL_PARAMETERS = 1000 + 2 * (300 + 600 + 20) + 10


def test_parameters_are_those_of_every_matrix() -> None:
    assert SMALL.num_parameters == SMALL_PARAMETERS
    assert SMALL.model_copy(update={"tied": False}).num_parameters == SMALL_PARAMETERS + 1000
    assert SMALL.model_copy(update={"attention_bias": True}).num_parameters == SMALL_PARAMETERS + 2 * 20


@pytest.mark.parametrize(
    ("size", "published"),  # "Number of parameters" in the model cards, and the safetensors indices, on the hub
    [
        ("135M", 134_515_008),
        ("0.5B", 494_032_768),
        ("1.5B", 1_543_714_304),
        ("7B", 7_615_616_512),
        ("8B", 8_030_261_248),
        ("14B", 14_770_033_664),
        ("32B", 32_763_876_352),
        ("70B", 70_553_706_496),
    ],
)
def test_named_sizes_have_the_parameters_that_the_hub_counts(size: str, published: int) -> None:
    assert SHAPES[size].num_parameters == published


def test_a_checkpoints_folder_and_its_config_give_torchs_own_count(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(tmp_path, "llama3")
    counted = sum(weight.numel() for weight in AutoModelForCausalLM.from_pretrained(folder).parameters())
    assert find_shape(str(folder)).num_parameters == find_shape(str(folder / "config.json")).num_parameters == counted


def test_a_token_costs_two_flops_a_parameter_and_attention_to_what_it_sees() -> None:
    # 4 x 2 layers x 2 heads x 5 = 80 for each token of the context.
    assert SMALL.forward_flops(num_tokens=3, mean_context=7) == 3 * (2 * SMALL_PARAMETERS + 80 * 7)


def test_kv_cache_holds_keys_and_values_of_every_layer_in_two_bytes() -> None:
    assert SMALL.kv_bytes_per_token == 2 * 2 * 1 * 5 * 2
    assert SHAPES["7B"].kv_bytes_per_token == 56 * 1024  # 2 x 28 x 4 x 128 x 2


def test_serving_needs_weights_and_the_cache_of_all_that_is_in_flight() -> None:
    assert SMALL.serving_bytes(num_sequences=3, tokens_each=7) == 2 * SMALL_PARAMETERS + 3 * 7 * 40


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("8b", "Llama-3.1-8B"),
        ("Llama-3.1-8B-Instruct", "Llama-3.1-8B"),
        ("llama-3.3-70b-instruct", "Llama-3.1-70B"),
        ("meta-llama/Llama-3.3-70B-Instruct", "Llama-3.1-70B"),
        ("meta-llama/Meta-Llama-3-8B", "Llama-3.1-8B"),
        ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen2.5-1.5B"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M"),
    ],
)
def test_a_model_is_found_by_its_size_or_name_in_any_case(model: str, name: str) -> None:
    assert find_shape(model).name == name


def test_a_folder_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_checkpoint(tmp_path / "Qwen2.5-7B", "chatml")
    assert find_shape("Qwen2.5-7B").num_parameters < 1_000_000


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"9B: no size with this name and no such file; expected one of 135M, 0.5B"):
        find_shape("9B")
    config = tmp_path / "config.json"
    config.write_text("[]")
    with pytest.raises(InputError, match=r"should be an object, found a list of 0; expected a model's config\.json"):
        find_shape(str(tmp_path))
    config.write_text("{")
    with pytest.raises(InputError, match="not JSON: "):
        find_shape(str(config))
    config.write_text(json.dumps({"model_type": "mixtral"}))
    with pytest.raises(InputError, match=r"model_type is 'mixtral'; expected one of llama, .* Plan with a named shape"):
        find_shape(str(config))
    with pytest.raises(InputError, match=r"m: config\.json has no usable num_layers, hidden_size"):
        shape_of_config({"model_type": "llama", "vocab_size": 5}, "m")
