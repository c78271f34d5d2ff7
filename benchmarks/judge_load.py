"""How much does the judge cost on top of its predictor, and what does it do when the predictor dies?

    python -m benchmarks.judge_load [--seconds 60] [--output judge_load.json] [--only closed|open|restart]

Three processes on loopback: a stub predictor that answers after 50 ms, the judge, and this one, which asks. Three
parts: "closed": 200 clients, each asking again as soon as it has its answer; statuses, throughput, the judge's memory
over time. "open": 50 pairs per second, whatever comes back; each pair is two generations. In the same run, the same
number of direct requests to the predictor, by the same generator; the overhead is the difference of the two latencies'
percentiles. "restart": 50 clients; the predictor is killed, and started again; every request has to end, with an answer
or a 503.
"""

import asyncio
import json
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.judge_processes import Program, judge_and_predictor
from reasongenrm.data.prompts import judge_prompt
from reasongenrm.records import Message

LATENCY_SECONDS = 0.05
CLIENTS = 200
PAIRS_PER_SECOND = 50
HANG_SECONDS = 60.0
DOWN_SECONDS = 6.0  # longer than the judge's patience with a predictor that is away

QUESTION = "Name three rivers in Europe and say in one sentence each where they end."
ANSWER_A = (
    "The Danube ends in the Black Sea. The Rhine ends in the North Sea. The Rhone ends in the Mediterranean. " * 3
)
ANSWER_B = "Danube, Rhine, Rhone. They all end in the sea. " * 4


@dataclass
class Tally:
    """What came back: statuses ("hung" for none within HANG_SECONDS), and the latencies of the 200s in seconds."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def percentile_ms(self, percent: int) -> float:
        """Of the latencies, in milliseconds."""
        return statistics.quantiles(self.seconds, n=100, method="inclusive")[percent - 1] * 1000


class Generator:
    """Asks the judge, or the predictor directly."""

    def __init__(self, session: aiohttp.ClientSession, predictor: str, judge: str) -> None:
        self._session = session
        self._judge_url, self._predictor_url = f"{judge}/v1/pairwise", f"{predictor}/v1/chat/completions"
        self._pair = {"question": QUESTION, "answer_a": ANSWER_A, "answer_b": ANSWER_B}
        prompt = judge_prompt((Message(role="user", content=QUESTION),), ANSWER_A, ANSWER_B)
        self._chat = {"model": "rule", "messages": [{"role": "user", "content": prompt}], "logprobs": True}

    async def pair(self, tally: Tally) -> str:
        """One pair through the judge; returns its status."""
        return await self._ask(self._judge_url, self._pair, tally)

    async def generation(self, tally: Tally) -> str:
        """One generation from the predictor; returns its status."""
        return await self._ask(self._predictor_url, self._chat, tally)

    async def _ask(self, url: str, body: dict[str, Any], tally: Tally) -> str:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(HANG_SECONDS), self._session.post(url, json=body) as response:
                await response.read()
                status = str(response.status)
        except TimeoutError:
            status = "hung"
        except aiohttp.ClientError as error:
            status = type(error).__name__
        tally.statuses[status] += 1
        if status == "200":
            tally.seconds.append(time.perf_counter() - started)
        return status


async def closed_loop(generator: Generator, clients: int, seconds: float) -> Tally:
    """Each client asks again as soon as it has its answer; one that is refused waits a little first."""
    tally, end = Tally(), time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < end:
            if await generator.pair(tally) != "200":
                await asyncio.sleep(0.2)

    await asyncio.gather(*(client() for _ in range(clients)))
    return tally


async def open_loop(ask: Callable[[Tally], Any], rate: float, seconds: float, tally: Tally) -> None:
    """Ask at a fixed rate, whatever comes back."""
    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
            tasks.create_task(ask(tally))


async def memory_mib(program: Program, every_seconds: float, into: list[float]) -> None:
    """Resident memory of a process over time, until cancelled."""
    process = psutil.Process(program.pid)
    while True:
        into.append(process.memory_info().rss / 2**20)
        await asyncio.sleep(every_seconds)


async def run_closed(generator: Generator, judge: Program, seconds: float) -> dict[str, Any]:
    """Part "closed". Memory is compared between the second sixth of the time, when all is warm, and the last."""
    await closed_loop(generator, CLIENTS, min(5.0, seconds))
    memory: list[float] = []
    watching = asyncio.create_task(memory_mib(judge, max(0.1, seconds / 60), memory))
    tally = await closed_loop(generator, CLIENTS, seconds)
    watching.cancel()
    sixth = max(1, len(memory) // 6)
    early, late = statistics.mean(memory[sixth : 2 * sixth] or memory), statistics.mean(memory[-sixth:])
    return {
        "statuses": dict(tally.statuses),
        "pairs_per_second": sum(tally.statuses.values()) / seconds,
        "p50_ms": tally.percentile_ms(50),
        "p99_ms": tally.percentile_ms(99),
        "judge_mib_early": early,
        "judge_mib_late": late,
        "judge_mib": memory,
    }


async def run_open(generator: Generator, seconds: float) -> dict[str, Any]:
    """Part "open"."""
    pairs, direct = Tally(), Tally()
    await asyncio.gather(
        open_loop(generator.pair, PAIRS_PER_SECOND, seconds, pairs),
        open_loop(generator.generation, PAIRS_PER_SECOND, seconds, direct),
    )
    found: dict[str, Any] = {"statuses": dict(pairs.statuses), "predictor_statuses": dict(direct.statuses)}
    for percent in (50, 99):
        judge_ms, predictor_ms = pairs.percentile_ms(percent), direct.percentile_ms(percent)
        found |= {f"p{percent}_ms": judge_ms, f"predictor_p{percent}_ms": predictor_ms}
        found[f"overhead_p{percent}_ms"] = judge_ms - predictor_ms
    return found


async def run_restart(
    generator: Generator, predictor: Program, seconds: float, clients: int = 50, down_seconds: float = DOWN_SECONDS
) -> dict[str, Any]:
    """Part "restart": a third of the time with a predictor, some seconds without one, the rest with one again."""
    work = asyncio.create_task(closed_loop(generator, clients, seconds + down_seconds))
    await asyncio.sleep(seconds / 3)
    await asyncio.to_thread(predictor.kill)
    await asyncio.sleep(down_seconds)
    await asyncio.to_thread(predictor.start)
    tally = await work
    after = Tally()
    await generator.pair(after)
    return {"statuses": dict(tally.statuses), "after": dict(after.statuses), "slowest_answer_s": max(tally.seconds)}


async def run_parts(log_dir: Path, seconds: float, only: str | None) -> dict[str, Any]:
    """All parts, or one."""
    found: dict[str, Any] = {"machine": f"{platform.machine()}, {psutil.cpu_count()} CPUs", "seconds": seconds}
    found["load_average"] = psutil.getloadavg()[0]
    with judge_and_predictor(log_dir, LATENCY_SECONDS) as (predictor, judge, predictor_url, judge_url):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            generator = Generator(session, predictor_url, judge_url)
            if only in (None, "open"):
                found["open"] = await run_open(generator, seconds)
            if only in (None, "closed"):
                found["closed"] = await run_closed(generator, judge, seconds)
            if only in (None, "restart"):
                found["restart"] = await run_restart(generator, predictor, seconds)
    return found


def main(
    seconds: Annotated[float, typer.Option(min=1, help="Of each part.")] = 60.0,
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("judge_load.json"),
    only: Annotated[str | None, typer.Option(help="One part: closed, open or restart.")] = None,
) -> None:
    """Measure the judge in front of a stub predictor on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run_parts(Path(folder), seconds, only))
    output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    table = Table("part", "figure", "value")
    for part, figures in found.items():
        for name, value in figures.items() if isinstance(figures, dict) else [("", figures)]:
            if not isinstance(value, list):
                table.add_row(part, name, f"{value:.1f}" if isinstance(value, float) else str(value))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
