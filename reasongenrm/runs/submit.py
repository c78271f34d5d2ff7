"""The inputs and arguments of a cluster run: what a pod can reach, what the pipeline takes.

A pod sees the store, the hub and endpoints, and nothing of the machine that submits. Local files are refused, or put
into the store first.
"""

import math
from pathlib import Path
from typing import Any

from reasongenrm.config import EngineConfig, RunConfig, ScoreConfig
from reasongenrm.errors import ConfigError, InputError
from reasongenrm.runs.input_checks import DEMO_TEACHER, check_data
from reasongenrm.store.artifacts import DATA_FILE_ENDINGS, Store, digest_bytes, is_hub_name
from reasongenrm.store.run_records import RunInputs

UPLOADS = "uploads"  # where local files go in the store: uploads/<digest>/NAME
_DIGEST_DIGITS = 16
_FILE_ENDINGS = (*DATA_FILE_ENDINGS, ".gguf")
_DATA = ("preferences_uri", "benchmark_uri")


def check_reachable(inputs: RunInputs, store_uri: str, upload: bool) -> dict[str, str]:
    """See that pods can read the inputs, or that they may be uploaded.

    Args:
        inputs: URIs, hub names, and with `upload` local files and folders.

    Returns:
        The local ones, by name.

    Raises:
        ConfigError: a local store, or the demo's teacher.
        InputError: a local file without `upload`, or one that is not there.
    """
    if not store_uri.startswith("s3://"):
        raise ConfigError(
            f"store '{store_uri}': a pod cannot reach a folder of this machine. Give --store s3://bucket/prefix, in an "
            "object store that the cluster reaches (its credentials: the secret that resources.s3_secret names)."
        )
    if inputs.teacher_uri == DEMO_TEACHER:
        raise ConfigError(
            "teacher 'demo': it is a program of `reasongenrm run` on this machine. Give --teacher a model or an "
            "endpoint that pods can reach."
        )
    local = {name: uri for name, uri in inputs.model_dump().items() if is_local(uri)}
    for name, uri in local.items():
        option = "--" + name.removesuffix("_uri")
        if not Path(uri).expanduser().exists():
            raise InputError(
                f"{option} {uri}: no such file here, and it is no name on the hub (owner/name). Give s3://, a hub "
                "name, or with --upload an existing local file."
            )
        if not upload:
            raise InputError(
                f"{option} {uri}: a local path, which a pod cannot see. Put it into the store and give its s3:// URI, "
                "or let --upload do that."
            )
    return local


def reachable_inputs(inputs: RunInputs, config: RunConfig, store_uri: str, upload: bool) -> RunInputs:
    """The inputs as pods can read them; local ones are checked and put into the store.

    Raises:
        ConfigError, InputError: see `check_reachable`; or a local file is not what was expected.
    """
    local = check_reachable(inputs, store_uri, upload)
    if not local:
        return inputs
    from reasongenrm.data.import_model import import_model

    check_data(local.get("preferences_uri"), local.get("benchmark_uri"), config)
    store = Store(store_uri)
    store.check()
    moved = {uri: _put_file(store, uri) for name, uri in local.items() if name in _DATA}
    for name, uri in local.items():
        if uri not in moved:  # a model that is its own teacher goes once; checked, and converted if it is a GGUF file
            scores = name == "model_uri"
            moved[uri] = import_model(store, config.model, str(Path(uri).expanduser()), scores=scores).uri
    return inputs.model_copy(update={name: moved[uri] for name, uri in local.items()})


def is_local(uri: str) -> bool:
    """Whether a URI names something on this machine: it is there, or it looks like a path and like nothing else."""
    if "://" in uri:
        return False
    looks = uri.startswith((".", "/", "~")) or uri.endswith(_FILE_ENDINGS) or not is_hub_name(uri)
    return looks or Path(uri).exists()


def _put_file(store: Store, uri: str) -> str:
    path = Path(uri).expanduser()
    digest = digest_bytes(path.read_bytes()).removeprefix("sha256:")[:_DIGEST_DIGITS]
    name = f"{UPLOADS}/{digest}/{path.name}"
    if not store.exists(name):
        store.put_files({name: path})
    return store.uri_of(name)


def arguments_of(config: RunConfig, inputs: RunInputs, store_uri: str) -> dict[str, Any]:
    """The pipeline's arguments; its resources are compiled into it.

    Raises:
        ConfigError: an engine spreads a model over more accelerators than its task gets.
    """
    check_accelerators(config, inputs)
    return {"store_uri": store_uri, **inputs.model_dump(), "config": config.changes()}


def check_accelerators(config: RunConfig, inputs: RunInputs) -> None:
    """See that what spreads over accelerators gets all of them, and that a pod that only waits holds none.

    Raises:
        ConfigError: one of the two; names the settings.
    """
    resources = config.resources
    spread: list[tuple[str, EngineConfig | ScoreConfig, str]] = []
    if not inputs.teacher_uri.startswith(("http://", "https://")):
        spread.append(("distill.engine", config.distill.engine, "num_teacher_accelerators"))
    for where, engine in (("sample.engine", config.sample.engine), ("evaluate.engine", config.evaluate.engine)):
        spread.append((where, engine, "num_accelerators"))
    if resources.num_accelerators:  # 0: on CPUs, replicas are processes
        spread.append(("score", config.score, "num_accelerators"))
    for where, section, key in spread:
        if isinstance(section, EngineConfig) and section.kind != "vllm":
            continue
        names = ("tensor_parallel_size", "data_parallel_size")
        sizes = {name: getattr(section, name) or 1 for name in names if hasattr(section, name)}
        needed, given = math.prod(sizes.values()), getattr(resources, key)
        if needed > given:
            asked = {name: size for name, size in sizes.items() if size > 1} or sizes  # none at all for a model on one
            settings = " and ".join(f"{where}.{name} is {size}" for name, size in asked.items())
            raise ConfigError(
                f"{settings}, but resources.{key} is {given}: it would not start. Set resources.{key} to {needed}, or "
                f"lower {' or '.join(asked)}."
            )
    modes = {config.genrm.mode, config.sft.mode, config.dpo.mode}
    if modes == {"trainjob"} and resources.num_train_accelerators:
        raise ConfigError(
            "every training has mode 'trainjob', but resources.num_train_accelerators is "
            f"{resources.num_train_accelerators}: the pods that wait for the TrainJobs would hold accelerators. Set it "
            "to 0; trainjob.gpus_per_node is what a TrainJob gets."
        )
