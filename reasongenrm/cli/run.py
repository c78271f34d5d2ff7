"""run: the whole pipeline on this machine, then the winner behind an endpoint, judging a pair."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text
from typer import Option

from reasongenrm.cli.console import err, out, print_json, print_line, print_note, print_table
from reasongenrm.cli.settings import (
    DEFAULT_STORE,
    BenchmarkOption,
    ColumnsOption,
    ConfigOption,
    DryRunOption,
    JsonOption,
    LimitOption,
    ModelOption,
    PreferencesOption,
    SetOption,
    StoreOption,
    TeacherOption,
    absolute,
    columns_of,
    make_config,
)
from reasongenrm.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from reasongenrm.config import EvaluateConfig, RunConfig
    from reasongenrm.runs.finished import FinishedRun
    from reasongenrm.store.run_records import RunInputs


def run(
    preferences: PreferencesOption = None,
    benchmark: BenchmarkOption = None,
    model: ModelOption = None,
    teacher: TeacherOption = None,
    config: ConfigOption = None,
    assignments: SetOption = [],
    columns: ColumnsOption = None,
    limit: LimitOption = None,
    store: StoreOption = DEFAULT_STORE,
    try_it: Annotated[bool, Option("--try/--no-try", help="At the end, serve the winner and judge one pair.")] = True,
    serve: Annotated[bool, Option("--serve", help="Keep the endpoint up until Ctrl-C.")] = False,
    port: Annotated[int, Option(help="Port of the endpoint on 127.0.0.1; 0: any free one.")] = 0,
    as_json: JsonOption = False,
    only_check: DryRunOption = False,
) -> None:
    """Run the whole pipeline on this machine.

    Distils reasons, trains GenRM, ReasonGenRM-sft and ReasonGenRM-dpo, has all of them and the base model judge the
    benchmark, and decides which to serve. What an earlier run finished is reused; what was killed goes on.

    [bold]Examples[/bold]

      reasongenrm run --preferences pairs.jsonl --benchmark rows.jsonl --model ./Qwen2.5-0.5B --config small.yaml

      reasongenrm run ... --teacher http://127.0.0.1:8000/v1 --set distill.num_samples=4 --limit 48 --serve
    """
    from reasongenrm.cli.views import ConsoleRunView, clock, evaluations_table
    from reasongenrm.processes.extras import require
    from reasongenrm.runs.finished import FinishedRun
    from reasongenrm.runs.local import local_folder, open_store, run_local
    from reasongenrm.store.run_records import RunInputs, choose_inputs

    require("pipeline", "train", "local", "serve")
    settings = make_config(config, [*assignments, *columns_of(columns)], limit)
    folder, started = local_folder(store), time.monotonic()
    view = ConsoleRunView(err)
    given = choose_inputs(settings.inputs, preferences, benchmark, model, teacher)
    if only_check:
        from reasongenrm.cli.dry_run import dry_run

        _check_deployment(settings)
        checked = RunInputs(**{name: absolute(uri) for name, uri in given.model_dump().items()})
        dry_run(checked, settings, as_json, on_cluster=False)
        return
    with open_store(store) as opened, _teacher(given.teacher_uri) as teacher_uri:
        uris = given.model_copy(update={"teacher_uri": teacher_uri}).model_dump()
        inputs = RunInputs(**{name: absolute(uri) for name, uri in uris.items()})
        _check_inputs(inputs, settings)
        with view.live():
            record = run_local(inputs, settings, opened, folder, view)
        num_reused = sum(task.reused for task in record.tasks)
        took = clock(time.monotonic() - started)
        print_note(f"run {record.run_id} finished in {took}; {num_reused} of {len(record.tasks)} tasks reused")
        finished = FinishedRun(record, folder / "report")
        if as_json:
            print_json(record.model_dump(mode="json"))
        else:
            print_table(evaluations_table(finished.evaluations))
            style = "bold green" if finished.decision.metrics["passed"] else "bold yellow"
            out.print(Text(str(finished.decision.metrics["summary"]), style=style))
            print_line(f"report: {finished.folder / 'report.html'}")
            print_line(f"InferenceService: {finished.service_path or 'none, see decision.md'}")
        if try_it or serve:
            finished.fetch_winner(folder / "winner")
    if try_it or serve:
        _try_winner(finished, folder / "winner", settings.evaluate, port, keep_up=serve)


def _check_inputs(inputs: "RunInputs", settings: "RunConfig") -> None:
    """Look at the data and at the cluster before anything starts: a bad row should not show after hours.

    Raises:
        InputError: a row of the preferences or the benchmark is not what was expected.
        ConfigError: `deploy.apply` is asked for, and no cluster with KServe answers.
    """
    from reasongenrm.runs.input_checks import check_data

    _check_deployment(settings)
    for look in check_data(inputs.preferences_uri, inputs.benchmark_uri, settings):
        if look is not None:
            print_note(look.said)


def _check_deployment(settings: "RunConfig") -> None:
    deploy = settings.deploy
    if not deploy.apply:
        return
    from reasongenrm.kubernetes.cluster import Cluster
    from reasongenrm.kubernetes.kinds import INFERENCE_SERVICE

    try:
        Cluster.connect().get(INFERENCE_SERVICE, deploy.namespace, deploy.name)
    except ClusterError as error:
        raise ConfigError(
            f"deploy.apply is true, so this run would end with a deployment, but: {error} "
            "Or only render the InferenceService: --set deploy.apply=false."
        ) from error


@contextmanager
def _teacher(teacher: str) -> Iterator[str]:
    """The teacher's address; the demo's teacher is served as long as the context lasts."""
    from reasongenrm.runs.input_checks import DEMO_TEACHER

    if teacher != DEMO_TEACHER:
        yield teacher
        return
    from reasongenrm.demo.formats import teacher_server

    with teacher_server() as address:
        yield address


def _try_winner(
    finished: "FinishedRun", model_folder: Path, config: "EvaluateConfig", port: int, keep_up: bool
) -> None:
    """Serve the winner, judge one benchmark pair through HTTP, print it; with `keep_up` serve on until Ctrl-C."""
    from reasongenrm.cli.views import judgment_panel
    from reasongenrm.data.prompts import question_text
    from reasongenrm.evaluation.calibration import load_calibration
    from reasongenrm.judge.api import PairwiseRequest
    from reasongenrm.judge.service import JudgeSettings, judge_once
    from reasongenrm.serving.started import served, wait_for_stop
    from reasongenrm.variants import VARIANTS, variant_label

    row = finished.first_row
    asked = {"question": question_text(row.question), "answer_a": row.chosen, "answer_b": row.rejected}
    with served(model_folder, port) as (address, server):
        settings = JudgeSettings(
            predictor_url=address,
            style=VARIANTS[finished.winner].style,
            max_tokens=config.max_tokens,
            timeout_seconds=config.engine.timeout_seconds,
            constrained=False,  # as in the evaluation: what is seen here is what the report counts
            calibration=load_calibration(model_folder),
        )
        judgment = judge_once(settings, PairwiseRequest(**asked))
        title = f"{variant_label(finished.winner)} judges {row.row_id} at {address}"
        out.print(judgment_panel(asked, judgment, title))
        if keep_up:
            print_note(f"serving {model_folder} at {address} until Ctrl-C; judge a pair of your own:")
            print_note(f"  reasongenrm judge --endpoint {address} --question ... --answer-a ... --answer-b ...")
            wait_for_stop(server)
