"""The adapters, asked by the trainers' own code: OpenRLHF's rollout executor, verl's reward manager, NeMo Gym's GenRM
parsing.

The packages come from PyPI without most of what they need (CUDA, vLLM), into a folder of their own; what runs of them
is what talks to a reward. Each is run in a process of its own.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reasongenrm.judge.api import PairwiseRequest, PairwiseResponse, PointwiseRequest, PointwiseResponse
from tests.endpoints import serving
from tests.judges_service import FakeJudge, LongerWins, trainer_app
from tests.waiting import HANG_SECONDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]

OPENRLHF = """
import asyncio, importlib.util, json, logging, sys, types

# The package's __init__ wants CUDA; its agent module wants the logger only.
sys.modules["openrlhf.utils.logging_utils"] = types.SimpleNamespace(init_logger=logging.getLogger)
spec = importlib.util.spec_from_file_location("agent", f"{sys.argv[1]}/openrlhf/utils/agent.py")
agent = importlib.util.module_from_spec(spec)
spec.loader.exec_module(agent)


class Tokenizer:
    def __call__(self, text, add_special_tokens, return_tensors):
        import torch

        return {"input_ids": torch.tensor([[ord(letter) for letter in text]])}

    def decode(self, tokens, skip_special_tokens):
        return "".join(map(chr, tokens))


class Engine:
    async def generate(self, tokens, params, multi_modal_data=None):
        token_ids = [ord(c) for c in "seven<|im_end|>"]
        output = types.SimpleNamespace(token_ids=token_ids, finish_reason="stop", logprobs=None)
        return types.SimpleNamespace(outputs=[output])


executor = agent.SingleTurnAgentExecutor(sys.argv[2])
params = types.SimpleNamespace(max_tokens=64, logprobs=None)
prompt = "<|im_start|>user\\nName a prime.<|im_end|>\\n<|im_start|>assistant\\n"
found = asyncio.run(executor.execute(prompt, "9", params, 1024, Tokenizer(), Engine()))
print(json.dumps({name: found[name] for name in ("reward", "scores", "extra_logs")}))
"""

VERL = """
import asyncio, json, sys

import numpy as np
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.trainer.ppo.reward import get_custom_reward_fn

from reasongenrm.judge.rewards.verl import aclose

function = {"path": "pkg://reasongenrm.judge.rewards.verl", "name": "compute_score"}
function["reward_kwargs"] = {"judge_url": sys.argv[2]}
config = OmegaConf.create({"reward": {"custom_reward_function": function}})


class Tokenizer:
    def decode(self, tokens, skip_special_tokens):
        return "seven"


async def main():
    manager = NaiveRewardManager(config, Tokenizer(), get_custom_reward_fn(config))
    manager.loop = asyncio.get_running_loop()
    rows = {
        "data_source": ["primes"],
        "reward_model": [{"ground_truth": "9"}],
        "extra_info": [{"question": "Name a prime."}],
    }
    data = DataProto.from_dict(
        tensors={"responses": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.ones(1, 5, dtype=torch.long)},
        non_tensors={name: np.array(values, dtype=object) for name, values in rows.items()},
    )
    print(json.dumps(await manager.run_single(data)))
    await aclose()


asyncio.run(main())
"""

NEMO_GYM = """
import importlib.util, json, sys

import httpx

path = f"{sys.argv[1]}/resources_servers/genrm_compare/utils.py"
spec = importlib.util.spec_from_file_location("utils", path)
utils = importlib.util.module_from_spec(spec)
spec.loader.exec_module(utils)

answers = ("seven", "9", "eleven!")
results = []
pairs = utils.generate_comparison_pairs("circular", len(answers))
for first, second in pairs:
    body = {
        "input": [{"role": "user", "content": "Name a prime.", "type": "message"}],
        "metadata": {"response_1": answers[first], "response_2": answers[second]},
        "max_output_tokens": 16384,
    }
    reply = httpx.post(f"{sys.argv[2]}/nemo_gym/v1/responses", json=body).json()
    text = utils.extract_output_text(reply)
    results.append(utils.parse_genrm_output(text, 3.0, 3.5, raise_on_fail=True))
rewards, *_ = utils.aggregate_scores(
    comparison_results=results,
    comparison_metadata=[(first, second, 0) for first, second in pairs],
    response_objs=[{}] * len(answers),
    aggregator_method="simple_tiebreaker",
    default_score=3.0,
    reasoning_bonus=0.0,
    answer_bonus=0.0,
    top_percentile=0.2,
    group_reasoning_length_penalty_coeff=0.0,
    group_answer_length_penalty_coeff=0.0,
)
print(json.dumps(rewards))
"""


NEMO_GYM_UNREAD = """
import importlib.util, json, sys

import httpx

path = f"{sys.argv[1]}/resources_servers/genrm_compare/utils.py"
spec = importlib.util.spec_from_file_location("utils", path)
utils = importlib.util.module_from_spec(spec)
spec.loader.exec_module(utils)

body = {"input": "Name a prime.", "metadata": {"response_1": "seven", "response_2": "9"}}
text = utils.extract_output_text(httpx.post(f"{sys.argv[2]}/nemo_gym/v1/responses", json=body).json())
try:
    print(json.dumps(utils.parse_genrm_output(text, 3.0, 3.5, raise_on_fail=True)))
except utils.GenRMOutputParseError as error:
    print(json.dumps(str(error)))
"""


class NeverRead(LongerWins):
    """A judge whose verdicts cannot be read."""

    async def pairwise(self, request: PairwiseRequest, request_id: str) -> PairwiseResponse:
        """No verdict in either order."""
        return _unread(await super().pairwise(request, request_id), preferred=None, p_a=None)

    async def pointwise(self, request: PointwiseRequest, request_id: str) -> PointwiseResponse:
        """No verdict in either order."""
        return _unread(await super().pointwise(request, request_id), score=None)


def _unread(found: Any, **more: Any) -> Any:
    nothing = {"preferred": None, "p_a": None}
    judgments = [judgment.model_copy(update=nothing) for judgment in found.judgments]
    return found.model_copy(update={"judgments": judgments, "consistent": None, **more})


def install(folder: Path, *packages: str, python: str = "3.11") -> Path:
    """Packages alone, without what they depend on."""
    uv = Path(sys.executable).with_name("uv")
    command = [str(uv), "pip", "install", "--quiet", "--no-deps", "--python-version", python, "--target", str(folder)]
    done = subprocess.run([*command, *packages], capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    if done.returncode:
        pytest.skip(f"cannot be installed here: {done.stderr[-300:]}")
    return folder


def run(code: str, packages: Path, url: str) -> Any:
    """What the trainer's code prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(packages), url],
        env={"PYTHONPATH": f"{ROOT}:{packages}", "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_openrlhf_gets_its_reward(tmp_path: Path) -> None:
    packages = install(tmp_path / "packages", "openrlhf==0.11.2")
    service = LongerWins()
    with serving(trainer_app(service, key="secret")) as url:
        found = run(OPENRLHF, packages, f"{url}/openrlhf/get_reward".replace("http://", "http://:secret@"))
    logs = {"judge_consistent": [1.0], "judge_cut": [0.0]}
    assert found == {"reward": [0.9], "scores": [0.9], "extra_logs": logs}
    (request, _) = service.asked[0]
    assert isinstance(request, PointwiseRequest)
    assert [turn.content for turn in request.turns()] == ["Name a prime."]
    assert (request.answer, request.reference) == ("seven", "9")
    with serving(trainer_app(NeverRead())) as url:
        found = run(OPENRLHF, packages, f"{url}/openrlhf/get_reward")
    assert found == {"reward": None, "scores": None, "extra_logs": {}}, "no reward, and no number in its place"


def test_verl_gets_its_score(tmp_path: Path) -> None:
    packages = install(
        tmp_path / "packages",
        *("verl==0.9.1", "ray", "tensordict", "omegaconf==2.3.0", "antlr4-python3-runtime==4.9.3", "hydra-core"),
        *("pyvers", "cloudpickle", "orjson", "importlib_metadata", "msgpack", "zipp", "codetiming", "pyzmq"),
    )
    with FakeJudge().running() as url:
        found = run(VERL, packages, url)
    assert (found["reward_score"], found["reward_extra_info"]["judge_consistent"]) == (0.9, 1.0)
    unread = FakeJudge()
    unread.service = NeverRead()
    with unread.running() as url, pytest.raises(AssertionError, match="the judge gave no verdict in one order or both"):
        run(VERL, packages, url)


def test_nemo_gyms_genrm_compare_reads_the_scores(tmp_path: Path) -> None:
    packages = install(tmp_path / "packages", "nemo-gym==0.4.0", python="3.12")
    with serving(trainer_app(LongerWins())) as url:
        rewards = run(NEMO_GYM, packages, url)
    # Pairs (0, 1), (1, 2), (2, 0); the longer one gets 1 + 4 * 0.9, the shorter one 1 + 4 * 0.1; then means.
    assert rewards == pytest.approx([3.0, 1.4, 4.6])
    with serving(trainer_app(NeverRead())) as url:
        said = run(NEMO_GYM_UNREAD, packages, url)
    assert "No parseable JSON found in GenRM output: No verdict could be read" in said
