"""serve --judge: predictor and judge on this machine with one command, and the default checkpoint.

Two processes below this one: the predictor (vLLM or our small server) on loopback, and the judge in front of it. Both end
with this one; if one of them ends by itself, so does everything.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from reasongenrm.cli.console import err, print_note
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.evaluation.metrics import JudgeStyle
from reasongenrm.processes.child import Child

NOTE_SECONDS = 10.0  # between signs of life in a log; a terminal has a clock
SMALL_SERVER_TOKENS = 256  # of a judgment: SmolLM2 writes 13 tokens/s on 2 cores, and the judge waits 120 s for them
UNTRAINED_TOKENS = 64  # an untrained model's reason rambles on until it is cut off
EXAMPLE = {
    "question": "Name three animals. Write the whole answer in capital letters.",
    "answer_a": "Horses, rabbits and foxes.",
    "answer_b": "CATS, DOGS AND HORSES.",
}


@dataclass(frozen=True)
class Checkpoint:
    """What is served; not trained: a base model that only has our chat template."""

    folder: Path
    is_trained: bool = True


def find_checkpoint(model: str | None, store: str) -> Checkpoint:
    """The checkpoint to serve.

    Args:
        model: a folder, a model in the store (s3://...), or a .gguf file, which is imported into the store and given our
            chat template. None: the winner of the store's last run; without one, the SmolLM2 that `make demo` trains.

    Raises:
        InputError: the model, or without one SmolLM2's package, is not there.
    """
    from reasongenrm.demo.formats import smollm2_path
    from reasongenrm.runs.local import local_folder

    winner = local_folder(store) / "winner"
    if model is None and winner.is_dir():
        return Checkpoint(winner)
    if model is None or model.endswith(".gguf"):
        print_note("importing the .gguf file (half a minute the first time) ...")
        return Checkpoint(_import_gguf(model or str(smollm2_path()), store), is_trained=False)
    if model.startswith("s3://"):
        return Checkpoint(_fetch(model, store))
    return Checkpoint(Path(model).expanduser())


def _fetch(model: str, store: str) -> Path:
    """A copy of a model in the store, over that of an earlier call; vLLM takes this process over, so nobody could remove it."""
    from reasongenrm.runs.local import local_folder, open_store
    from reasongenrm.store.artifacts import download

    folder = local_folder(store) / "served"
    with open_store(store):
        shutil.rmtree(folder, ignore_errors=True)
        return download(model, folder)


def style_of(folder: Path) -> JudgeStyle:
    """How a checkpoint wants to be asked, told from its chat template: ours says which turn a generation opens.

    Raises:
        InputError: the folder is no checkpoint, or has no tokenizer.
    """
    from reasongenrm.data.chat import is_installed

    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: found no config.json; expected the folder of a checkpoint. Give an existing one.")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: its tokenizer cannot be loaded: {' '.join(str(error).split())}") from error
    if not is_installed(tokenizer):
        return "plain"
    return "reason" if 'default("reason")' in str(tokenizer.chat_template) else "verdict"


def _import_gguf(path: str, store: str) -> Path:
    from transformers import AutoTokenizer

    from reasongenrm.config import ModelConfig
    from reasongenrm.data.chat import detect_family, install_template
    from reasongenrm.data.import_model import import_model
    from reasongenrm.runs.local import local_folder, open_store
    from reasongenrm.store.artifacts import download

    folder = local_folder(store) / "untrained"
    with open_store(store) as opened, contextlib.redirect_stdout(sys.stderr):
        uri = import_model(opened, ModelConfig(), path).uri
        shutil.rmtree(folder, ignore_errors=True)
        download(uri, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    install_template(tokenizer, detect_family(tokenizer), "reason")
    tokenizer.save_pretrained(folder)
    return folder


def serve_with_judge(
    checkpoint: Checkpoint, name: str, host: str, port: int, judge_port: int, max_model_len: int | None, log_dir: Path
) -> None:
    """Serve a checkpoint and the judge in front of it until Ctrl-C or SIGTERM.

    Args:
        host: the judge listens on; the predictor is for the judge alone, on loopback.
        log_dir: for predictor.log and judge.log.

    Raises:
        ConfigError: a port is taken.
        InputError: the folder is no checkpoint.
        EngineError: one of the two ended, or did not answer in time; with the end of its log.
    """
    from reasongenrm.evaluation.calibration import CALIBRATION_FILE

    for number, option in ((port, "--port"), (judge_port, "--judge-port")):
        _check_port(number, option)
    log_dir.mkdir(parents=True, exist_ok=True)
    folder, address = str(checkpoint.folder), f"http://127.0.0.1:{port}"
    predictor = ["serve", "--model", folder, "--name", name, "--port", str(port)]
    judge = ["judge-server", "--predictor", f"{address}/v1", "--host", host, "--port", str(judge_port), "--name", name]
    judge += ["--style", style_of(checkpoint.folder)]
    if max_model_len is not None:
        predictor += ["--max-model-len", str(max_model_len)]
    if not checkpoint.is_trained:
        judge += ["--max-tokens", str(UNTRAINED_TOKENS)]
        _say_untrained()
    elif importlib.util.find_spec("vllm") is None:
        judge += ["--max-tokens", str(SMALL_SERVER_TOKENS)]
    if (checkpoint.folder / CALIBRATION_FILE).is_file():
        judge += ["--calibration", folder]
    with _ending_at_sigterm(), _start("predictor", predictor, log_dir) as serving:
        with _shown_waiting("predictor") as waiting:
            serving.wait_until_up(f"{address}/health", waiting=waiting)
        with _start("judge", judge, log_dir) as judging:
            local = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{judge_port}"
            with _shown_waiting("judge") as waiting:
                judging.wait_until_up(f"{local}/readyz", waiting=waiting)
            _say_ready(address, local)
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    serving.check()
                    judging.check()
                    time.sleep(0.2)
    print_note("stopped")


def _say_untrained() -> None:
    print_note(
        "NOTE: this model is UNTRAINED. Nobody taught it to judge: its verdicts are near chance, and are verdicts only because "
        "decoding allows nothing else. `make demo` trains a judge; `make serve` then serves that one."
    )


def _say_ready(predictor: str, judge: str) -> None:
    key = ' -H "Authorization: Bearer $JUDGE_API_KEY"' if os.environ.get("JUDGE_API_KEY") else ""
    print_note(f"predictor: {predictor}/v1 (OpenAI's API)")
    print_note(f"judge:     {judge} (docs: {judge}/docs, page for people: make web)")
    print_note("Ctrl-C stops both. Judge a pair:\n")
    print_note(
        f"curl -s {judge}/v1/pairwise -H 'Content-Type: application/json'{key} -d '{json.dumps(EXAMPLE)}'\n"  # no ' in it
    )


def _check_port(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"port {port} is taken ({error.strerror}). End what listens there, or give {option}."
            ) from error


def _start(name: str, arguments: Sequence[str], log_dir: Path) -> Child:
    """A command of ours, out of the terminal's reach: Ctrl-C is for us, and we stop it."""
    return Child(
        f"the {name}",
        [sys.executable, "-m", "reasongenrm", *arguments],
        death_signal=signal.SIGTERM,  # vLLM, which the predictor may have become, has children of its own to end
        own_group=True,
        log_path=log_dir / f"{name}.log",
    )


@contextmanager
def _shown_waiting(name: str) -> Iterator[Callable[[float], None]]:
    """Show that a process is waited for, with the seconds: a clock on a terminal, now and then a line in a log."""
    noted = 0.0
    with err.status(f"{name}: loading") if err.is_terminal else contextlib.nullcontext() as status:

        def show(seconds: float) -> None:
            nonlocal noted
            if status is not None:
                status.update(f"{name}: loading ({seconds:.0f} s)")
            elif seconds - noted > NOTE_SECONDS:
                noted = seconds
                print_note(f"{name}: loading ({seconds:.0f} s)")

        yield show


@contextmanager
def _ending_at_sigterm() -> Iterator[None]:
    """SIGTERM ends the context as Ctrl-C does."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
