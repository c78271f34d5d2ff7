"""compile, doctor, --version: commands that are not about data or models."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from reasongenrm import __version__
from reasongenrm.cli.console import out, print_json, print_note
from reasongenrm.cli.settings import JsonOption, RegistryOption, images_of
from reasongenrm.errors import ConfigError

COMPILED = Path("pipelines/compiled/reason_reward_model.yaml")


def compile_pipeline(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="YAML file to write; <name>.kubernetes.yaml is written next to it."
        ),
    ] = COMPILED,
    namespace: Annotated[
        str | None, typer.Option(help="Namespace of the Kubernetes objects; default: what `kubectl -n` says.")
    ] = None,
    registry: RegistryOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if the files are not what compiling gives.")
    ] = False,
) -> None:
    """Compile the pipeline for a cluster.

    FILE can be uploaded in the KFP UI, or be given to `kfp pipeline create`. The file next to it has a Pipeline and a
    PipelineVersion for `kubectl apply`, where KFP keeps its pipelines in Kubernetes.

    [bold]Examples[/bold]

      reasongenrm compile

      reasongenrm compile --check

      reasongenrm compile -o build/pipeline.yaml --namespace kubeflow --registry registry.example/team
    """
    from reasongenrm.pipelines.compile import compile_to, stale_files
    from reasongenrm.processes.doctor import require

    require("pipeline")
    if check:
        if registry or namespace:
            raise ConfigError(
                "compile: --check looks at what plain `reasongenrm compile` writes. Leave the other options out."
            )
        stale = stale_files(output)
        if stale:
            raise ConfigError(
                f"{', '.join(map(str, stale))}: not what the pipeline compiles to. Run `reasongenrm compile` and commit what it "
                "writes."
            )
        return
    compiled = compile_to(output, images_of(registry), namespace)
    print_note(f"wrote {' and '.join(map(str, compiled.files(output)))}: {compiled.version_name}")


def doctor(
    store: Annotated[
        str | None, typer.Option("--store", metavar="FOLDER|URI", help="Also see whether this store can be reached.")
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="cpu|train|vllm", help="Inside this image: is it as it should be?")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is missing on this machine and how to get it; exit code 1 if the loop cannot run.

    [bold]Examples[/bold]

      reasongenrm doctor

      reasongenrm doctor --store s3://my-bucket/judges

      reasongenrm doctor --image cpu
    """
    from reasongenrm.cli.image_check import EXTRAS, examine_image
    from reasongenrm.processes.doctor import examine

    if image is not None and (image not in EXTRAS or store is not None):
        raise ConfigError(
            f"--image: got {image!r}{' with --store' if store else ''}; expected one of {', '.join(EXTRAS)} and no --store."
        )
    findings = examine(store) if image is None else examine_image(image)
    if as_json:
        print_json([finding.to_json() for finding in findings])
    else:
        table = Table(box=None, pad_edge=False)
        for column in ("", "what", "found", "what to do"):
            table.add_column(column, overflow="fold")
        for finding in findings:
            mark, style = ("ok", "green") if finding.ok else ("!!", "red") if finding.needed else ("--", "yellow")
            table.add_row(
                Text(mark, style=style), *(Text(text) for text in (finding.name, finding.found, finding.advice))
            )
        out.print(table)
    if any(finding.needed and not finding.ok for finding in findings):
        raise typer.Exit(1)


def print_version(wanted: bool) -> None:
    """Of `--version`: print it and end."""
    if wanted:
        out.print(f"reasongenrm {__version__}")
        raise typer.Exit
