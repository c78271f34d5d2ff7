"""--dry-run of run and submit, and config show: what would be done, and nothing is started."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from reasongenrm.cli.console import print_json, print_line
from reasongenrm.cli.settings import ConfigOption, JsonOption, SetOption, make_config
from reasongenrm.errors import ConfigError, InputError

if TYPE_CHECKING:
    from reasongenrm.config import RunConfig
    from reasongenrm.runs.input_checks import InputsLook
    from reasongenrm.store.run_records import RunInputs

_GPU = "h100"  # what a plan assumes of a cluster, and of a GPU that no measurement knows
config_app = typer.Typer(
    help="Print what a run is configured with.\n\n[bold]Examples[/bold]\n\n  reasongenrm config show",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


def dry_run(inputs: "RunInputs", settings: "RunConfig", as_json: bool, on_cluster: bool) -> None:
    """Look at a run's inputs and print what was seen, the plan and the configuration.

    Raises:
        ReasonGenRMError: as `check_inputs`; the exit code is that of the real run.
    """
    import yaml

    from reasongenrm.runs.input_checks import check_inputs

    seen = check_inputs(inputs, settings)
    planned = _planned(settings, inputs, seen, on_cluster)
    config = settings.model_dump(mode="json", exclude={"inputs"})
    config["inputs"] = {name.removesuffix("_uri"): uri for name, uri in inputs.model_dump().items()}
    if as_json:
        print_json({"inputs": seen.model_dump(mode="json"), "plan": planned, "config": config})
        return
    for name, look in (("preferences", seen.preferences), ("benchmark", seen.benchmark)):
        print_line(f"{name}: {look.said}")
        print_line("  " + ", ".join(f"{cause.removeprefix('num_')} {count:,}" for cause, count in look.counts.items()))
    about = [seen.model.chat_family and f"chat family {seen.model.chat_family}", seen.model.revision]
    print_line(f"model: {', '.join([seen.model.uri, *filter(None, about)])}")
    print_line(f"teacher: {seen.teacher}")
    print_line(f"plan: {planned}")
    print_line("config:\n" + yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip())


def _planned(settings: "RunConfig", inputs: "RunInputs", seen: "InputsLook", on_cluster: bool) -> str:
    """The first line of the plan, or why there is none."""
    from reasongenrm.generation import is_endpoint
    from reasongenrm.planning.estimate import estimate_run
    from reasongenrm.planning.measurements import read_measurements
    from reasongenrm.planning.plan_text import answer
    from reasongenrm.planning.workloads import Assumptions
    from reasongenrm.runs.input_checks import DEMO_TEACHER
    from reasongenrm.training.shapes import find_shape, shape_of_config

    measured, resources = read_measurements(), settings.resources
    try:
        judge = (
            shape_of_config(seen.model.config, inputs.model_uri) if seen.model.config else find_shape(inputs.model_uri)
        )
        if inputs.teacher_uri == DEMO_TEACHER or is_endpoint(inputs.teacher_uri):
            teacher = None
        else:
            teacher = judge if inputs.teacher_uri == inputs.model_uri else find_shape(inputs.teacher_uri)
        machine = measured.machine(_GPU if on_cluster or shutil.which("nvidia-smi") else "cpu")
        num_gpus = 1
        if on_cluster:
            num_gpus = max(1, resources.num_accelerators, resources.num_train_accelerators)
        estimate = estimate_run(
            settings, Assumptions(seen.preferences.counts["num_out"]), judge, teacher, measured, machine, num_gpus
        )
    except (InputError, ConfigError) as error:
        return f"not known: {error}"
    return answer(estimate)[0]


@config_app.command()
def show(config: ConfigOption = None, assignments: SetOption = [], as_json: JsonOption = False) -> None:
    """Print the whole configuration as YAML; a comment says what is not the default, and where it comes from.

    [bold]Examples[/bold]

      reasongenrm config show --config demo --set sft.learning_rate=1e-4
    """
    from reasongenrm.config import RunConfig

    found = make_config(config, assignments).model_dump(mode="json")
    if as_json:
        print_json(found)
        return
    of_file = make_config(config, []).model_dump(mode="json")
    print_line("\n".join(_lines(found, of_file, RunConfig().model_dump(mode="json"), f"{config}")))


def _lines(found: dict[str, Any], of_file: Any, default: Any, file: str, indent: str = "") -> list[str]:
    """YAML of a mapping, a line for each value that is no mapping."""
    import yaml

    lines = []
    for key, value in found.items():
        before, at_first = (other.get(key) if isinstance(other, dict) else None for other in (of_file, default))
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *_lines(value, before, at_first, file, f"{indent}  ")]
            continue
        dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=2**20)
        text = dumped.strip().removesuffix("...").strip()  # a single value ends with the end of its document
        source = "  # --set" if value != before else f"  # {Path(file).name}" if value != at_first else ""
        lines.append(f"{indent}{key}: {text}{source}")
    return lines
