"""What travels between the tasks of a pipeline: the address of a small object in the store, never the object itself.

KFP repeats every argument of a task some six times in the state of a run (docs/decisions/0016), so a task is given one
short address for each input. The object says which run it belongs to, and where the artifact is. Both kinds of object
are called after their content: the same run and the same artifact have the same address.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from reasongenrm.config import RunConfig, parse_section
from reasongenrm.errors import ConfigError, InputError, validated
from reasongenrm.records import Record
from reasongenrm.store.artifacts import ArtifactRef, Store, digest_bytes, read_uri
from reasongenrm.store.run_records import RunInputs

REFERENCES, SETTINGS = "refs", "settings"  # where they are in the store
_DIGEST_DIGITS = 16

R = TypeVar("R", bound=Record)


class RunSettings(Record):
    """What is the same for all tasks of a run."""

    store_uri: str
    inputs: RunInputs
    stages: RunConfig  # its inputs and resources say nothing here


class Reference(Record):
    """An artifact as an input of a task."""

    settings_uri: str
    artifact: ArtifactRef


def write_settings(store: Store, inputs: RunInputs, values: Mapping[str, Any]) -> str:
    """Check a run's settings and write them.

    Args:
        values: sections by name, as in a config file; what is left out has its default.

    Returns:
        Their address.

    Raises:
        ConfigError: a key is unknown, a value does not fit, or a section is not a stage's.
    """
    others = sorted({"inputs", "resources"} & values.keys())
    if others:
        raise ConfigError(
            f"config: has {' and '.join(others)}, which a run does not take here: inputs are parameters of their own, "
            "resources are compiled into the pipeline (`reasongenrm compile --config`). Leave them out."
        )
    stages = parse_section(RunConfig, dict(values), "config")
    return _write(store, SETTINGS, RunSettings(store_uri=store.uri, inputs=inputs, stages=stages))


def read_settings(uri: str) -> RunSettings:
    """Read a run's settings; raises as `read_reference`."""
    return _read(uri, RunSettings)


def write_reference(store: Store, settings_uri: str, artifact: ArtifactRef) -> str:
    """Write what the tasks behind this one are given; returns its address."""
    return _write(store, REFERENCES, Reference(settings_uri=settings_uri, artifact=artifact))


def read_reference(uri: str) -> Reference:
    """Read what an earlier task wrote.

    Raises:
        InputError: there is no such object, or it is something else.
        StoreError: the store failed.
    """
    return _read(uri, Reference)


def _write(store: Store, folder: str, record: Record) -> str:
    data = record.model_dump_json(indent=1).encode()
    name = f"{folder}/{digest_bytes(data).removeprefix('sha256:')[:_DIGEST_DIGITS]}"
    store.put_bytes(name, data)
    return store.uri_of(name)


def _read(uri: str, kind: type[R]) -> R:
    if not uri.startswith("s3://"):
        raise InputError(f"'{uri}': expected the address of an object that an earlier task wrote, s3://...")
    with validated(uri, f"what an earlier task of this version wrote ({kind.__name__}). Run the pipeline again."):
        return kind.model_validate_json(read_uri(uri))
