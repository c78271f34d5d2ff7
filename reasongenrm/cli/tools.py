"""compile, --version: commands that are not about data or models."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from reasongenrm import __version__
from reasongenrm.cli.console import out, print_note
from reasongenrm.cli.settings import ConfigOption, RegistryOption, SetOption, images_of, make_config
from reasongenrm.errors import ConfigError

COMPILED = Path("pipelines/compiled/reason_reward_model.yaml")


def compile_pipeline(
    output: Annotated[
        Path, Option("--output", "-o", metavar="FILE", help="Pipeline; <name>.kubernetes.yaml goes next to it.")
    ] = COMPILED,
    namespace: Annotated[str | None, Option(help="Of the Kubernetes objects: where KFP is; default: kubeflow.")] = None,
    config: ConfigOption = None,
    assignments: SetOption = [],
    registry: RegistryOption = None,
    check: Annotated[bool, Option("--check", help="Write nothing; fail if the files are stale.")] = False,
) -> None:
    """Compile the pipeline for a cluster.

    FILE can be uploaded in the KFP UI, or be given to `kfp pipeline create`. The file next to it has a Pipeline and a
    PipelineVersion for `kubectl apply`, where KFP keeps its pipelines in Kubernetes. The resources of the config (GPUs,
    nodes, secrets, images) are compiled into it; all else is the run's.

    [bold]Examples[/bold]

      reasongenrm compile

      reasongenrm compile --check

      reasongenrm compile -o build/pipeline.yaml --namespace kfp --registry registry.example/team
    """
    from reasongenrm.pipelines.compile import compile_to, stale_files
    from reasongenrm.processes.extras import require
    from reasongenrm.runs.kfp import RUN_NAMESPACE

    require("pipeline")
    if check:
        if registry or namespace or config or assignments:
            raise ConfigError("compile: --check looks at what plain `reasongenrm compile` writes. Give it alone.")
        stale = stale_files(output)
        if stale:
            raise ConfigError(
                f"{', '.join(map(str, stale))}: not what the pipeline compiles to. Run `reasongenrm compile` and "
                "commit what it writes."
            )
        return
    settings = make_config(config, [*images_of(registry), *assignments])
    compiled = compile_to(output, settings.resources, namespace or RUN_NAMESPACE)
    print_note(f"wrote {' and '.join(map(str, compiled.files(output)))}: {compiled.version_name}")


def print_version(wanted: bool) -> None:
    """Of `--version`: print it and end."""
    if wanted:
        out.print(f"reasongenrm {__version__}")
        raise typer.Exit
