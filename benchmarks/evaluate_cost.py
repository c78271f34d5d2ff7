"""What does a judgment cost the evaluating process, when a server does the judging?

    python -m benchmarks evaluate-cost [--rows 1000] [--rounds 3] [--reason-tokens 0] [--latency 0]

A stub endpoint in a process of its own answers in the shape of vLLM 0.32, whatever it is asked. This process evaluates
rows over it, as `reasongenrm evaluate --endpoint` does, and counts its own CPU time (all threads, user and system);
then it sends the same requests with bare aiohttp and decodes the replies with `json`. The ratio is what our work on top
of the requests costs.
"""

import asyncio
import json
import platform
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import psutil
import typer
from aiohttp import web
from rich.console import Console
from rich.table import Table

from benchmarks.judge_processes import Program, free_port
from reasongenrm.config import EngineConfig, EvaluateConfig
from reasongenrm.data.benchmarks import Benchmark, BenchmarkRow
from reasongenrm.evaluation.evaluate import evaluate_alone
from reasongenrm.generation import open_engine
from reasongenrm.records import Message

QUESTION = "Name three rivers in Europe and say in one sentence each where they end."
CHOSEN = "The Danube ends in the Black Sea. The Rhine ends in the North Sea. The Rhone ends in the Mediterranean. " * 3
REJECTED = "Danube, Rhine, Rhone. They all end in the sea. " * 4
CONCURRENCY = 32
TOP_LOGPROBS = 20


def completion(num_reason_tokens: int) -> bytes:
    """A completion as vLLM 0.32 answers it: a reason, a verdict, and log-probabilities of all tokens."""

    def token(text: str, **others: float) -> dict[str, Any]:
        top = {text: -0.1, **others} | {f"other{number}": -5.0 - number for number in range(TOP_LOGPROBS)}
        listed = [
            {"token": name, "logprob": logprob, "bytes": list(name.encode())}
            for name, logprob in list(top.items())[:TOP_LOGPROBS]
        ]
        return {**listed[0], "top_logprobs": listed}

    words = [f" word{number}" for number in range(num_reason_tokens)]
    tokens = [*(token(word) for word in words), token("[["), token("A", B=-2.3), token("]]")]
    message = {
        "role": "assistant",
        "content": "[[A]]",
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": [],
        "reasoning": "".join(words) or None,
    }
    choice = {
        "index": 0,
        "message": message,
        "logprobs": {"content": tokens},
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": None,
    }
    usage = {"prompt_tokens": 250, "total_tokens": 250 + len(tokens), "completion_tokens": len(tokens)}
    return json.dumps(
        {
            "id": "chatcmpl-0123456789abcdef",
            "object": "chat.completion",
            "created": 1,
            "model": "stub",
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": None,
            "usage": {**usage, "prompt_tokens_details": None},
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "kv_transfer_params": None,
        }
    ).encode()


def serve_stub(port: int, num_reason_tokens: int, latency_seconds: float) -> None:
    """The stub: the same completion for every request."""
    reply = completion(num_reason_tokens)
    models = {"object": "list", "data": [{"id": "stub", "object": "model", "max_model_len": 32768}]}

    async def complete(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(latency_seconds)
        return web.Response(body=reply, content_type="application/json")

    async def list_models(_: web.Request) -> web.Response:
        return web.json_response(models)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/v1/models", list_models)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)


@contextmanager
def stub(folder: Path, num_reason_tokens: int, latency_seconds: float) -> Iterator[str]:
    """The stub's address, up to and including /v1, while the context lasts."""
    port = free_port()
    arguments = ["benchmarks.evaluate_cost", "stub", str(port), str(num_reason_tokens), str(latency_seconds)]
    program = Program(arguments, f"http://127.0.0.1:{port}/v1/models", folder / "stub.log")
    try:
        program.start()
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        program.kill()


def benchmark_of(num_rows: int) -> Benchmark:
    """Rows that differ in their question alone."""
    rows = tuple(
        BenchmarkRow(
            row_id=f"stub/{number}",
            subset="stub",
            question=(Message(role="user", content=f"{QUESTION} ({number})"),),
            chosen=CHOSEN,
            rejected=REJECTED,
        )
        for number in range(num_rows)
    )
    return Benchmark("stub", rows, num_rows, f"sha256:{0:064}")


def evaluate(url: str, num_rows: int) -> None:
    """As `reasongenrm evaluate --endpoint` does."""
    config = EvaluateConfig(engine=EngineConfig(concurrency=CONCURRENCY))
    engine = open_engine(url, config.engine)
    with tempfile.TemporaryDirectory() as folder:
        evaluate_alone(
            engine, config, benchmark_of(num_rows), "reason", name="stub", model=f"stub at {url}", folder=Path(folder)
        )


def ask_barely(url: str, num_rows: int) -> None:
    """As many requests of the same size with bare aiohttp."""
    body = {
        "model": "stub",
        "messages": [{"role": "user", "content": f"{QUESTION}{CHOSEN}{REJECTED}"}],
        "max_tokens": 2048,
        "logprobs": True,
        "top_logprobs": TOP_LOGPROBS,
    }

    async def work() -> None:
        places = iter(range(2 * num_rows))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY)) as session:

            async def worker() -> None:
                for _ in places:
                    async with session.post(f"{url}/chat/completions", json=body) as response:
                        json.loads(await response.read())

            await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))

    asyncio.run(work())


def cpu_ms(work: Callable[[str, int], None], url: str, num_rows: int) -> float:
    """CPU milliseconds of this process per judgment."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    work(url, num_rows)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return seconds * 1000 / (2 * num_rows)


def main(
    rows: Annotated[int, typer.Option(min=1, help="Rows of the benchmark; each is judged in both orders.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="How often all is measured.")] = 3,
    reason_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens of each reason, with 20 log-probabilities each.")
    ] = 0,
    latency: Annotated[float, typer.Option(min=0, help="Seconds after which the stub answers.")] = 0.0,
) -> None:
    """Measure the CPU time of a judgment over a stub endpoint on this machine."""
    found: dict[str, list[float]] = {"evaluate": [], "bare aiohttp": []}
    with tempfile.TemporaryDirectory() as folder, stub(Path(folder), reason_tokens, latency) as url:
        for work in (evaluate, ask_barely):
            work(url, 50)  # imports, caches
        for _ in range(rounds):
            found["evaluate"].append(cpu_ms(evaluate, url, rows))
            found["bare aiohttp"].append(cpu_ms(ask_barely, url, rows))
    load = psutil.getloadavg()[0]
    title = f"CPU ms per judgment; {platform.machine()}, {psutil.cpu_count()} CPUs, load {load:.1f}"
    table = Table("work", "median", "least", "most", title=title)
    for name, values in found.items():
        table.add_row(name, *(f"{value:.2f}" for value in (statistics.median(values), min(values), max(values))))
    ratio = statistics.median(found["evaluate"]) / statistics.median(found["bare aiohttp"])
    table.add_row("ratio", f"{ratio:.2f}", "", "")
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["stub"]:
        serve_stub(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
    else:
        typer.run(main)
