"""Model shapes at random weights, and the lengths that go with them: nothing is downloaded, and a judge's speed does
not depend on what it knows.

The CPU shapes have the lengths of a GPU's work divided by eight or more, so that a laptop is done in minutes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reasongenrm.training.shapes import SHAPES as MODEL_SHAPES
from reasongenrm.training.shapes import ModelShape

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CONTEXT = 32_768


@dataclass(frozen=True)
class Lengths:
    """Tokens of the synthetic work; all but the prompt of scoring are medians of a log-normal distribution.

    Attributes:
        row: of an SFT example, about a half of it prompt.
        longest: no sequence is longer.
        dpo_prompt, dpo_reason: of a pair: a prompt and two reasons.
        scored_prompt: of every prompt of scoring.
        scored_reason: of a reason; ten tokens of assistant header and verdict follow it.
    """

    row: int = 1_200
    longest: int = 8_192
    dpo_prompt: int = 800
    dpo_reason: int = 400
    scored_prompt: int = 1_000
    scored_reason: int = 256


@dataclass(frozen=True)
class Shape:
    """A Qwen2 architecture and the work that it is measured with.

    Attributes:
        examples: SFT examples of one optimizer step of a process; of DPO a half as many pairs.
        max_batch_tokens: bound of one forward pass of ours; None: what train_sft, train_dpo and score_reasons take.
    """

    name: str
    model: ModelShape
    lengths: Lengths = Lengths()
    examples: int = 64
    max_batch_tokens: int | None = None


def _small(name: str, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, vocab: int) -> ModelShape:
    return ModelShape(
        name=name,
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        tied=True,
        attention_bias=True,
    )


_MICRO = _small("micro", 2, 64, 128, 2, 1, 384)
_CPU = _small("25M", 6, 384, 1_536, 6, 2, 32_000)
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("micro", _MICRO, Lengths(24, 64, 16, 8, 20, 6), examples=4, max_batch_tokens=512),
        Shape("cpu", _CPU, Lengths(150, 1_024, 100, 50, 125, 32), examples=8, max_batch_tokens=2_048),
        Shape("qwen2.5-0.5b", MODEL_SHAPES["0.5B"]),
        Shape("qwen2.5-1.5b", MODEL_SHAPES["1.5B"]),
        Shape("qwen2.5-7b", MODEL_SHAPES["7B"]),
    )
}


def sizes(model: ModelShape) -> dict[str, Any]:
    """A shape as the keyword arguments that Llama's and Qwen2's configs have in common."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "tie_word_embeddings": model.tied,
    }


def make_model(shape: Shape, device: "torch.device", dtype: "torch.dtype", *, seed: int = 0) -> "PreTrainedModel":
    """A model of the shape, its weights drawn on the device; equal seeds give equal weights on equal devices."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        **sizes(shape.model),
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        attn_implementation="sdpa",
    )
    torch.manual_seed(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model: Any = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    model.config.name_or_path = f"{shape.name} at random weights"
    return model
