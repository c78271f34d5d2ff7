"""submit, logs, cancel, and the runs of a cluster: Kubeflow Pipelines from the command line."""

import os
import signal
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from reasongenrm.cli.console import err, out, plain_table, print_json, print_line, print_note, print_table
from reasongenrm.cli.settings import (
    BenchmarkOption,
    ColumnsOption,
    ConfigOption,
    DryRunOption,
    HostOption,
    JsonOption,
    LimitOption,
    ModelOption,
    NamespaceOption,
    PreferencesOption,
    RegistryOption,
    SetOption,
    SharedStore,
    TeacherOption,
    columns_of,
    images_of,
    make_config,
)
from reasongenrm.errors import ClusterError, ConfigError, InputError, ReasonGenRMError

if TYPE_CHECKING:
    from reasongenrm.runs.kfp import PipelineServer
    from reasongenrm.runs.kfp_runs import ClusterRun, ClusterTask

EXPERIMENT = "reasongenrm"
_NUM_SHOWN = 20
_STYLES = {"succeeded": "green", "failed": "red", "running": "cyan", "canceled": "yellow", "canceling": "yellow"}

RunArgument = Annotated[str, Argument(metavar="RUN", help="Name or id, as `reasongenrm runs --host` lists it.")]


class RunFailedError(ReasonGenRMError):
    """A cluster run ended, and not well."""

    exit_code = 1


def submit(
    store: SharedStore,
    preferences: PreferencesOption = None,
    benchmark: BenchmarkOption = None,
    model: ModelOption = None,
    teacher: TeacherOption = None,
    config: ConfigOption = None,
    assignments: SetOption = [],
    columns: ColumnsOption = None,
    limit: LimitOption = None,
    registry: RegistryOption = None,
    host: HostOption = None,
    namespace: NamespaceOption = None,
    name: Annotated[str | None, Option(help="The run's name; default: one with the time in it.")] = None,
    upload: Annotated[bool, Option("--upload", help="Put local inputs into the store first.")] = False,
    wait: Annotated[bool, Option("--wait", help="Follow the run to its end; the exit code says how it went.")] = False,
    as_job: Annotated[bool, Option("--as-job", help="Only print a Job that submits from inside the cluster.")] = False,
    service_account: Annotated[str, Option(help="Of the Job; default-editor in profiles.")] = "pipeline-runner",
    as_json: JsonOption = False,
    only_check: DryRunOption = False,
) -> None:
    """Start a run on a cluster with Kubeflow Pipelines.

    Takes what `reasongenrm run` takes, but for local paths, which pods cannot see: --upload puts them into the store. A
    config file may name the run's inputs, and its resources (GPUs, nodes, secrets).

    [bold]Examples[/bold]

      reasongenrm submit --config pipelines/configs/reference/qwen2.5-7b.yaml --store s3://judges/runs --host http://kfp:8080

      reasongenrm submit --store s3://judges/1 --preferences p.jsonl --benchmark rows.jsonl --model org/name --upload

      reasongenrm submit --config run.yaml --store s3://judges/runs --as-job -n kubeflow > job.yaml
    """
    from reasongenrm.components.images import image as task_image
    from reasongenrm.pipelines.compile import PIPELINE_NAME, compile_pipeline
    from reasongenrm.processes.extras import require
    from reasongenrm.runs.kfp import RUN_NAMESPACE, UI_ENV, PipelineServer
    from reasongenrm.runs.submit import arguments_of, check_accelerators, check_reachable, reachable_inputs
    from reasongenrm.runs.submit_job import as_yaml, submit_job
    from reasongenrm.store.run_records import choose_inputs, new_run_id

    require("pipeline")
    if as_job and (wait or (as_json and not only_check)):
        raise ConfigError("submit: --as-job starts nothing, so there is nothing for --wait or --json. Leave them out.")
    settings = make_config(config, [*images_of(registry), *assignments, *columns_of(columns)], limit)
    given = choose_inputs(settings.inputs, preferences, benchmark, model, teacher)
    if only_check:
        from reasongenrm.cli.dry_run import dry_run

        check_reachable(given, store, upload)
        check_accelerators(settings, given)
        dry_run(given, settings, as_json, on_cluster=True)
        return
    inputs = reachable_inputs(given, settings, store, upload)
    arguments = arguments_of(settings, inputs, store)
    name = name or f"{EXPERIMENT}-{new_run_id()}"
    if as_job:
        job = submit_job(
            settings,
            inputs,
            store,
            name=name,
            experiment=EXPERIMENT,
            namespace=namespace or RUN_NAMESPACE,
            host=host or f"http://ml-pipeline.{RUN_NAMESPACE}:8888",
            ui=os.environ.get(UI_ENV),
            image=settings.resources.cpu_image or task_image("cpu"),
            service_account=service_account,
        )
        out.print(as_yaml(job), markup=False, soft_wrap=True, end="")
        return
    compiled = compile_pipeline(settings.resources)
    server = PipelineServer.connect(host, namespace)
    version = server.ensure_version(PIPELINE_NAME, compiled.version_name, compiled.ir)
    run_id = server.start(version, EXPERIMENT, name, arguments)
    if as_json:
        print_json({"run_id": run_id, "name": name, "version": version.name, "link": server.link(run_id)})
    else:
        print_line(f"run {name} has started: {server.page(run_id)}")
        print_note(f"pipeline version {version.name}, run id {run_id}")
    if wait:
        _follow(server, run_id)


def logs(
    run: RunArgument,
    task: Annotated[str | None, Argument(metavar="[TASK]", help="By name; default: the failed or running one.")] = None,
    follow: Annotated[bool, Option("--follow", "-f", help="Go on until the task ends.")] = False,
    host: HostOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Print the log of a cluster run's task.

    KFP has the logs of its pods, and archives them. --follow reads them from Kubernetes as they come, in all tries of
    the task (needs a kubeconfig with the right to get pods and their logs where the run is).

    [bold]Examples[/bold]

      reasongenrm logs reasongenrm-20261124-101500-3f2a --host http://127.0.0.1:8080

      reasongenrm logs reasongenrm-20261124-101500-3f2a "train_sft (sft)" --follow
    """
    from reasongenrm.kubernetes.cluster import Cluster
    from reasongenrm.runs.kfp import PipelineServer
    from reasongenrm.runs.logs import follow_task, task_log

    def connect(of_run: str) -> Cluster:
        cluster = Cluster.connect()
        cluster.namespace = namespace or of_run
        return cluster

    server = PipelineServer.connect(host, namespace)
    found = server.run(run)
    chosen = _choose_task(found, task)
    for line in follow_task(server, connect, found, chosen) if follow else task_log(server, found, chosen):
        print_line(line)


def _choose_task(run: "ClusterRun", wanted: str | None) -> "ClusterTask":
    """The task by its name or its key; without one, the first that failed, else one that runs, else the newest.

    Raises:
        InputError: there is no such task, or none has started.
        ClusterError: its tasks are not known.
    """
    if run.notice:
        raise ClusterError(f"run {run.name}: {run.notice}")
    if wanted is not None:
        for task in run.tasks:
            if wanted in (task.name, task.key):
                return task
        names = ", ".join(f'"{task.name}"' for task in run.tasks)
        raise InputError(f"run {run.name}: no task '{wanted}'. Give one of {names}.")
    started = [task for task in run.tasks if task.started_at]
    if not started:
        raise InputError(f"run {run.name}: no task has started yet; it is {run.state}. Look again in a while.")
    of_state = {task.state: task for task in reversed(started)}
    return of_state.get("failed") or of_state.get("running") or started[-1]


def cancel(run: RunArgument, host: HostOption = None, namespace: NamespaceOption = None) -> None:
    """Stop a cluster run.

    Its pods get SIGTERM; a training task deletes its TrainJob, and Kubernetes deletes it with the task's pod in any
    case. What is finished stays in the store, and what was begun goes on from its last part or checkpoint when you
    submit again.

    [bold]Examples[/bold]

      reasongenrm cancel reasongenrm-20261124-101500-3f2a --host http://127.0.0.1:8080
    """
    from reasongenrm.runs.kfp import PipelineServer

    server = PipelineServer.connect(host, namespace)
    found = server.run(run)
    if found.has_ended:
        print_note(f"run {found.name} has ended already: {found.state}")
        return
    if found.state == "canceling":  # KFP refuses to cancel twice
        print_note(f"run {found.name} is being cancelled already")
        return
    server.cancel(found.run_id)
    running = ", ".join(task.name for task in found.tasks if task.state == "running") or "no task"
    print_note(f"run {found.name} is being cancelled ({running} was running); a TrainJob goes with its task's pod")
    print_note("what is finished is kept in the store: submit with the same inputs and config to go on")


def show_runs(host: str | None, namespace: str | None, run: str | None, as_json: bool) -> None:
    """The runs of a cluster, or one with its tasks; `reasongenrm runs --host` calls it."""
    from pydantic_core import to_jsonable_python

    from reasongenrm.pipelines.compile import PIPELINE_NAME
    from reasongenrm.runs.kfp import PipelineServer

    server = PipelineServer.connect(host, namespace)
    found = [server.run(run)] if run is not None else server.runs(PIPELINE_NAME, _NUM_SHOWN)
    if as_json:
        print_json([{**to_jsonable_python(one), "link": server.link(one.run_id)} for one in found])
    elif run is not None:
        shown = found[0]
        told = f"  {_took(shown)}  {shown.error or ''}"
        out.print(Text.assemble((shown.name, "bold"), "  ", _state(shown.state), told))
        print_table(_tasks_table(shown))
        if shown.notice:
            print_note(shown.notice)
        print_line(server.page(shown.run_id))
    elif not found:
        print_note(f"no runs at {server.host} yet; `reasongenrm submit` starts one")
    else:
        columns = ("run", "state", "started", "took", "preferences", "benchmark", "model")
        print_table(plain_table(columns, map(_run_cells, found)))


def _run_cells(run: "ClusterRun") -> "tuple[str | Text, ...]":
    uris = (str(run.arguments.get(f"{name}_uri", "")) for name in ("preferences", "benchmark", "model"))
    started = f"{run.started_at:%Y-%m-%d %H:%M}" if run.started_at else ""
    return run.name, _state(run.state), started, _took(run), *(Path(uri).name for uri in uris)


def _tasks_table(run: "ClusterRun") -> Table:
    rows = ((task.name, _state(task.state), _took(task), task.message) for task in run.tasks)
    return plain_table(("task", "state", "took", "because"), rows)


def _state(state: str) -> Text:
    return Text(state, style=_STYLES.get(state, ""))


def _took(what: "ClusterRun | ClusterTask") -> str:
    from reasongenrm.cli.views import clock

    if what.started_at is None:
        return ""
    return clock(((what.ended_at or datetime.now(UTC)) - what.started_at).total_seconds())


def _follow(server: "PipelineServer", run_id: str) -> None:
    """Show the run until it ends: a live table on a terminal, a line for each change elsewhere.

    Raises:
        RunFailedError: it failed; says which task, and what it said.
    """
    states: dict[str, str] = {}
    with Live(console=err) if err.is_terminal else nullcontext() as live:
        for run in server.follow(run_id):
            if live:
                live.update(_tasks_table(run))
                continue
            for task in run.tasks:
                if states.get(task.key, "pending") != task.state:
                    states[task.key] = task.state
                    print_note(f"{task.name}: {task.state} {_took(task)} {task.message}".rstrip())
    if run.state == "canceled":
        print_note(f"run {run.name} was cancelled; what is finished is kept, submit again to go on")
        raise typer.Exit(128 + signal.SIGINT)
    if run.state != "succeeded":
        raise RunFailedError(_failure(server, run))
    print_note(f"run {run.name} succeeded in {_took(run)}")


def _failure(server: "PipelineServer", run: "ClusterRun") -> str:
    from reasongenrm.runs.logs import last_error

    failed = [task for task in run.tasks if task.state == "failed"]
    if not failed:
        why = run.error or run.notice or "no task failed"
        return f"run {run.name} failed: {why.removesuffix('.')}. Its page: {server.page(run.run_id)}"
    task = failed[0]
    said = last_error(server, run, task) or task.message or run.error
    more = f'See `reasongenrm logs {run.name} "{task.name}"`; finished work is kept, submit again to go on.'
    because = f": {said.removesuffix('.')}" if said else ""
    return f"run {run.name} failed in {task.name}{because}. {more}"
