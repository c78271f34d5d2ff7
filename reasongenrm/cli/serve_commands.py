"""serve, judge-server, web: what listens until Ctrl-C."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from reasongenrm.cli.console import print_note
from reasongenrm.cli.settings import DEFAULT_STORE, ListenOption, PortOption, ServedModelOption, StoreOption
from reasongenrm.errors import ConfigError


def serve(
    model: Annotated[
        str | None,
        Option(metavar="URI", help="A folder, s3:// or .gguf file; else the last run's winner, else SmolLM2."),
    ] = None,
    host: ListenOption = "127.0.0.1",
    port: PortOption = 8000,
    max_model_len: Annotated[int | None, Option(min=1, help="Longest context; default: the model's own.")] = None,
    name: Annotated[str, Option(help="The model's name in requests.")] = "reasongenrm",
    judge: Annotated[bool, Option("--judge", help="Serve the judge in front of it too, on --host.")] = False,
    judge_port: Annotated[int, Option(help="Port of the judge.")] = 8080,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Serve a checkpoint behind an OpenAI-compatible endpoint until Ctrl-C.

    vLLM serves it where it is installed; else a small server on transformers does, one generation at a time. Clients
    send the key VLLM_API_KEY, those of the judge JUDGE_API_KEY, if these are set.

    [bold]Examples[/bold]

      reasongenrm serve --model .reasongenrm/winner

      reasongenrm serve --judge

      curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{"messages": [...]}'
    """
    from reasongenrm.processes.extras import require

    require("train", "serve", *(["judge"] if judge else []))
    from reasongenrm.config import EngineConfig
    from reasongenrm.demo.formats import smollm2_path
    from reasongenrm.processes.cpu_math import configure_cpu_math
    from reasongenrm.runs.local import local_folder
    from reasongenrm.runs.served_checkpoint import find_checkpoint
    from reasongenrm.serving.server import serve as serve_folder
    from reasongenrm.serving.started import serve_with_judge

    configure_cpu_math()
    with contextlib.redirect_stdout(sys.stderr):
        found = find_checkpoint(model, store, smollm2_path)
    if judge:
        print_note(f"serving {found.folder} as '{name}', with the judge in front of it")
        log_dir = local_folder(store) / "serve"
        serve_with_judge(found, name, host, port, judge_port, max_model_len, log_dir, print_note)
        return
    print_note(f"serving {found.folder} as '{name}' at http://{host}:{port}/v1 (Ctrl-C stops)")
    serve_folder(found.folder, name, host, port, EngineConfig(max_model_len=max_model_len))


def judge_server(
    predictor: Annotated[
        str | None, Option(metavar="URL", help="What serves the checkpoint, http(s)://.../v1.")
    ] = None,
    host: ListenOption = "127.0.0.1",
    port: Annotated[int, Option("--port", "--http_port", help="Port to listen on.")] = 8080,
    name: Annotated[
        str, Option("--name", "--model_name", help="The judge's name in KServe's protocols.")
    ] = "reasongenrm",
    served_model: ServedModelOption = None,
    style: Annotated[
        Literal["plain", "verdict", "reason"],
        Option(help="Asked in plain chat, for the verdict, for reason and verdict."),
    ] = "reason",
    max_tokens: Annotated[int, Option(min=1, help="Of one generation, unless a request says otherwise.")] = 2048,
    max_chars: Annotated[int, Option(min=1000, help="Of question and answers together.")] = 400_000,
    max_concurrency: Annotated[int, Option(min=1, help="Generations under way at the predictor.")] = 64,
    max_requests: Annotated[int, Option(min=1, help="Requests under way; more get 429.")] = 256,
    generation_seconds: Annotated[float, Option(min=0.1, help="Time limit of one generation.")] = 120.0,
    request_seconds: Annotated[float, Option(min=0.1, help="Time limit of one request.")] = 600.0,
    drain_seconds: Annotated[
        float, Option(min=0, help="After SIGTERM, answer on for so long, each time with Connection: close.")
    ] = 0.0,
    constrained: Annotated[bool, Option(help="Let the predictor allow nothing but [[A]] and [[B]].")] = True,
    anchor: Annotated[
        str | None, Option(metavar="TEXT", help="What a single answer without a reference is held against.")
    ] = None,
    calibration: Annotated[Path | None, Option(metavar="FOLDER", help="With a judge_calibration.json.")] = None,
    calibration_temperature: Annotated[float | None, Option(min=0.001, help="Instead of a folder.")] = None,
    calibration_bias: Annotated[float, Option(help="Goes with --calibration-temperature.")] = 0.0,
    about: Annotated[
        str | None, Option(metavar="TEXT", help="What this judge is, for the people who use it; /v1/models has it.")
    ] = None,
    log_text: Annotated[bool, Option("--log-text", help="Log questions, answers and reasons too.")] = False,
    predictor_host: Annotated[str | None, Option("--predictor_host", hidden=True, help="As KServe says it.")] = None,
    predictor_protocol: Annotated[  # noqa: ARG001
        str | None, Option("--predictor_protocol", hidden=True, help="Passed by KServe.")
    ] = None,
) -> None:
    """Serve the judge in front of a predictor until Ctrl-C: pairs, lists and single answers, in both orders.

    The API's page is at /docs, metrics at /metrics. Keys: JUDGE_API_KEY of clients, VLLM_API_KEY of the predictor. Logs
    go to stderr, one JSON line per request, without the users' text.

    [bold]Examples[/bold]

      reasongenrm judge-server --predictor http://127.0.0.1:8000/v1

      curl 127.0.0.1:8080/v1/pairwise -H 'Content-Type: application/json' -d '{"question": "Name a prime.", ...}'
    """
    from reasongenrm.processes.extras import require

    require("judge")
    from reasongenrm.evaluation.calibration import PlattScaling, load_calibration
    from reasongenrm.http_client import parse_address
    from reasongenrm.judge.judge_app import ServerSettings, run_server
    from reasongenrm.judge.server.limits import Limits
    from reasongenrm.judge.service import JudgeSettings

    if (predictor is None) == (predictor_host is None):
        raise ConfigError("judge-server: give the predictor as --predictor URL, such as http://127.0.0.1:8000/v1.")
    if calibration is not None and calibration_temperature is not None:
        raise ConfigError("judge-server: give one of --calibration FOLDER and --calibration-temperature.")
    found: PlattScaling | None = None if calibration is None else load_calibration(calibration)
    if calibration_temperature is not None:
        found = PlattScaling(temperature=calibration_temperature, bias=calibration_bias)
    url = predictor if predictor is not None else f"http://{predictor_host}/v1"
    settings = JudgeSettings(
        predictor_url=url,
        model=served_model,
        style=style,
        max_tokens=max_tokens,
        max_chars=max_chars,
        timeout_seconds=generation_seconds,
        constrained=constrained,
        max_concurrency=max_concurrency,
        calibration=found,
        anchor=anchor or JudgeSettings.anchor,
    )
    limits = Limits(
        api_key=os.environ.get("JUDGE_API_KEY") or None, max_requests=max_requests, request_seconds=request_seconds
    )
    if limits.api_key is None and host not in ("127.0.0.1", "localhost", "::1"):
        print_note(f"serving on {host} without a key: anybody who reaches it may use it; set JUDGE_API_KEY")
    print_note(f"judge at http://{host}:{port} (docs: /docs), in front of {parse_address(url)} (Ctrl-C stops)")
    server = ServerSettings(host, port, name, log_text=log_text, about=about, drain_seconds=drain_seconds)
    run_server(settings, limits, server)


def web(
    judge: Annotated[str, Option(metavar="URL", help="Its root; its key: JUDGE_API_KEY.")] = "http://127.0.0.1:8080",
    store: StoreOption = DEFAULT_STORE,
    host: ListenOption = "127.0.0.1",
    port: PortOption = 7860,
    root_path: Annotated[str, Option(metavar="PATH", help="Below which an ingress shows the page: /judge.")] = "",
    max_per_visitor: Annotated[int, Option(min=1, help="Judgments and chats at a time per address.")] = 4,
) -> None:
    """Show a page in the browser: judge a pair, chat, and the leaderboard of a store's runs. Ctrl-C stops it.

    It loads no model and talks to a judge (`reasongenrm judge-server`).

    [bold]Examples[/bold]

      reasongenrm web

      reasongenrm web --judge http://judge.example:8080 --store s3://my-bucket/judges --port 9000
    """
    from reasongenrm.processes.extras import require

    require("web")
    from reasongenrm.web.site import WebSettings, serve

    serve(WebSettings(judge, store, root_path.rstrip("/"), max_per_visitor), host, port, print_note)
