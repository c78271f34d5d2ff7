"""The predictor is killed and started again while the judge is asked: real processes, as in
benchmarks/judge_load.py."""

import asyncio
from pathlib import Path

import aiohttp

from benchmarks.judge_load import Generator, run_restart
from benchmarks.judge_processes import judge_and_predictor


def test_killed_predictor_means_answers_or_503_and_nothing_hangs(tmp_path: Path) -> None:
    async def ask() -> dict[str, dict[str, int]]:
        with judge_and_predictor(tmp_path, 0.02) as (predictor, _, predictor_url, judge_url):
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                generator = Generator(session, predictor_url, judge_url)
                return await run_restart(generator, predictor, 2.0, clients=8, down_seconds=6.0)

    found = asyncio.run(ask())
    assert set(found["statuses"]) == {"200", "503"}, (found, (tmp_path / "judge.log").read_text()[-2000:])
    assert found["after"] == {"200": 1}
