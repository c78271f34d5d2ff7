"""What makes equal work on a CPU give equal bits: settings before torch is imported, one call once it is.

Sums depend on the order of their terms. With these, that order depends on the CPU and the number of threads
(`OMP_NUM_THREADS`) alone, not on where memory happens to lie or on which thread comes first. Training asks torch for
deterministic algorithms as well (`training/packed.py`).
"""

import os

# The unary functions that torch hands to MKL's vector library (ATen/cpu/vml.h), for float32 and float64.
VECTOR_FUNCTIONS = (
    *("acos", "asin", "atan", "cos", "cosh", "erf", "erfc", "erfinv", "exp", "exp2", "expm1", "lgamma"),
    *("log", "log10", "log1p", "log2", "sin", "sinh", "sqrt", "tan", "tanh"),
)


def configure_cpu_math() -> None:
    """Set OpenMP and MKL up by environment variables; call it before torch is imported. What is set already stays.

    OMP_WAIT_POLICY=passive lets threads sleep while they wait: spinning made generation 13 times slower on two shared
    cores. MKL_CBWR=AUTO makes MKL's products independent of memory addresses and of thread scheduling, at no measurable
    cost; it still picks the CPU's best instructions, unlike COMPATIBLE, which makes training 2.3 times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("MKL_CBWR", "AUTO")


def warm_up_cpu_math() -> None:
    """Call every function of MKL's vector library once, on one number and so on one thread; needs torch.

    MKL 2024.2 looks a function's kernel up on the first call. Where two threads make that call at once, one of them can
    get the kernel for low accuracy, and its half of a tensor is off by up to 4,000 units in the last place, in this one
    call (https://github.com/pytorch/pytorch/issues/188792).
    """
    import torch

    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype)
        for name in VECTOR_FUNCTIONS:
            getattr(torch, name)(one)
