"""A stub predictor and the judge in front of it as processes on loopback: for the load test, and for its short version
in the tests."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
START_SECONDS = 180.0


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Program:
    """A Python module run as a process; it can be killed and started again."""

    def __init__(self, arguments: list[str], health_url: str, log_path: Path) -> None:
        self.arguments, self.health_url, self.log_path = arguments, health_url, log_path
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it ended, or did not answer in START_SECONDS.
        """
        environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.arguments], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        end = time.monotonic() + START_SECONDS
        while not _answers(self.health_url):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{' '.join(self.arguments)}: ended or silent; see {self.log_path}.")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once, as a node that fails does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self.process is not None
        return self.process.pid


@contextmanager
def judge_and_predictor(log_dir: Path, latency_seconds: float) -> Iterator[tuple[Program, Program, str, str]]:
    """(predictor, judge, predictor's root, judge's root) while the context lasts."""
    ports = free_port(), free_port()
    roots = [f"http://127.0.0.1:{port}" for port in ports]
    stub = ["tests.predictors", "--port", str(ports[0]), "--latency", str(latency_seconds)]
    server = ["reasongenrm", "judge-server", "--predictor", f"{roots[0]}/v1", "--port", str(ports[1])]
    predictor = Program(stub, f"{roots[0]}/health", log_dir / "predictor.log")
    judge = Program(server, f"{roots[1]}/readyz", log_dir / "judge.log")
    try:
        predictor.start()
        judge.start()
        yield predictor, judge, roots[0], roots[1]
    finally:
        judge.kill()
        predictor.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False
