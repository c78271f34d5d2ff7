"""Tiny real checkpoints for the tests (reasongenrm/demo/tiny.py), and a way to put words into a model's mouth."""

from functools import partial
from pathlib import Path
from typing import Any

from reasongenrm.data.chat_families import FAMILIES as CHAT_FAMILIES
from reasongenrm.demo.tiny import FAMILIES, Family, tiny_checkpoint, tiny_tokenizer

__all__ = [
    "ARCHITECTURES",
    "BY_NAME",
    "FAMILIES",
    "Family",
    "exact",
    "exact_architecture",
    "exact_model",
    "say",
    "tiny_checkpoint",
    "tiny_tokenizer",
]

BY_NAME = {family.name: family for family in CHAT_FAMILIES}


_SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
_WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}
# Every architecture that an import accepts, in what sets its attention apart (EXACT of model_checks.py).
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True},  # Llama 3.2
    "mistral": {"sliding_window": 3},
    "qwen2": {"use_sliding_window": True, **_WINDOWED},
    "qwen3": {},
    "phi3": {},
    "gemma3_text": {**_WINDOWED, "query_pre_attn_scalar": 16},
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 0]},
}


def say(model: Any, script: list[int]) -> None:
    """Make a model write the tokens of `script` from the end of any prompt on, each with a logit 2 above all others."""
    import torch

    plain = model.forward
    steps = iter(script)

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        output = plain(*args, **kwargs)
        if kwargs["input_ids"].shape[1] > 1:  # a prompt
            steps = iter(script)
        output.logits = torch.zeros_like(output.logits)
        output.logits[:, -1, next(steps)] = 2.0
        return output

    model.forward = forward


def exact_model(folder: Path) -> Any:
    """A checkpoint in float64 throughout (see `exact`), with weights large enough for attention to matter."""
    import torch
    from transformers import AutoModelForCausalLM

    model = exact(AutoModelForCausalLM.from_pretrained(folder))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.3)
    return model


def exact_architecture(model_type: str) -> Any:
    """A random model of two small layers of one of `ARCHITECTURES`, in float64 throughout (see `exact`)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **_SMALL, **ARCHITECTURES[model_type])
    model = exact(AutoModelForCausalLM.from_config(config))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0 if weight.ndim == 2 else 1, 0.3)
    return model


def exact(model: Any) -> Any:
    """Make a model compute in float64 throughout, in place.

    transformers computes norms and rotary angles in float32 whatever a model's dtype is. A sum that another order of
    its terms moves by 1e-16 can then be rounded to the next float32, and logits differ by 1e-8.
    """
    import torch
    from torch.nn.functional import rms_norm

    def rotary(rope: Any, hidden: Any, position_ids: Any, layer_type: str | None = None) -> Any:
        kind = "" if layer_type is None else f"{layer_type}_"  # Gemma 3's layers see angles of two kinds
        angles = position_ids[..., None].to(hidden.dtype) * getattr(rope, f"{kind}inv_freq").to(hidden.dtype)
        angles = torch.cat([angles, angles], dim=-1)
        scaling = getattr(rope, f"{kind}attention_scaling")
        return angles.cos() * scaling, angles.sin() * scaling

    model.double()
    for module in model.modules():
        kind = type(module).__name__
        if kind == "Gemma3RMSNorm":
            module.forward = lambda hidden, norm=module: rms_norm(hidden, norm.weight.shape, 1 + norm.weight, norm.eps)
        elif kind.endswith("RMSNorm"):
            module.forward = lambda hidden, norm=module: rms_norm(
                hidden, norm.weight.shape, norm.weight, norm.variance_epsilon
            )
        elif kind.endswith("RotaryEmbedding"):
            module.forward = partial(rotary, module)
    return model
