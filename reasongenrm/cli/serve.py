"""serve: an OpenAI-compatible endpoint for a checkpoint, with vLLM if installed, else our small server."""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from reasongenrm.cli.console import print_note
from reasongenrm.cli.settings import DEFAULT_STORE, StoreOption
from reasongenrm.processes.child import Child

SERVED_NAME = "reasongenrm"


def serve(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="URI",
            help="A checkpoint: a folder, s3://... as `reasongenrm models` shows it, or a .gguf file. Default: the winner of the "
            "store's last run; without one, SmolLM2 as it is, untrained.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the key that clients must send: VLLM_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Longest context in tokens; default: the model's own.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="The model's name in requests.")] = SERVED_NAME,
    judge: Annotated[
        bool,
        typer.Option(
            "--judge", help="Serve the judge in front of it too; --host is the judge's then, its key JUDGE_API_KEY."
        ),
    ] = False,
    judge_port: Annotated[int, typer.Option(help="Port of the judge.")] = 8080,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Serve a checkpoint behind an OpenAI-compatible endpoint until Ctrl-C.

    vLLM serves it where it is installed; else a small server on transformers does, one generation at a time.

    [bold]Examples[/bold]

      reasongenrm serve --model .reasongenrm/winner

      reasongenrm serve --judge

      curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{"messages": [...]}'
    """
    from reasongenrm.cli.judge_stack import find_checkpoint, serve_with_judge
    from reasongenrm.config import EngineConfig
    from reasongenrm.processes.cpu_math import configure_cpu_math
    from reasongenrm.processes.extras import require
    from reasongenrm.runs.local import local_folder
    from reasongenrm.serving.server import serve as serve_folder

    require("serve", *(["judge"] if judge else []))
    configure_cpu_math()
    checkpoint = find_checkpoint(model, store)
    if judge:
        print_note(f"serving {checkpoint.folder} as '{name}', with the judge in front of it")
        serve_with_judge(checkpoint, name, host, port, judge_port, max_model_len, local_folder(store) / "serve")
        return
    print_note(f"serving {checkpoint.folder} as '{name}' at http://{host}:{port}/v1 (Ctrl-C stops)")
    serve_folder(checkpoint.folder, name, host, port, EngineConfig(max_model_len=max_model_len))


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint; `address` ends in /v1."""

    address: str
    server: Child

    def wait_for_stop(self) -> None:
        """Wait until Ctrl-C.

        Raises:
            EngineError: the server ended by itself.
        """
        with contextlib.suppress(KeyboardInterrupt):
            self.server.wait()
            self.server.check()


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[Endpoint]:
    """Serve a checkpoint on loopback, from a process of its own, while the context lasts.

    Raises:
        EngineError: the server ended before it answered, or did not answer in time.
    """
    port = port or _free_port()
    with Child(
        f"the endpoint for {folder}",
        [sys.executable, "-m", "reasongenrm", "serve", "--model", str(folder), "--port", str(port)],
        death_signal=signal.SIGTERM,  # vLLM has children of its own to end
        log_path=folder.parent / "endpoint.log",
        env={name: value for name, value in os.environ.items() if name != "VLLM_API_KEY"},  # nobody but this run asks
    ) as server:
        server.wait_until_up(f"http://127.0.0.1:{port}/health")
        yield Endpoint(f"http://127.0.0.1:{port}/v1", server)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
