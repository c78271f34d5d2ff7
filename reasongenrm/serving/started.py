"""Our servers as child processes: an endpoint for a checkpoint, and the judge in front of it.

All end with the process that starts them; if one of a pair ends by itself, so does the other.
"""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasongenrm.errors import ConfigError, InputError
from reasongenrm.evaluation.judge_style import style_of
from reasongenrm.processes.child import Child
from reasongenrm.records import CALIBRATION_FILE

NOTE_SECONDS = 10.0  # between signs of life
SMALL_SERVER_TOKENS = 256  # of a judgment: SmolLM2 writes 13 tokens/s on 2 cores, and the judge waits 120 s for them
UNTRAINED_TOKENS = 64  # an untrained model's reason rambles on until it is cut off
EXAMPLE = {
    "question": "Name three animals. Write the whole answer in capital letters.",
    "answer_a": "Horses, rabbits and foxes.",
    "answer_b": "CATS, DOGS AND HORSES.",
}
UNTRAINED = (
    "NOTE: this model is UNTRAINED. Nobody taught it to judge: its verdicts are near chance, and are verdicts only "
    "because decoding allows nothing else. `make demo` trains a judge; `make serve` then serves that one."
)


@dataclass(frozen=True)
class ServedCheckpoint:
    """What is served; not trained: a base model that only has our chat template."""

    folder: Path
    is_trained: bool = True


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[tuple[str, Child]]:
    """Serve a checkpoint on loopback while the context lasts: its address, which ends in /v1, and its process.

    Raises:
        EngineError: the server ended before it answered, or did not answer in time.
    """
    port = port or _free_port()
    command = ["serve", "--model", str(folder), "--port", str(port)]
    env = {name: value for name, value in os.environ.items() if name != "VLLM_API_KEY"}  # nobody but this run asks
    with _start(f"the endpoint for {folder}", command, folder.parent / "endpoint.log", env=env) as server:
        server.wait_until_up(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1", server


def wait_for_stop(*servers: Child) -> None:
    """Wait until Ctrl-C.

    Raises:
        EngineError: one of the servers ended by itself.
    """
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            for server in servers:
                server.check()
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_with_judge(
    checkpoint: ServedCheckpoint,
    name: str,
    host: str,
    port: int,
    judge_port: int,
    max_model_len: int | None,
    log_dir: Path,
    say: Callable[[str], None],
) -> None:
    """Serve a checkpoint and the judge in front of it until Ctrl-C or SIGTERM.

    Args:
        host: the judge listens on; the predictor is for the judge alone, on loopback.
        log_dir: for predictor.log and judge.log.
        say: is told what happens, line by line.

    Raises:
        ConfigError: a port is taken.
        InputError: the folder is no checkpoint.
        EngineError: one of the two ended, or did not answer in time; with the end of its log.
    """
    folder = checkpoint.folder
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: found no config.json; expected the folder of a checkpoint. Give an existing one.")
    for number, option in ((port, "--port"), (judge_port, "--judge-port")):
        _check_port(number, option)
    log_dir.mkdir(parents=True, exist_ok=True)
    address = f"http://127.0.0.1:{port}"
    predictor = ["serve", "--model", str(folder), "--name", name, "--port", str(port)]
    judge = ["judge-server", "--predictor", f"{address}/v1", "--host", host, "--port", str(judge_port), "--name", name]
    judge += ["--style", style_of(folder), "--about", about(checkpoint)]
    if max_model_len is not None:
        predictor += ["--max-model-len", str(max_model_len)]
    if not checkpoint.is_trained:
        judge += ["--max-tokens", str(UNTRAINED_TOKENS)]
        say(UNTRAINED)
    elif importlib.util.find_spec("vllm") is None:
        judge += ["--max-tokens", str(SMALL_SERVER_TOKENS)]
    if (folder / CALIBRATION_FILE).is_file():
        judge += ["--calibration", str(folder)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends this process as Ctrl-C does
    # In groups of their own: Ctrl-C is for us, and we stop them.
    with _start("the predictor", predictor, log_dir / "predictor.log", own_group=True) as serving:
        serving.wait_until_up(f"{address}/health", waiting=_waiting("predictor", say))
        with _start("the judge", judge, log_dir / "judge.log", own_group=True) as judging:
            local = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{judge_port}"
            judging.wait_until_up(f"{local}/readyz", waiting=_waiting("judge", say))
            say(_ready(address, local))
            wait_for_stop(serving, judging)
    say("stopped")


def about(checkpoint: ServedCheckpoint) -> str:
    """What the judge is, for the people who use it."""
    if not checkpoint.is_trained:
        return "not trained to judge: its verdicts are near chance"
    asked = {
        "plain": "asked in plain chat; nothing says that it was trained to judge",
        "verdict": "trained to write its verdict at once",
        "reason": "trained to write a reason, then its verdict",
    }
    return f"checkpoint {checkpoint.folder.resolve().name}, {asked[style_of(checkpoint.folder)]}"


def _ready(predictor: str, judge: str) -> str:
    key = ' -H "Authorization: Bearer $JUDGE_API_KEY"' if os.environ.get("JUDGE_API_KEY") else ""
    return (
        f"predictor: {predictor}/v1 (OpenAI's API)\n"
        f"judge:     {judge} (docs: {judge}/docs, page for people: make web)\n"
        "Ctrl-C stops both. Judge a pair:\n\n"
        # no ' in it
        f"curl -s {judge}/v1/pairwise -H 'Content-Type: application/json'{key} -d '{json.dumps(EXAMPLE)}'\n"
    )


def _check_port(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            message = f"port {port} is taken ({error.strerror}). End what listens there, or give {option}."
            raise ConfigError(message) from error


def _start(name: str, arguments: Sequence[str], log_path: Path, **options: Any) -> Child:
    """Start a command of ours. What it may become, vLLM, has children of its own to end: it gets SIGTERM."""
    command = [sys.executable, "-m", "reasongenrm", *arguments]
    return Child(name, command, death_signal=signal.SIGTERM, log_path=log_path, **options)


def _waiting(name: str, say: Callable[[str], None]) -> Callable[[float], None]:
    """Says now and then that a server is waited for."""
    due = NOTE_SECONDS

    def note(seconds: float) -> None:
        nonlocal due
        if seconds > due:
            due += NOTE_SECONDS
            say(f"{name}: loading ({seconds:.0f} s)")

    return note
