"""Tiny real checkpoints for the tests (reasongenrm/demo/tiny.py), and a way to put words into a model's mouth."""

from functools import partial
from pathlib import Path
from typing import Any

from reasongenrm.data.chat_families import FAMILIES as CHAT_FAMILIES
from reasongenrm.demo.tiny import FAMILIES, Family, tiny_checkpoint, tiny_tokenizer

__all__ = ["BY_NAME", "FAMILIES", "Family", "exact", "exact_model", "say", "tiny_checkpoint", "tiny_tokenizer"]

BY_NAME = {family.name: family for family in CHAT_FAMILIES}


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
