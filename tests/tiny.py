"""Tiny real checkpoints for the tests (reasongenrm/tiny.py), and a way to put words into a model's mouth."""

from typing import Any

from reasongenrm.tiny import FAMILIES, Family, tiny_checkpoint, tiny_tokenizer

__all__ = ["FAMILIES", "Family", "say", "tiny_checkpoint", "tiny_tokenizer"]


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
