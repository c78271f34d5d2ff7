"""run: the whole pipeline on this machine, then the winner behind an endpoint, judging a pair."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from reasongenrm.cli.console import err, out, print_json, print_note, print_table
from reasongenrm.cli.settings import (
    DEFAULT_STORE,
    BenchmarkOption,
    ConfigOption,
    JsonOption,
    ModelOption,
    PreferencesOption,
    SetOption,
    StoreOption,
    absolute,
    make_config,
)

if TYPE_CHECKING:
    from reasongenrm.config import EvaluateConfig, RunConfig
    from reasongenrm.evaluation.metrics import Evaluation
    from reasongenrm.store.run_records import RunInputs, RunRecord

DEMO_TEACHER = "demo"
REPORT_FILES = ("report.html", "report.json", "decision.md", "decision.json")


def run(
    preferences: PreferencesOption = None,
    benchmark: BenchmarkOption = None,
    model: ModelOption = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="URI|URL",
            help="Who writes the reasons: a model, or an OpenAI-compatible endpoint (http://.../v1; key: OPENAI_API_KEY). "
            "Default: the base model itself. 'demo': the demo's own program, which knows the demo's data only.",
        ),
    ] = None,
    config: ConfigOption = None,
    assignments: SetOption = [],  # noqa: B006
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take at most this number of preference pairs, and of benchmark rows.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    try_it: Annotated[
        bool, typer.Option("--try/--no-try", help="At the end, serve the winner and judge one pair.")
    ] = True,
    serve: Annotated[bool, typer.Option("--serve", help="Keep the endpoint up until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(help="Port of the endpoint on 127.0.0.1; 0: any free one.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline on this machine.

    Distils reasons, trains GenRM, ReasonGenRM-sft and ReasonGenRM-dpo, has all of them and the base model judge the
    benchmark, and decides which to serve. What an earlier run finished is reused; what was killed goes on.

    [bold]Examples[/bold]

      reasongenrm run --preferences pairs.jsonl --benchmark rows.jsonl --model ./Qwen2.5-0.5B-Instruct --config small.yaml

      reasongenrm run ... --teacher http://127.0.0.1:8000/v1 --set distill.num_samples=4 --limit 48 --serve
    """
    from reasongenrm.cli.results import evaluations_table
    from reasongenrm.cli.run_view import ConsoleRunView, clock
    from reasongenrm.processes.doctor import require
    from reasongenrm.runs.local import local_folder, open_store, run_local
    from reasongenrm.store.run_records import RunInputs, choose_inputs

    require("pipeline", "train", "local", "serve")
    settings = make_config(config, assignments, limit)
    folder, started = local_folder(store), time.monotonic()
    view = ConsoleRunView(err)
    given = choose_inputs(settings.inputs, preferences, benchmark, model, teacher)
    with open_store(store) as opened, _teacher(given.teacher_uri) as teacher_uri:
        uris = given.model_copy(update={"teacher_uri": teacher_uri}).model_dump()
        inputs = RunInputs(**{name: absolute(uri) for name, uri in uris.items()})
        _check_inputs(inputs, settings)
        with view.live():
            record = run_local(inputs, settings, opened, folder, view)
        num_reused = sum(task.reused for task in record.tasks)
        took = clock(time.monotonic() - started)
        print_note(f"run {record.run_id} finished in {took}; {num_reused} of {len(record.tasks)} tasks reused")
        results = _Results(record, folder / "report")
        results.write()
        if as_json:
            print_json(record.model_dump(mode="json"))
        else:
            print_table(evaluations_table(results.evaluations))
            results.print_decision()
        if try_it or serve:
            results.fetch_winner(folder / "winner")
    if try_it or serve:
        _try_winner(results, folder / "winner", settings.evaluate, port, keep_up=serve)


def _check_inputs(inputs: "RunInputs", settings: "RunConfig") -> None:
    """Look at what is at hand before anything starts: a bad row, or no cluster to deploy to, should not show after hours.

    The stages look again, and at what is on a hub too.

    Raises:
        InputError: a row of the preferences or the benchmark is not what was expected.
        ConfigError: `deploy.apply` is asked for, and no cluster with KServe answers.
    """
    from reasongenrm.runs.submit import check_rows
    from reasongenrm.store.artifacts import is_hub_name

    if settings.deploy.apply:
        _check_cluster(settings)

    data = {"preferences_uri": inputs.preferences_uri, "benchmark_uri": inputs.benchmark_uri}
    check_rows({name: uri for name, uri in data.items() if not is_hub_name(uri)}, settings)


def _check_cluster(settings: "RunConfig") -> None:
    from reasongenrm.errors import ClusterError, ConfigError
    from reasongenrm.kubernetes.cluster import Cluster
    from reasongenrm.kubernetes.kinds import INFERENCE_SERVICE

    deploy = settings.deploy
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
    if teacher != DEMO_TEACHER:
        yield teacher
        return
    from reasongenrm.demo.formats import teacher_server

    with teacher_server() as address:
        yield address


class _Results:
    """What a finished run made, as files below one folder and as lines for people."""

    def __init__(self, record: "RunRecord", folder: Path) -> None:
        decision = record.decision
        assert decision, "select_winner is part of every run"
        self.record, self.folder, self.decision = record, folder, decision
        self.winner = str(decision.metrics["winner"])
        self.evaluations: list[Evaluation] = []

    def write(self) -> None:
        """Copy report, decision and InferenceService out of the store; those of an earlier run go."""
        from reasongenrm.data.benchmarks import BenchmarkRow
        from reasongenrm.deploy.manifest import FILE_NAME
        from reasongenrm.evaluation.metrics import Evaluation
        from reasongenrm.records import parse_records
        from reasongenrm.store.artifacts import read_file

        self.folder.mkdir(parents=True, exist_ok=True)
        for name in REPORT_FILES:
            (self.folder / name).write_bytes(read_file(self.decision, name))
        service = self.record.output("deploy_kserve")
        (self.folder / FILE_NAME).unlink(missing_ok=True)
        self.service_path = self.folder / FILE_NAME if service else None
        if service:
            (self.folder / FILE_NAME).write_bytes(read_file(service, FILE_NAME))
        refs = self.record.evaluations()
        order = [variant for variant in ("base", "genrm", "sft", "dpo") if variant in refs]
        rows = read_file(refs[self.winner], "rows.jsonl")
        self.first_row = parse_records(rows, BenchmarkRow, "rows.jsonl")[0]
        self.evaluations = [
            Evaluation.model_validate_json(read_file(refs[variant], "evaluation.json")) for variant in order
        ]

    def print_decision(self) -> None:
        """The gate's decision and where the files are."""
        passed = bool(self.decision.metrics["passed"])
        out.print(Text(str(self.decision.metrics["summary"]), style="bold green" if passed else "bold yellow"))
        out.print(f"report: {self.folder / 'report.html'}", markup=False, soft_wrap=True)
        service = (
            f"InferenceService: {self.service_path}" if self.service_path else "InferenceService: none, see decision.md"
        )
        out.print(service, markup=False, soft_wrap=True)

    def fetch_winner(self, folder: Path) -> None:
        """Copy the winner's checkpoint to a local folder, over that of an earlier run, with its calibration."""
        from reasongenrm.evaluation.calibration import save_calibration
        from reasongenrm.evaluation.metrics import Evaluation
        from reasongenrm.store.artifacts import download, open_artifact, read_file

        ref = self.record.evaluations()[self.winner]
        evaluation = Evaluation.model_validate_json(read_file(ref, "evaluation.json"))
        model_uri = open_artifact(ref).input_uris["model"]
        shutil.rmtree(folder, ignore_errors=True)
        download(model_uri, folder)
        calibration = evaluation.calibration
        if calibration is not None:
            save_calibration(calibration, folder)  # the service reads it there; the store's checkpoint never changes


def _try_winner(results: _Results, model_folder: Path, config: "EvaluateConfig", port: int, keep_up: bool) -> None:
    """Serve the winner, judge one benchmark pair through HTTP, print it; with `keep_up` serve on until Ctrl-C."""
    from reasongenrm.cli.results import judgment_panel
    from reasongenrm.cli.serve import served
    from reasongenrm.data.prompts import question_text
    from reasongenrm.evaluation.calibration import load_calibration
    from reasongenrm.evaluation.evaluate import VARIANT_STYLES
    from reasongenrm.evaluation.metrics import variant_name
    from reasongenrm.judge.api import PairwiseRequest
    from reasongenrm.judge.service import JudgeSettings, judge_once

    row = results.first_row
    asked = {"question": question_text(row.question), "answer_a": row.chosen, "answer_b": row.rejected}
    with served(model_folder, port) as endpoint:
        settings = JudgeSettings(
            predictor_url=endpoint.address,
            style=VARIANT_STYLES[results.winner],
            max_tokens=config.max_tokens,
            timeout_seconds=config.engine.timeout_seconds,
            calibration=load_calibration(model_folder),
        )
        judgment = judge_once(settings, PairwiseRequest(**asked))
        title = f"{variant_name(results.winner)} judges {row.row_id} at {endpoint.address}"
        out.print(judgment_panel(asked, judgment, title))
        if keep_up:
            print_note(f"serving {model_folder} at {endpoint.address} until Ctrl-C; judge a pair of your own:")
            print_note(
                f"  reasongenrm judge --endpoint {endpoint.address} --question ... --answer-a ... --answer-b ..."
            )
            endpoint.wait_for_stop()
