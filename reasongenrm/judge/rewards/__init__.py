"""Reward adapters: the judge as the reward of RL trainers.

| trainer | what it asks for | here |
|---|---|---|
| OpenRLHF | `--remote_rm_url`, an HTTP route | `openrlhf`, a route of the judge service |
| NeMo RL with NeMo Gym | a GenRM model behind `genrm_compare` | `nemo_rl`, a route of the judge service |
| TRL | a reward function | `trl.JudgeReward`, which asks a judge service |
| verl | an async `compute_score` | `verl.compute_score`, which asks a judge service |

What runs in the trainer's own process (`trl`, `verl`) needs neither FastAPI nor this project's torch.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import APIRouter

    from reasongenrm.judge.service import JudgeService


def trainer_router(service: "Callable[[], JudgeService]") -> "APIRouter":
    """The routes that trainers ask over HTTP, for the judge service's app.

    Args:
        service: gives the service, which exists once the app has started.
    """
    from fastapi import APIRouter

    from reasongenrm.judge.rewards.nemo_rl import nemo_gym_router
    from reasongenrm.judge.rewards.openrlhf import openrlhf_router

    router = APIRouter(tags=["trainers"])
    router.include_router(openrlhf_router(service))
    router.include_router(nemo_gym_router(service))
    return router
