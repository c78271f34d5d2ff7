"""Compiles the pipeline for a cluster; `reasongenrm compile` calls it."""

from pathlib import Path
from tempfile import TemporaryDirectory

HEADER = "# Made by `reasongenrm compile` from pipelines/reason_reward_model.py; do not edit.\n"


def compile_to(path: Path) -> None:
    """Write the pipeline as YAML for the KFP UI or `kfp pipeline create`. The same code gives the same bytes."""
    from kfp.compiler import Compiler

    from pipelines.reason_reward_model import reason_reward_model

    path.parent.mkdir(parents=True, exist_ok=True)
    Compiler().compile(reason_reward_model, str(path))
    # KFP's own header lists the parameters' defaults in an order that changes from process to process.
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    body = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    path.write_text(HEADER + "".join(lines[body:]), encoding="utf-8")


def is_up_to_date(path: Path) -> bool:
    """Whether a file is there and holds what compiling gives now."""
    with TemporaryDirectory() as folder:
        fresh = Path(folder) / "pipeline.yaml"
        compile_to(fresh)
        return path.is_file() and path.read_bytes() == fresh.read_bytes()
