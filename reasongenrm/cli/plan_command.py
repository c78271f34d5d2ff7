"""plan: what a run costs, before it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from reasongenrm.cli.console import out, print_json, print_note, print_table
from reasongenrm.cli.settings import ConfigOption, JsonOption, SetOption, make_config
from reasongenrm.errors import ConfigError

if TYPE_CHECKING:
    from reasongenrm.planning.tables import Grid
    from reasongenrm.training.shapes import ModelShape

ENDPOINT = "endpoint"


def plan(
    pairs: Annotated[int, typer.Option(min=1, help="Preference pairs; the config's pairs.limit is kept.")] = 80_000,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Reasons a prompt, of teacher and policy. Default: the config's.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE|FOLDER|NAME",
            help="Judge: 135M, 0.5B, 1.5B, 3B, 7B, 8B, 14B, 32B, 70B, a folder with a config.json, or a hub name of one "
            "of these. Default: the config's inputs.model.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE|FOLDER|NAME|endpoint",
            help="Teacher; an endpoint (also http://...) takes none of these GPUs. Default: the config's inputs.teacher, "
            "else the judge itself.",
        ),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs that there are; 8 unless it is said.")] = None,
    gpu: Annotated[
        str, typer.Option(metavar="MACHINE", help="What was measured: h100, h200, cpu, or a machine of --points.")
    ] = "h100",
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a judge prompt, on average.")] = 1_000,
    reason_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a reason, on average.")] = 500,
    kept: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of the prompts that get an R*, and of those that get a DPO pair."),
    ] = 0.5,
    benchmark_rows: Annotated[
        int, typer.Option(min=1, help="Rows of the benchmark (RewardBench's); the config's evaluate.limit is kept.")
    ] = 2_985,
    order: Annotated[
        Literal["mirrored", "random"] | None,
        typer.Option(help="Both orders of a pair, or one. Default: the config's pairs.order."),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0.0, help="Money for a GPU for an hour; without it there is no column of cost.")
    ] = None,
    config: ConfigOption = None,
    assignments: SetOption = [],  # noqa: B006 - typer copies it
    points: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measured points of your own, beside the shipped ones.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", dir_okay=False, help="Draw the measured points and the laws through them."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Hours, GPU-hours, storage and money of every stage, from measured points.

    What lies beyond the largest measurement is marked, with how far. docs/planning.md says how points are measured.

    [bold]Examples[/bold]

      reasongenrm plan --pairs 80000 --samples 16 --model 8B --teacher 70B --gpus 8

      reasongenrm plan --config pipelines/configs/reference/qwen2.5-7b.yaml --gpus 8 --price 2.5

      reasongenrm plan --config pipelines/configs/demo.yaml --model 135M --teacher endpoint --gpu cpu
    """
    from reasongenrm.planning.plan import make_plan
    from reasongenrm.planning.points import read_points, shipped_points
    from reasongenrm.planning.stages import Assumptions
    from reasongenrm.planning.tables import laws_grid, notes, plan_grid, points_grid
    from reasongenrm.training.shapes import find_shape

    if samples is not None:
        assignments = [*assignments, f"distill.num_samples={samples}", f"sample.num_samples={samples}"]
    if order is not None:
        assignments = [*assignments, f"pairs.order={order}"]
    settings = make_config(config, assignments)
    named = model or settings.inputs.model
    if named is None:
        raise ConfigError("plan: no model; expected --model, such as 8B, or a --config with inputs.model.")
    judge = find_shape(named)
    taught_by = teacher or settings.inputs.teacher
    measured = shipped_points() + read_points(points) if points else shipped_points()
    machine = measured.machine(gpu)
    if gpus is not None and machine.memory_bytes is None:
        raise ConfigError(f"plan: --gpus {gpus} has no effect on {machine.title}, which is one. Leave it out.")
    planned = make_plan(
        settings,
        Assumptions(pairs, prompt_tokens, reason_tokens, kept, benchmark_rows),
        judge,
        judge if taught_by is None else _teacher(taught_by),
        measured,
        machine,
        gpus or 8,
        price,
    )
    if plot is not None:
        from reasongenrm.planning.chart import chart

        plot.write_text(chart(planned.laws), encoding="utf-8")
        print_note(f"wrote {plot}")
    if as_json:
        print_json(planned.to_json())
        return
    _show(plan_grid(planned))
    for line in notes(planned):
        out.print(Text(line), soft_wrap=True)
    for grid in (laws_grid(planned.laws), points_grid(planned.laws)):
        out.print()
        _show(grid)


def _teacher(name: str) -> "ModelShape | None":
    """None for an endpoint."""
    from reasongenrm.training.shapes import find_shape

    return None if name == ENDPOINT or name.startswith(("http://", "https://")) else find_shape(name)


def _show(grid: "Grid") -> None:
    table = Table(title=Text(grid.title, style="bold"), title_justify="left", box=None, pad_edge=False)
    for place, name in enumerate(grid.head):
        table.add_column(Text(name), justify="right" if place else "left")
    for row in grid.rows:
        table.add_row(*map(Text, row))
    print_table(table)
