"""What the generation benchmark runs inside a replica: vLLM's own `LLM.generate`, on the very engine that is
measured."""

import time
from collections.abc import Sequence
from typing import Any


def plain_generate(
    llm: Any, prompts: Sequence[Sequence[int]], num_samples: int, max_tokens: int, seed: int | None
) -> tuple[int, float]:
    """Hand all prompts over at once, `n` samples each, the cache of prompts empty at the start.

    Args:
        prompts: token ids.
        seed: of every prompt's first sample; None: samples share vLLM's random numbers, which costs it least.

    Returns:
        Tokens written and seconds.
    """
    import vllm

    llm.reset_prefix_cache()
    params = vllm.SamplingParams(
        n=num_samples, max_tokens=max_tokens, temperature=1.0, seed=seed, ignore_eos=True, detokenize=False
    )
    started = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)
    seconds = time.perf_counter() - started
    return sum(len(sample.token_ids) for output in outputs for sample in output.outputs), seconds


def forget_prompts(llm: Any) -> None:
    """Empty the cache of prompts."""
    llm.reset_prefix_cache()


def describe(_llm: Any) -> dict[str, str]:
    """What is measured on."""
    import torch
    import vllm
    from vllm.platforms import current_platform

    return {"vllm": vllm.__version__, "torch": torch.__version__, "device": current_platform.get_device_name()}
