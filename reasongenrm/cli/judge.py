"""judge: one pair or a file of pairs, by a judge service, a checkpoint or an OpenAI-compatible endpoint."""

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from reasongenrm.cli.console import out, print_json, print_note
from reasongenrm.cli.evaluate import (
    EndpointOption,
    MarkupOption,
    ModelOption,
    NameOption,
    StyleOption,
    engine_settings,
    open_judge,
)
from reasongenrm.cli.settings import DEFAULT_STORE, ConfigOption, JsonOption, SetOption, StoreOption, make_config
from reasongenrm.errors import ConfigError


def judge(
    question: Annotated[str | None, typer.Option(help="The question.")] = None,
    answer_a: Annotated[str | None, typer.Option(help="The first answer.")] = None,
    answer_b: Annotated[str | None, typer.Option(help="The second answer.")] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="A judge service (judge-server), such as http://127.0.0.1:8080; its key: JUDGE_API_KEY.",
        ),
    ] = None,
    model: ModelOption = None,
    endpoint: EndpointOption = None,
    served_model: NameOption = None,
    style: StyleOption = None,
    keep_markup: MarkupOption = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="PAIRS",
            help="JSON Lines with question, answer_a, answer_b and, if wanted, id; needs --url.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="JUDGED", help="Gets a line for each line of --file.")
    ] = None,
    rubric: Annotated[str | None, typer.Option(help="What to judge by, in words; needs --url.")] = None,
    votes: Annotated[int | None, typer.Option(min=1, help="Reasons per order; needs --url. Default: 1.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Pairs of --file under way at once. Default: 16.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    config: ConfigOption = None,
    assignments: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Judge one pair, or a file of pairs, in both orders: reasons, verdicts, and whether they agree.

    A file's pairs that are judged are kept as they come: killed and started again, the command goes on where it stopped.

    [bold]Examples[/bold]

      reasongenrm judge --url http://127.0.0.1:8080 --question "Name a prime." --answer-a "7" --answer-b "9"

      reasongenrm judge --url http://127.0.0.1:8080 --file pairs.jsonl -o judged.jsonl

      reasongenrm judge --endpoint http://127.0.0.1:8000/v1 --question "Name a prime." --answer-a "7" --answer-b "9"
    """
    local = {
        "--model": model,
        "--endpoint": endpoint,
        "--served-model": served_model,
        "--style": style,
        "--keep-markup": keep_markup,
        "--config": config,
        "--set": assignments,
    }
    service = {"--file": file, "--output": output, "--rubric": rubric, "--votes": votes, "--concurrency": concurrency}
    pair = {"--question": question, "--answer-a": answer_a, "--answer-b": answer_b}
    if url is None:
        _refuse(service, "needs a judge service, --url URL")
        if model is None and endpoint is None:
            raise ConfigError(
                "give the judge as one of --model URI and --endpoint URL, or a judge service as --url URL."
            )
        _judge_alone(pair, model, endpoint, served_model, style, keep_markup, store, config, assignments, as_json)
        return
    _refuse(local, "has no effect with --url: a judge service has settings of its own")
    options = {name: value for name, value in (("rubric", rubric), ("votes", votes)) if value is not None}
    if file is None:
        _refuse({"--output": output, "--concurrency": concurrency}, "needs --file")
        _judge_by_service(url, pair, options, as_json)
    else:
        _refuse(pair, "has no effect with --file")
        _judge_file(url, file, output, options, concurrency, as_json)


def _refuse(options: Mapping[str, Any], why: str) -> None:
    """Options that were given where they say nothing."""
    given = [name for name, value in options.items() if value]
    if given:
        raise ConfigError(f"judge: {given[0]} {why}. Leave it out, or change the other.")


def _texts(pair: Mapping[str, str | None]) -> list[str]:
    missing = [name for name, text in pair.items() if text is None]
    if missing:
        raise ConfigError(f"judge: {missing[0]} is missing; expected --question, --answer-a and --answer-b, or --file.")
    return [text for text in pair.values() if text is not None]


def _judge_alone(
    pair: Mapping[str, str | None],
    model: str | None,
    endpoint: str | None,
    served_model: str | None,
    style: Any,
    keep_markup: bool,
    store: str,
    config: Path | None,
    assignments: list[str],
    as_json: bool,
) -> None:
    from reasongenrm.cli.results import pair_panel
    from reasongenrm.evaluation.judge_pair import judge_pair

    question, answer_a, answer_b = _texts(pair)
    settings = make_config(config, engine_settings(config, assignments)).evaluate
    with (
        contextlib.redirect_stdout(sys.stderr),
        open_judge(model, endpoint, served_model, style, keep_markup, store, settings) as opened,
    ):
        judgment = judge_pair(opened.engine, question, answer_a, answer_b, settings, opened.style)
        address = opened.address
    if as_json:
        print_json(judgment.model_dump(mode="json"))
    else:
        out.print(pair_panel(question, answer_a, answer_b, judgment, address))


def _judge_by_service(url: str, pair: Mapping[str, str | None], options: Mapping[str, Any], as_json: bool) -> None:
    from reasongenrm import Judge
    from reasongenrm.cli.results import judgment_panel

    question, answer_a, answer_b = _texts(pair)
    with Judge(url) as judge:
        found = judge.compare(question, answer_a, answer_b, **options)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        out.print(judgment_panel(question, answer_a, answer_b, found, f"{found.model} at {url}"))


def _judge_file(
    url: str, file: Path, output: Path | None, options: Mapping[str, Any], concurrency: int | None, as_json: bool
) -> None:
    from reasongenrm import Judge
    from reasongenrm.judge.client.client import DEFAULT_CONCURRENCY
    from reasongenrm.judge.client.pair_files import judge_file

    if output is None:
        raise ConfigError("judge: --file needs --output, the file that gets the judgments.")
    with contextlib.redirect_stdout(sys.stderr), Judge(url) as judge:
        summary = judge_file(judge, file, output, options, concurrency or DEFAULT_CONCURRENCY)
    if as_json:
        print_json(summary.model_dump(mode="json"))
    else:
        out.print(summary.line(), markup=False)
    print_note(f"judgments: {output.resolve()}")
