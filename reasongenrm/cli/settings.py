"""Options that several commands share, and a run's configuration from file and command line.

Every command's help imports this module, so the config's models (a quarter of a second) are imported only where a
config is read.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from reasongenrm.errors import ConfigError

if TYPE_CHECKING:
    from reasongenrm.config import RunConfig

SHIPPED_CONFIGS = Path(__file__).parents[1] / "pipelines" / "configs"
DEFAULT_STORE = ".reasongenrm"

StoreOption = Annotated[
    str, Option(metavar="FOLDER|URI", help="A folder with a server of its own, or s3://bucket/prefix (AWS variables).")
]
SharedStore = Annotated[str, Option("--store", metavar="URI", help="s3://bucket/prefix that the cluster reaches.")]
PreferencesOption = Annotated[
    str | None,
    Option(metavar="URI", help="Preference pairs (docs/data.md): a file, s3:// or hub name; else the config's."),
]
ColumnsOption = Annotated[
    str | None,
    Option(metavar="OURS=YOURS,...", help="Your names of columns, such as prompt=question,chosen=good,rejected=bad."),
]
BenchmarkOption = Annotated[
    str | None,
    Option(
        metavar="URI", help="RewardBench or its schema (docs/data.md): a file, s3:// or hub name; else the config's."
    ),
]
ModelOption = Annotated[
    str | None, Option(metavar="URI", help="Base model: a folder, GGUF file, s3:// or hub name; else the config's.")
]
TeacherOption = Annotated[
    str | None,
    Option(metavar="URI|URL", help="Who writes the reasons: a model, or an OpenAI-compatible endpoint; else --model."),
]
ConfigOption = Annotated[
    Path | None,
    Option(
        metavar="FILE|NAME",
        help="The run's YAML file, or a shipped one: demo, small, smoke. Else the reference's numbers.",
    ),
]
SetOption = Annotated[list[str], Option("--set", metavar="SECTION.KEY=VALUE", help="Set a config value; repeatable.")]
LimitOption = Annotated[int | None, Option(min=1, help="The most preference pairs, and the most benchmark rows.")]
RegistryOption = Annotated[str | None, Option(metavar="REGISTRY", help="Where our images are, under the same names.")]
JsonOption = Annotated[bool, Option("--json", help="Print JSON, for programs.")]
DryRunOption = Annotated[
    bool, Option("--dry-run", help="Check all inputs, print counts, plan and config; start nothing.")
]
HostOption = Annotated[
    str | None,
    Option(metavar="URL", help="KFP's API or UI. Default: KF_PIPELINES_ENDPOINT. Token: KF_PIPELINES_TOKEN."),
]
NamespaceOption = Annotated[str | None, Option("--namespace", "-n", help="Of runs and pods: a profile, or kubeflow.")]
EndpointOption = Annotated[
    str | None, Option(metavar="URL", help="An OpenAI-compatible endpoint, http(s)://.../v1; its key: OPENAI_API_KEY.")
]
ServedModelOption = Annotated[str | None, Option(metavar="NAME", help="Which of an endpoint's several models.")]
ListenOption = Annotated[str, Option("--host", help="Address to listen on.")]
PortOption = Annotated[int, Option(help="Port to listen on.")]


def make_config(path: Path | None, assignments: list[str], limit: int | None = None) -> "RunConfig":
    """The run's configuration: the file, then --set, then --limit.

    Args:
        path: a YAML file, or the name of a shipped one ("small"); None for the defaults.
        assignments: "section.key=value", the value in YAML.
        limit: the most preference pairs, and the most benchmark rows.

    Raises:
        ConfigError: a mistake in the file, or an assignment that does not fit; names it.
    """
    from reasongenrm.config import load_config

    config = load_config(_file_of(path))
    if limit is not None:
        assignments = [*assignments, f"pairs.limit={limit}", f"evaluate.limit={limit}"]
    for assignment in assignments:
        config = assign(config, assignment)
    return config


def _file_of(path: Path | None) -> Path | None:
    """The file that --config means: the one that is there, else the shipped one of this name."""
    if path is None or path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    shipped = SHIPPED_CONFIGS / f"{path}.yaml"
    if not shipped.is_file():
        names = sorted(
            str(file.relative_to(SHIPPED_CONFIGS).with_suffix("")) for file in SHIPPED_CONFIGS.rglob("*.yaml")
        )
        raise ConfigError(
            f"--config {path}: no such file, and no shipped config of this name; expected a YAML file or one of "
            f"{', '.join(names)}."
        )
    return shipped


def assign(config: "RunConfig", assignment: str) -> "RunConfig":
    """The configuration with one value set.

    Args:
        assignment: "section.key=value", the value in YAML.

    Raises:
        ConfigError: it does not fit.
    """
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


def columns_of(columns: str | None) -> list[str]:
    """What --columns stands for, as an assignment to `pairs`; [] without it.

    Raises:
        ConfigError: it is not OURS=YOURS,...
    """
    if columns is None:
        return []
    names = dict(pair.partition("=")[::2] for pair in columns.split(","))
    if not all(ours and theirs for ours, theirs in names.items()):
        raise ConfigError(f"--columns {columns}: expected OURS=YOURS,..., such as prompt=question,chosen=good.")
    return [f"pairs.columns={json.dumps(names)}"]  # JSON is YAML


def images_of(registry: str | None) -> list[str]:
    """What --registry stands for: our images there, as assignments to `resources`; [] without one."""
    from reasongenrm.components.images import read_table

    if registry is None:
        return []
    images = {name: image.rpartition("/")[2] for name, image in read_table().items()}
    return [f"resources.{name}_image={registry.rstrip('/')}/{image}" for name, image in images.items()]
