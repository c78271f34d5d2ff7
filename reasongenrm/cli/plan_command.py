"""plan: what a run costs, before it runs."""

from pathlib import Path
from typing import Annotated

from typer import Option

from reasongenrm.cli.console import plain_table, print_json, print_line, print_table
from reasongenrm.cli.settings import ConfigOption, JsonOption, SetOption, make_config
from reasongenrm.errors import ConfigError


def plan(
    pairs: Annotated[int, Option(min=1, help="Preference pairs; the config's pairs.limit is kept.")] = 80_000,
    samples: Annotated[
        int | None, Option(min=1, help="Reasons per prompt, of teacher and policy; else the config's.")
    ] = None,
    model: Annotated[
        str | None, Option(metavar="SIZE|FOLDER|NAME", help="Judge: 135M, 0.5B to 70B, a folder, or a hub name of one.")
    ] = None,
    teacher: Annotated[
        str | None,
        Option(metavar="SIZE|FOLDER|NAME|endpoint", help="An endpoint takes no GPUs here. Default: the judge."),
    ] = None,
    gpus: Annotated[int | None, Option(min=1, help="GPUs that are available.  [default: 8]")] = None,
    gpu: Annotated[
        str, Option(metavar="MACHINE", help="h100, h200, a100, l40s, rtx4090, cpu, or one of --measurements.")
    ] = "h100",
    price: Annotated[float | None, Option(min=0.0, help="Money per GPU-hour; adds the cost.")] = None,
    prompt_tokens: Annotated[int, Option(min=1, help="Tokens of a judge prompt, on average.")] = 1_000,
    reason_tokens: Annotated[int, Option(min=1, help="Tokens of a reason, on average.")] = 500,
    kept: Annotated[float, Option(min=0.0, max=1.0, help="Share of prompts that get an R*, and a DPO pair.")] = 0.5,
    config: ConfigOption = None,
    assignments: SetOption = [],
    measurements: Annotated[Path | None, Option(metavar="FILE", help="Measurements or machines of your own.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Hours, GPU-hours, storage and money of every stage, from measured throughputs.

    Each row names the measurement that it rests on and how far it is scaled. docs/planning.md explains the ranges.

    [bold]Examples[/bold]

      reasongenrm plan --pairs 80000 --samples 16 --model 8B --teacher 70B --gpus 8

      reasongenrm plan --config pipelines/configs/reference/qwen2.5-7b.yaml --gpus 8 --price 2.5

      reasongenrm plan --config pipelines/configs/demo.yaml --model 135M --teacher endpoint --gpu cpu
    """
    from reasongenrm.planning.estimate import estimate_run
    from reasongenrm.planning.measurements import read_measurements
    from reasongenrm.planning.plan_text import answer, basis_lines, stage_table
    from reasongenrm.planning.workloads import Assumptions
    from reasongenrm.training.shapes import find_shape

    if samples is not None:
        assignments = [*assignments, f"distill.num_samples={samples}", f"sample.num_samples={samples}"]
    settings = make_config(config, assignments)
    named = model or settings.inputs.model
    if named is None:
        raise ConfigError("plan: no model; expected --model, such as 8B, or a --config with inputs.model.")
    judge = find_shape(named)
    taught_by = teacher or settings.inputs.teacher or named
    is_endpoint = taught_by.startswith(("http://", "https://")) or taught_by == "endpoint"
    measured = read_measurements() + read_measurements(measurements) if measurements else read_measurements()
    machine = measured.machine(gpu)
    if gpus is not None and machine.memory_bytes is None:
        raise ConfigError(f"plan: --gpus {gpus} has no effect on {machine.title}. Leave it out.")
    estimate = estimate_run(
        settings,
        Assumptions(pairs, prompt_tokens, reason_tokens, kept),
        judge,
        None if is_endpoint else find_shape(taught_by),
        measured,
        machine,
        gpus or (1 if machine.memory_bytes is None else 8),
        price,
    )
    if as_json:
        print_json(estimate.model_dump(mode="json"))
        return
    head, rows = stage_table(estimate)
    table = plain_table(head, rows)
    for column in table.columns[1:-1]:
        column.justify = "right"
    print_line("\n".join(answer(estimate)) + "\n")
    print_table(table)
    print_line("\n" + "\n".join(basis_lines(estimate, measured)))
