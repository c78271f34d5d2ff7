"""Tiny real checkpoints for the tests (reasongenrm/demo/tiny.py), and a way to put words into a model's mouth."""

from pathlib import Path
from typing import Any

from reasongenrm.demo.tiny import FAMILIES, Family, tiny_checkpoint, tiny_tokenizer

__all__ = ["FAMILIES", "Family", "exact_model", "say", "tiny_checkpoint", "tiny_tokenizer"]


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
    """A checkpoint in float64 throughout, with weights large enough for attention to matter.

    transformers computes norms in float32 whatever a model's dtype is; their gradients alone would differ by 1e-8.
    """
    import torch
    from torch.nn.functional import rms_norm
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.3)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda hidden, norm=module: rms_norm(
                hidden, norm.weight.shape, norm.weight, norm.variance_epsilon
            )
    return model
