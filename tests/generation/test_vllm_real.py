"""vLLM itself, in two replicas: needs REASONGENRM_VLLM_PYTHON, a Python that has vLLM (docs/judge.md says how to make
one)."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from reasongenrm.config import EngineConfig
from reasongenrm.generation import GenerationRequest, Sampling, open_engine
from tests.tiny import tiny_checkpoint

PYTHON = os.environ.get("REASONGENRM_VLLM_PYTHON")
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(PYTHON is None, reason="REASONGENRM_VLLM_PYTHON names no Python with vLLM"),
    pytest.mark.timeout(1200),
]
REQUESTS = [
    GenerationRequest(f"q{place}", ({"role": "user", "content": f"Which is better, {place}?"},), opening_role="reason")
    for place in range(6)
]
GREEDY = Sampling(max_tokens=16)

PROGRAM = """
import contextlib, json, sys
from pathlib import Path
from reasongenrm.config import EngineConfig
from reasongenrm.generation import GenerationRequest, Sampling
from reasongenrm.generation.vllm import VLLMEngine

asked = [({"role": "user", "content": f"Which is better, {i}?"},) for i in range(6)]
requests = [GenerationRequest(f"q{i}", messages, opening_role="reason") for i, messages in enumerate(asked)]
config = EngineConfig(kind="vllm", dtype="float32", max_model_len=256, batch_size=2, data_parallel_size=2)
engine = VLLMEngine(Path(sys.argv[1]), config, model_name="judge", options={"enforce_eager": True})
with contextlib.closing(engine):
    drawn = [Sampling(max_tokens=16, temperature=1.0, num_samples=2, seed=seed) for seed in (1, 1, 2)]
    written = [[[g.reason, g.answer, g.num_output_tokens] for batch in engine.generate(requests, one) for g in batch]
               for one in (Sampling(max_tokens=16), *drawn)]
print(json.dumps(written))
"""


def test_two_replicas_write_what_transformers_writes_and_draw_by_seed(tmp_path: Path) -> None:
    assert PYTHON is not None
    checkpoint = tiny_checkpoint(tmp_path / "judge", "chatml", opening_role="reason", seed=3)
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    with (tmp_path / "log").open("w") as log:
        run = subprocess.run(
            [PYTHON, "-c", PROGRAM, str(checkpoint)],
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
        )
    assert run.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    greedy, *drawn = json.loads(run.stdout.splitlines()[-1])
    engine = open_engine(
        checkpoint, EngineConfig(kind="transformers", dtype="float32", max_model_len=256, batch_size=2)
    )
    by_id = {g.request_id: g for batch in engine.generate(REQUESTS, GREEDY) for g in batch}
    engine.close()
    expected = [by_id[request.request_id] for request in REQUESTS]
    assert greedy == [[g.reason, g.answer, g.num_output_tokens] for g in expected]
    assert drawn[0] == drawn[1] != drawn[2]
