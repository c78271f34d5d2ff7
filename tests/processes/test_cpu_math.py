"""Equal work gives equal bits: what is set before torch, and what is called once it is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reasongenrm.processes.cpu_math import VECTOR_FUNCTIONS, configure_cpu_math, warm_up_cpu_math
from tests.tiny import tiny_checkpoint

# Products of few rows, whose kernels look at addresses most; every operand lies at any multiple of 4 bytes.
_PRODUCTS = """
from reasongenrm.processes.cpu_math import configure_cpu_math
configure_cpu_math()
import torch

def at(values, offset):
    memory = torch.empty(values.numel() + 32)
    start = (offset - memory.data_ptr() % 64) % 64 // 4
    return memory[start : start + values.numel()].view(values.shape).copy_(values)

torch.manual_seed(0)
for rows, inner, outer in ((1, 32, 32), (3, 64, 100), (2, 576, 1536), (300, 32, 384)):
    left, right = torch.randn(rows, inner), torch.randn(outer, inner)
    expected = at(left, 0) @ at(right, 0).T
    for offset in range(0, 64, 4):
        assert torch.equal(at(left, offset) @ at(right, 0).T, expected), (rows, offset)
        assert torch.equal(at(left, 0) @ at(right, offset).T, expected), (rows, offset)
"""


def test_products_do_not_depend_on_where_memory_lies() -> None:
    environ = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    subprocess.run([sys.executable, "-c", _PRODUCTS], env=environ, check=True)


def test_what_the_environment_says_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    configure_cpu_math()
    assert (os.environ["MKL_CBWR"], os.environ["OMP_WAIT_POLICY"]) == ("COMPATIBLE", "passive")


class _Calls(TorchDispatchMode):
    """Notes which of torch's functions run, and on how many numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, list[int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        if args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point():
            self.sizes.setdefault(func.overloadpacket.__name__.rstrip("_"), []).append(args[0].numel())
        return func(*args, **(kwargs or {}))


def test_every_vector_function_of_a_model_was_called_on_one_number_before(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    with _Calls() as warm_up:
        warm_up_cpu_math()
    assert set(warm_up.sizes) == set(VECTOR_FUNCTIONS)
    assert {size for sizes in warm_up.sizes.values() for size in sizes} == {1}  # one number: one thread

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(tmp_path, "chatml"))
    with _Calls() as training:
        ids = torch.arange(20)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        torch.optim.AdamW(model.parameters(), foreach=False).step()
    # What torch has in MKL's vector library beyond these are exact functions: abs, ceil, floor, trunc and their like.
    unary = {"cos", "sin", "exp", "log", "sqrt", "tanh", "erf", "log1p", "expm1"}
    assert {"cos", "sin"} <= unary & set(training.sizes) <= set(VECTOR_FUNCTIONS)
