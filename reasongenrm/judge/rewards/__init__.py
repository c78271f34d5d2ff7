"""Reward adapters: the judge as the reward of RL trainers.

| trainer | what it asks for | here |
|---|---|---|
| OpenRLHF | `--remote_rm_url`, an HTTP route | `openrlhf`, a route of the judge service |
| NeMo RL with NeMo Gym | a GenRM model behind `genrm_compare` | `nemo_rl`, a route of the judge service |
| TRL | a reward function | `trl.JudgeReward`, which asks a judge service |
| verl | an async `compute_score` | `verl.compute_score`, which asks a judge service |

What runs in the trainer's own process (`trl`, `verl`) needs neither FastAPI nor this project's torch.
"""
