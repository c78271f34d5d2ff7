"""A model's shape: its parameters, and the FLOPs and bytes that follow from them.

In goes what config.json says, out come counts; nothing is loaded. `SHAPES` has the models that plans and benchmarks
take by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from reasongenrm.errors import InputError, validated

INFERENCE_BYTES = 2  # per parameter, in bfloat16
RESUME_BYTES = 12  # per parameter of a checkpoint to resume from: float32 weights and both of AdamW's moments
CONFIG = "config.json"
# model_type -> whether q, k and v have biases, unless config.json says so itself.
_ATTENTION_BIAS = {"llama": False, "mistral": False, "qwen2": True}

Count = Annotated[int, Field(gt=0)]


class ModelShape(BaseModel):
    """A decoder of the Llama or Qwen 2.5 family, as its config.json describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    num_layers: Count
    hidden_size: Count
    intermediate_size: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    vocab_size: Count
    tied: bool  # the output layer is the embedding
    attention_bias: bool = False  # q, k and v have biases (Qwen 2.5)

    @property
    def num_parameters(self) -> int:
        """All parameters, with the embeddings, tied ones once."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * queries + 2 * keys) + self.attention_bias * (queries + 2 * keys)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return embeddings + self.num_layers * layer + self.hidden_size

    def forward_flops(self, num_tokens: float, mean_context: float) -> float:
        """FLOPs of a forward pass: 2 per parameter and token, and attention's two products.

        = tokens x (2N + 4 x layers x heads x head size x context)

        Args:
            num_tokens: that go through the model, each once.
            mean_context: tokens that one of them attends to, itself included, on average.
        """
        attention = 4 * self.num_layers * self.num_heads * self.head_dim * mean_context
        return num_tokens * (2 * self.num_parameters + attention)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of the KV cache per token in bfloat16: keys and values of every layer."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * INFERENCE_BYTES

    def serving_bytes(self, num_sequences: int, tokens_each: int) -> float:
        """Bytes over all GPUs to serve the model: its weights and the KV cache of all sequences in flight."""
        return self.num_parameters * INFERENCE_BYTES + num_sequences * tokens_each * self.kv_bytes_per_token


# From the config.json of each model on the hub; after the size by which it is asked for, the fields in their order.
SHAPES: dict[str, ModelShape] = {
    size: ModelShape.model_validate(dict(zip(ModelShape.model_fields, fields, strict=True)))
    for size, *fields in (
        ("135M", "SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49_152, True, False),
        ("0.5B", "Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 64, 151_936, True, True),
        ("1.5B", "Qwen2.5-1.5B", 28, 1536, 8960, 12, 2, 128, 151_936, True, True),
        ("3B", "Qwen2.5-3B", 36, 2048, 11_008, 16, 2, 128, 151_936, True, True),
        ("7B", "Qwen2.5-7B", 28, 3584, 18_944, 28, 4, 128, 152_064, False, True),
        ("8B", "Llama-3.1-8B", 32, 4096, 14_336, 32, 8, 128, 128_256, False, False),
        ("14B", "Qwen2.5-14B", 48, 5120, 13_824, 40, 8, 128, 152_064, False, True),
        ("32B", "Qwen2.5-32B", 64, 5120, 27_648, 40, 8, 128, 152_064, False, True),
        ("70B", "Llama-3.1-70B", 80, 8192, 28_672, 64, 8, 128, 128_256, False, False),
    )
}

# Each size by its model's name, and the names of models whose config.json has the same shape.
_SIZE_OF = {shape.name: size for size, shape in SHAPES.items()} | {
    **dict.fromkeys(("Meta-Llama-3-8B", "Meta-Llama-3.1-8B"), "8B"),
    **dict.fromkeys(("Llama-3.3-70B", "Meta-Llama-3-70B", "Meta-Llama-3.1-70B"), "70B"),
}


def shape_of_config(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a config.json describes; `name` is for tables, and where an error says it was found.

    Raises:
        InputError: another architecture than Llama's, Mistral's or Qwen 2.5's, or a key is missing or not a number.
    """
    model_type = config.get("model_type")
    if model_type not in _ATTENTION_BIAS:
        raise InputError(
            f"{name}: model_type is {model_type!r}; expected one of {', '.join(_ATTENTION_BIAS)}, whose parameters can "
            f"be counted. Plan with a named shape of about its size: {', '.join(SHAPES)}."
        )
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    head_dim = config.get("head_dim")
    if head_dim is None and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        head_dim = hidden // heads
    try:
        return ModelShape(
            name=name,
            num_layers=config.get("num_hidden_layers"),
            hidden_size=hidden,
            intermediate_size=config.get("intermediate_size"),
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads", heads),
            head_dim=head_dim,
            vocab_size=config.get("vocab_size"),
            tied=config.get("tie_word_embeddings", False),
            attention_bias=config.get("attention_bias", _ATTENTION_BIAS[model_type]),
        )
    except ValidationError as error:
        keys = ", ".join(str(detail["loc"][0]) for detail in error.errors())
        raise InputError(f"{name}: {CONFIG} has no usable {keys}; expected whole numbers. Fix the file.") from error


def find_shape(model: str) -> ModelShape:
    """The shape of a named size ("8B", "8b"), of a model by its name or hub name, of a checkpoint's folder or config.

    Args:
        model: what is there as a file or folder is read; else a name begins like one of the named models'
            ("meta-llama/Llama-3.1-8B-Instruct", "qwen2.5-7b").

    Raises:
        InputError: neither a name nor a file, or the file is not a config of a model that can be counted.
    """
    path = Path(model).expanduser()
    path = path / CONFIG if path.is_dir() else path
    if not path.is_file():
        name = model.rpartition("/")[2].upper()
        if name in SHAPES:
            return SHAPES[name]
        named = [size for start, size in _SIZE_OF.items() if name.startswith(start.upper())]
        if named:
            return SHAPES[named[0]]
        raise InputError(
            f"{model}: no size with this name and no such file; expected one of {', '.join(SHAPES)}, a checkpoint's "
            f"folder, or its {CONFIG}."
        )
    with validated(str(path), f"a model's {CONFIG}. Copy the model again, or give another file."):
        config = TypeAdapter(dict[str, Any]).validate_json(path.read_bytes())
    return shape_of_config(config, str(path))
