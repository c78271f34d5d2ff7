"""Options that several commands share, and a run's configuration from file and command line.

Every command's help imports this module, so the config's models (a quarter of a second) are imported only where a config is read.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reasongenrm.errors import ConfigError

if TYPE_CHECKING:
    from reasongenrm.config import RunConfig

DEFAULT_STORE = ".reasongenrm"

StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="FOLDER|URI",
        help="Where everything is kept: a folder with a server of its own, or s3://bucket/prefix (the AWS variables say "
        "where and who).",
    ),
]
PreferencesOption = Annotated[
    str | None,
    typer.Option(
        "--preferences",
        metavar="URI",
        help="Preference pairs: a JSON Lines file, s3:// or a hub name. Default: the config's inputs.preferences.",
    ),
]
BenchmarkOption = Annotated[
    str | None,
    typer.Option(
        "--benchmark",
        metavar="URI",
        help="RewardBench or a benchmark in its schema: JSON Lines file, s3:// or hub name. Default: the config's "
        "inputs.benchmark.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="URI",
        help="Base model: a folder, GGUF file, s3:// or hub name. Default: the config's inputs.model.",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The run's YAML file; without it the reference's numbers are used."),
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Change one value of the config; may be given several times."
    ),
]
RegistryOption = Annotated[
    str | None,
    typer.Option(
        metavar="REGISTRY", help="Take our images from here, such as registry.example/team, under the same names."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def make_config(path: Path | None, assignments: list[str], limit: int | None = None) -> "RunConfig":
    """The run's configuration: the file, then --set, then --limit.

    Args:
        path: a YAML file; None for the defaults.
        assignments: "section.key=value", the value in YAML.
        limit: the most preference pairs, and the most benchmark rows.

    Raises:
        ConfigError: a mistake in the file, or an assignment that does not fit; names it.
    """
    from reasongenrm.config import load_config

    config = load_config(path)
    if limit is not None:
        assignments = [*assignments, f"pairs.limit={limit}", f"evaluate.limit={limit}"]
    for assignment in assignments:
        config = _assign(config, assignment)
    return config


def _assign(config: "RunConfig", assignment: str) -> "RunConfig":
    import yaml

    from reasongenrm.config import RunConfig, parse_section

    key, equals, text = assignment.partition("=")
    where = f"--set {assignment}"
    path = key.split(".")
    if not equals or len(path) < 2 or not all(path):
        raise ConfigError(f"{where}: expected SECTION.KEY=VALUE, such as sft.learning_rate=1e-4.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: the value is not valid YAML: {' '.join(str(error).split())}. Quote it.") from error
    values: dict[str, Any] = config.model_dump(mode="json")
    section = values
    for name in path[:-1]:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{where}: '{name}' is a single value and has no keys of its own. Set it itself.")
    section[path[-1]] = value
    return parse_section(RunConfig, values, where)


def absolute(uri: str) -> str:
    """A local path made absolute, since tasks run elsewhere; URIs and hub names stay."""
    path = Path(uri).expanduser()
    return uri if "://" in uri or not path.exists() else str(path.resolve())


def images_of(registry: str | None) -> dict[str, str]:
    """What --registry stands for: our images' references there, by "cpu", "train" and "vllm"; {} without one."""
    from reasongenrm.components.images import read_table

    if registry is None:
        return {}
    return {name: f"{registry.rstrip('/')}/{image.rpartition('/')[2]}" for name, image in read_table().items()}
