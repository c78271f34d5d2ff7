"""serve --judge: one command for predictor and judge, as a real process over a tiny checkpoint."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from transformers import AutoTokenizer

from reasongenrm.data.chat import detect_family, install_template
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.records import OpeningRole
from reasongenrm.runs.served_checkpoint import find_checkpoint
from reasongenrm.serving.started import ServedCheckpoint, about, serve_with_judge
from tests.tiny import tiny_checkpoint
from tests.waiting import HANG_SECONDS


def free_ports(number: int) -> list[int]:
    with bound(number) as sockets:
        return [int(opened.getsockname()[1]) for opened in sockets]


@contextmanager
def bound(number: int) -> Iterator[list[socket.socket]]:
    sockets = [socket.socket() for _ in range(number)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    try:
        yield sockets
    finally:
        for opened in sockets:
            opened.close()


class Stack:
    """`reasongenrm serve --judge` with a tiny model, started and read."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "store" / "winner"
        tiny_checkpoint(self.folder, "chatml", opening_role="reason")
        self.predictor_port, self.judge_port = free_ports(2)
        command = [sys.executable, "-m", "reasongenrm", "serve", "--judge", "--store", str(tmp_path / "store")]
        self.said = tmp_path / "said"
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.predictor_port), "--judge-port", str(self.judge_port)],
                stdout=said,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")},
            )

    def wait_for(self, words: str) -> str:
        end = time.monotonic() + HANG_SECONDS
        while words not in (said := self.said.read_text()):
            assert self.process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.05)
        return said

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    started = Stack(tmp_path)
    yield started
    for process in [*(started.children() if started.process.poll() is None else []), started.process]:
        if process.poll() is None if isinstance(process, subprocess.Popen) else process.is_running():
            process.kill()
    started.process.wait()


def test_one_command_serves_the_winner_with_a_judge_and_sigterm_ends_all_of_it(stack: Stack) -> None:
    said = stack.wait_for("curl -s")
    assert str(stack.folder) in said
    assert "UNTRAINED" not in said
    found = re.search(r"^curl .*$", said, re.MULTILINE)
    assert found is not None
    answer = subprocess.run(
        shlex.split(found[0]), capture_output=True, text=True, check=True, timeout=HANG_SECONDS
    ).stdout
    assert '"preferred":"' in answer
    assert answer.count('"reason":') == 2
    models = httpx.get(f"http://127.0.0.1:{stack.predictor_port}/v1/models").json()
    assert models["data"][0]["id"] == "reasongenrm"
    children = stack.children()
    assert len(children) == 2
    stack.process.send_signal(signal.SIGTERM)
    assert stack.process.wait(HANG_SECONDS) == 0
    assert psutil.wait_procs(children, HANG_SECONDS)[1] == []
    assert "stopped" in stack.said.read_text()


@pytest.mark.slow
def test_kill_that_cannot_be_caught_ends_all_of_it(stack: Stack) -> None:
    stack.wait_for("curl -s")
    children = stack.children()
    assert len(children) == 2
    stack.process.kill()
    assert psutil.wait_procs(children, HANG_SECONDS)[1] == []


@pytest.mark.slow
def test_dead_predictor_ends_the_judge_too_and_its_log_is_shown(stack: Stack) -> None:
    stack.wait_for("curl -s")
    children = stack.children()
    predictor = next(child for child in children if "judge-server" not in child.cmdline())
    predictor.kill()
    assert stack.process.wait(HANG_SECONDS) == 4
    assert psutil.wait_procs(children, HANG_SECONDS)[1] == []
    said = stack.said.read_text()
    assert "the predictor was ended by SIGKILL" in said
    assert "predictor.log" in said


def serve(folder: Path, port: int, judge_port: int) -> None:
    serve_with_judge(ServedCheckpoint(folder), "m", "127.0.0.1", port, judge_port, None, folder / "logs", print)


def test_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    with bound(1) as (taken,):
        taken.listen()
        port = int(taken.getsockname()[1])
        with pytest.raises(ConfigError, match=f"port {port} is taken.*--judge-port"):
            serve(tmp_path, free_ports(1)[0], port)
    assert not (tmp_path / "logs").exists()


def test_folder_without_a_checkpoint_is_an_error_with_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no config"):
        serve(tmp_path, *free_ports(2))


@pytest.mark.parametrize(
    ("opening", "told"),
    [
        ("reason", "checkpoint judge, trained to write a reason, then its verdict"),
        ("assistant", "checkpoint judge, trained to write its verdict at once"),
        (None, "checkpoint judge, asked in plain chat; nothing says that it was trained to judge"),
    ],
)
def test_judge_says_what_it_is(tmp_path: Path, opening: OpeningRole | None, told: str) -> None:
    folder = tiny_checkpoint(tmp_path / "judge", "chatml")
    if opening is not None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        install_template(tokenizer, detect_family(tokenizer), opening)
        tokenizer.save_pretrained(folder)
    assert about(ServedCheckpoint(folder)) == told
    assert about(ServedCheckpoint(folder, is_trained=False)) == "not trained to judge: its verdicts are near chance"


def test_winner_of_the_store_is_the_default_and_a_model_that_is_named_comes_first(tmp_path: Path) -> None:
    winner, fallback = tmp_path / "winner", tmp_path / "none"
    winner.mkdir()
    assert find_checkpoint(None, str(tmp_path), lambda: fallback) == ServedCheckpoint(winner)
    found = find_checkpoint("somewhere/else", str(tmp_path), lambda: fallback)
    assert found == ServedCheckpoint(Path("somewhere/else"))
