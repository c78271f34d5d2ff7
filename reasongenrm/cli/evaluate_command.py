"""evaluate: one judge on one benchmark, from a checkpoint or behind an OpenAI-compatible endpoint."""

import contextlib
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from reasongenrm.cli.console import print_note, print_table
from reasongenrm.cli.settings import (
    DEFAULT_STORE,
    ConfigOption,
    EndpointOption,
    ServedModelOption,
    SetOption,
    StoreOption,
    absolute,
    make_config,
)
from reasongenrm.cli.table_formats import FormatOption, print_as
from reasongenrm.errors import ConfigError

StyleOption = Annotated[
    Literal["plain", "verdict", "reason"] | None,
    Option(
        help="Asked in plain chat, for the verdict at once, for reason and verdict. Default: as trained, else reason."
    ),
]


def evaluate(
    benchmark: Annotated[
        str, Option(metavar="URI", help="RewardBench or its schema (docs/data.md): a file, s3:// or hub name.")
    ],
    model: Annotated[
        str | None, Option(metavar="URI", help="A checkpoint: a folder, or s3://... of the store.")
    ] = None,
    endpoint: EndpointOption = None,
    served_model: ServedModelOption = None,
    style: StyleOption = None,
    keep_markup: Annotated[bool, Option("--keep-markup", help="For plain vLLM: leave the turns' markup in.")] = False,
    output: Annotated[
        Path, Option("--output", "-o", metavar="FOLDER", help="Gets report.html and the figures as JSON.")
    ] = Path("report"),
    name: Annotated[str, Option(help="What the report calls the judge.")] = "judge",
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    limit: Annotated[int | None, Option(min=1, help="The most rows, spread over the subsets.")] = None,
    assignments: SetOption = [],
    kind: FormatOption = "table",
) -> None:
    """Have a judge judge a benchmark in both orders, print its figures and write a report.

    Killed and started again with the same arguments, it goes on where it stopped.

    [bold]Examples[/bold]

      reasongenrm evaluate --endpoint http://127.0.0.1:8000/v1 --benchmark allenai/reward-bench

      reasongenrm evaluate --model ./my-judge --benchmark rows.jsonl --limit 100 -o report
    """
    from reasongenrm.cli.views import evaluation_cells, evaluations_table
    from reasongenrm.data.benchmarks import load_benchmark
    from reasongenrm.evaluation.evaluate import evaluate_alone, evaluation_metrics
    from reasongenrm.evaluation.judge_style import style_of
    from reasongenrm.evaluation.report import build_report
    from reasongenrm.evaluation.report_page import render_html
    from reasongenrm.generation import open_engine
    from reasongenrm.http_client import parse_address
    from reasongenrm.processes.cpu_math import configure_cpu_math
    from reasongenrm.processes.extras import require

    if (model is None) == (endpoint is None):
        raise ConfigError("give the judge as one of --model URI and --endpoint URL.")
    address = None if endpoint is None else str(parse_address(endpoint))
    if model is not None and not find_spec("vllm"):
        require("train")
    if config is None:
        assignments = [f"evaluate.engine.kind={'vllm' if find_spec('vllm') else 'transformers'}", *assignments]
    settings = make_config(config, assignments, limit).evaluate
    rows = load_benchmark(absolute(benchmark), settings.limit, settings.seed, settings.columns)
    print_note(rows.said)
    configure_cpu_math()
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as opened:  # stdout is for the result
        folder = None
        if model is not None:
            folder = _fetched(model, store, Path(opened.enter_context(tempfile.TemporaryDirectory())))
        judge = folder or endpoint or ""
        engine = open_engine(judge, settings.engine, model_name=served_model, keep_markup=keep_markup)
        opened.callback(engine.close)
        output.mkdir(parents=True, exist_ok=True)
        style = style or (style_of(folder) if folder else "reason")
        shown = model or f"{engine.model_name} at {address}"
        evaluation, judgments = evaluate_alone(engine, settings, rows, style, name=name, model=shown, folder=output)
    report = build_report({name: evaluation}, {name: judgments}, rows.rows)
    (output / "report.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (output / "report.html").write_text(render_html(report), encoding="utf-8")
    if kind == "table":
        print_table(evaluations_table([evaluation]))
    else:
        columns, cells = evaluation_cells([evaluation])
        print_as(kind, columns, cells, [evaluation_metrics(evaluation)], evaluation.model_dump(mode="json"))
    print_note(f"report: {(output / 'report.html').resolve()}")


def _fetched(model: str, store: str, folder: Path) -> Path:
    """A checkpoint's local folder; a model in the store is copied into `folder`."""
    if not model.lower().startswith("s3://"):
        return Path(model).expanduser()
    from reasongenrm.runs.local import existing_store
    from reasongenrm.store.artifacts import download

    print_note(f"fetching {model}")
    with existing_store(store):
        return download(model, folder)
