"""The command: choose parts and shapes for the machine, measure, print as it goes, write the results.

They are written after every way, so that a run that is cut off leaves what it had. torch is imported late, for the
command's help.
"""

import os
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer
from rich.console import Console

from benchmarks.figures import Part, PartName, Report
from benchmarks.shapes import SHAPES
from reasongenrm.processes.cpu_math import configure_cpu_math

if TYPE_CHECKING:
    from benchmarks.setting import Setting

PARTS: tuple[PartName, ...] = get_args(PartName)
RESULTS, TABLES, PICTURE, MEASUREMENTS = "results.json", "results.md", "results.svg", "measurements.json"
# Shape of training and equality, shape of scoring, seconds for each way.
GPU_DEFAULTS, CPU_DEFAULTS = ("qwen2.5-1.5b", "qwen2.5-7b", 20.0), ("cpu", "cpu", 12.0)


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(PARTS)}; all of them by default.")] = None,
    shape: Annotated[str | None, typer.Option(help=f"Of training and equality: {', '.join(SHAPES)}.")] = None,
    scoring_shape: Annotated[
        str | None, typer.Option(help="Of scoring; --shape by default, and without it on a GPU 7B.")
    ] = None,
    budget: Annotated[float | None, typer.Option(min=0.0, help="Seconds for which each way is measured.")] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Steps before that, not measured.")] = 2,
    max_steps: Annotated[int, typer.Option(min=1, help="Of each way, at most.")] = 20,
    examples: Annotated[
        int | None,
        typer.Option(min=2, help="Of an SFT step and process; DPO: a half as many pairs. Of the shape by default."),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float32"] | None,
        typer.Option(help="Of products; by default bfloat16 on a GPU, else float32."),
    ] = None,
    max_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of a forward pass of ours; by default what the stages take.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights and work.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("build/benchmark"),
) -> None:
    """Measure ReasonGenRM against its peers on this machine, at random weights.

    Without options: all parts with the shapes that fit the machine: on a GPU 1.5B for training and 7B for scoring, on a
    CPU 25M.
    Exit code 1: a way failed, or packed and plain numbers differ.
    """
    for part in parts or ():
        _known(part, PARTS, "part")
    chosen = tuple(part for part in PARTS if not parts or part in parts)
    for name in (shape, scoring_shape):
        if name is not None:
            _known(name, tuple(SHAPES), "shape")
    configure_cpu_math()
    os.environ["TQDM_DISABLE"] = "1"
    from benchmarks.clock import Budget
    from benchmarks.setting import Setting
    from benchmarks.world import find_world

    world = find_world()
    defaults = GPU_DEFAULTS if world.device.type == "cuda" else CPU_DEFAULTS
    seconds = defaults[2] if budget is None else budget
    with tempfile.TemporaryDirectory() as scratch:
        trained = SHAPES[shape or defaults[0]]
        trained = replace(trained, examples=examples or trained.examples)
        of_scoring = SHAPES[scoring_shape or shape or defaults[1]]
        if max_batch_tokens is not None:
            trained, of_scoring = (replace(one, max_batch_tokens=max_batch_tokens) for one in (trained, of_scoring))
        setting = Setting(trained, world, Budget(seconds, warmup, max_steps), Path(scratch), seed, dtype)
        failures = measure(chosen, setting, replace(setting, shape=of_scoring), output)
    if failures:
        raise typer.Exit(1)


def measure(parts: tuple[PartName, ...], setting: "Setting", scoring: "Setting", output: Path) -> list[str]:
    """Measure parts and write their results.

    Args:
        setting: of training and equality.
        scoring: of scoring.
        output: a folder; made if it is missing.

    Returns:
        What failed.
    """
    import torch

    from benchmarks.libraries import quieten
    from benchmarks.machine import find_machine
    from benchmarks.measurements import as_measurements
    from benchmarks.parts import run_part
    from benchmarks.plot import draw
    from benchmarks.tables import last_line, render_markdown

    world = setting.world
    console = Console(highlight=False, quiet=not world.speaks, soft_wrap=True)
    quieten()
    started, clock = datetime.now(UTC), time.monotonic()
    machine = find_machine(world, setting.dtype)
    console.print(
        f"{machine.num_processes} process(es), {machine.device}, peak {machine.peak_tflops:.4g} TFLOP/s "
        f"({machine.peak_how}), load {machine.load_average:.1f}"
    )
    memory_bytes = torch.cuda.get_device_properties(world.device).total_memory if world.device.type == "cuda" else None
    report = Report(
        command=_command(world.size),
        started=started.isoformat(timespec="seconds"),
        seconds=0.0,
        machine=machine,
        parts=(),
    )
    if world.speaks:
        output.mkdir(parents=True, exist_ok=True)
    finished: tuple[Part, ...] = ()
    for name in parts:
        for part in run_part(name, scoring if name == "scoring" else setting, machine):
            update = {"parts": (*finished, part), "seconds": time.monotonic() - clock}
            report = report.model_copy(update=update)
            console.print(last_line(part), markup=False)
            if world.speaks:
                report.write(output / RESULTS)
                (output / TABLES).write_text(render_markdown(report), encoding="utf-8")
                draw(report).savefig(output / PICTURE)
                as_measurements(report, memory_bytes).write(output / MEASUREMENTS)
        finished = report.parts
    console.print(f"\n{render_markdown(report)}", markup=False)
    console.print(f"Written to {output}: {RESULTS}, {TABLES}, {PICTURE}, {MEASUREMENTS}")
    return report.failures


def _command(num_processes: int) -> str:
    """What gave these results."""
    launcher = "python" if num_processes == 1 else f"torchrun --nproc-per-node {num_processes}"
    return f"{launcher} -m benchmarks {shlex.join(sys.argv[1:])}".strip()


def _known(name: str, names: tuple[str, ...], what: str) -> None:
    if name not in names:
        raise typer.BadParameter(f"no {what} is called {name!r}; expected one of {', '.join(names)}.")
