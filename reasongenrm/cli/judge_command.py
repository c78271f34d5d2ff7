"""judge: one pair or a file of pairs, by a judge service or by the judge itself in front of an endpoint."""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option

from reasongenrm.cli.console import out, print_json, print_line, print_note
from reasongenrm.cli.evaluate_command import StyleOption
from reasongenrm.cli.settings import EndpointOption, JsonOption, ServedModelOption
from reasongenrm.errors import ConfigError, validated

DEFAULT_JUDGE = "http://127.0.0.1:8080"  # where `make serve` and `reasongenrm serve --judge` put it
TIMEOUT_SECONDS = 600.0  # of one generation of --endpoint: a small server on a laptop writes some ten tokens per second


def judge(
    question: Annotated[str | None, Option(help="The question.")] = None,
    answer_a: Annotated[str | None, Option(help="The first answer.")] = None,
    answer_b: Annotated[str | None, Option(help="The second answer.")] = None,
    url: Annotated[
        str | None,
        Option(metavar="URL", help=f"A judge service; else {DEFAULT_JUDGE}, as `make serve`. Key: JUDGE_API_KEY."),
    ] = None,
    endpoint: EndpointOption = None,
    served_model: ServedModelOption = None,
    style: StyleOption = None,
    file: Annotated[
        Path | None,
        Option(
            metavar="PAIRS",
            help="question, answer_a, answer_b, perhaps id; or preferences (docs/data.md); needs --url.",
        ),
    ] = None,
    output: Annotated[
        Path | None, Option("--output", "-o", metavar="JUDGED", help="A line per line of --file.")
    ] = None,
    rubric: Annotated[str | None, Option(help="What to judge by, in words.")] = None,
    votes: Annotated[int | None, Option(min=1, max=16, help="Reasons per order. Default: 1.")] = None,
    max_tokens: Annotated[int | None, Option(min=1, help="Limit of one reason with its verdict.")] = None,
    when_too_long: Annotated[
        Literal["refuse", "truncate"], Option(help="Refuse what does not fit, or leave out its middle.")
    ] = "refuse",
    concurrency: Annotated[int, Option(min=1, help="Pairs of --file under way at once.")] = 16,
    as_json: JsonOption = False,
) -> None:
    """Judge one pair, or a file of pairs, in both orders: reasons, verdicts, probability, and whether the orders agree.

    With --endpoint this command asks the model as a judge service would, but without calibration. A file's judgments
    are kept as they come: killed and started again, the command goes on where it stopped.

    [bold]Examples[/bold]

      reasongenrm judge --question "Name three tools. Answer with JSON." --answer-a "Saws." --answer-b '["saws"]'

      reasongenrm judge --url http://judge.example:8080 --file pairs.jsonl -o judged.jsonl

      reasongenrm judge --endpoint http://127.0.0.1:8000/v1 --question "Name a prime." --answer-a "7" --answer-b "9"
    """
    from reasongenrm import Judge
    from reasongenrm.cli.views import judgment_panel
    from reasongenrm.http_client import parse_address
    from reasongenrm.judge.api import PairwiseRequest

    given = {"rubric": rubric, "votes": votes, "max_tokens": max_tokens, "when_too_long": when_too_long}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    pair = {"question": question, "answer_a": answer_a, "answer_b": answer_b}
    if url is not None and endpoint is not None:
        raise ConfigError("judge: give the judge as one of --url URL (a judge service) and --endpoint URL.")
    if endpoint is None:
        url = url or DEFAULT_JUDGE
    if url is not None:
        _refuse({"--served-model": served_model, "--style": style}, "has no effect with --url; the service sets it")
    if file is not None:
        _refuse(pair, "has no effect with --file")
        if url is None or output is None:
            raise ConfigError("judge: --file needs --url, a judge service, and --output, the file for the judgments.")
        from reasongenrm.judge.client.pair_files import judge_file

        with contextlib.redirect_stdout(sys.stderr), Judge(url) as service:
            summary = judge_file(service, file, output, options, concurrency)
        if as_json:
            print_json(summary.model_dump(mode="json"))
        else:
            print_line(summary.line())
        print_note(f"judgments: {output.resolve()}")
        return
    _refuse({"--output": output}, "needs --file")
    missing = [name for name, text in pair.items() if text is None]
    if missing:
        option = "--" + missing[0].replace("_", "-")
        raise ConfigError(f"judge: {option} is missing; expected --question, --answer-a and --answer-b, or --file.")
    texts = {name: text or "" for name, text in pair.items()}
    _check_texts(texts)
    with validated("judge", "texts and options as in --help. Correct it.", ConfigError):
        request = PairwiseRequest.model_validate({**texts, **options})
    if url is not None:
        with Judge(url) as service:
            found = service.ask(request)
    else:
        from reasongenrm.judge.service import JudgeSettings, judge_once

        settings = JudgeSettings(
            predictor_url=endpoint or "", model=served_model, style=style or "reason", timeout_seconds=TIMEOUT_SECONDS
        )
        found = judge_once(settings, request, os.environ.get("OPENAI_API_KEY"))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    out.print(judgment_panel(texts, found, f"{found.model} at {parse_address(url or endpoint or '')}"))


def _check_texts(texts: Mapping[str, str]) -> None:
    """Refuse a pair that asks nothing; say what a judge cannot tell apart or may trip over."""
    empty = [f"--{name.replace('_', '-')}" for name, text in texts.items() if not text.strip()]
    if "--question" in empty or len(empty) == 2:
        what = "--question is" if "--question" in empty else "--answer-a and --answer-b are"
        raise ConfigError(f"judge: {what} empty; expected a question and at least one answer with text. Write it.")
    if empty:
        print_note(f"{empty[0]} is empty: the other answer is compared with no answer at all")
    if texts["answer_a"] == texts["answer_b"]:
        print_note("both answers are the same text: a tie, without asking the model")


def _refuse(options: Mapping[str, Any], why: str) -> None:
    """Options that were given where they have no effect."""
    given = ["--" + name.lstrip("-").replace("_", "-") for name, value in options.items() if value]
    if given:
        raise ConfigError(f"judge: {given[0]} {why}. Leave it out, or change the other.")
