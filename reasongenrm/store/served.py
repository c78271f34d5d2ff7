"""Which judge a name serves and which it served before: records in the store.

`deploy_kserve` and `rollback` write them once the new pods have proven themselves; the gate reads whom a candidate must
beat.

    served/<namespace>/<name>/<time>-<digest>.json  one for every change, never changed again
    served/<namespace>/<name>.json                  a copy of the one that holds now
"""

from datetime import datetime
from typing import Any, Literal

from reasongenrm.errors import StoreError, validated
from reasongenrm.records import Record
from reasongenrm.store.artifacts import ArtifactRef, Store


class ServedJudge(Record):
    """One judge that was served from `served_since` on."""

    schema_version: Literal[1] = 1
    namespace: str
    name: str
    variant: str  # base, genrm, sft or dpo
    model: ArtifactRef
    decision: ArtifactRef
    # The benchmark run that the gate decided on; None if the judge was not deployed by a decision of ours.
    evaluation: ArtifactRef | None
    revision: str  # of the rollout: a hash of spec and model
    manifests: list[dict[str, Any]]  # as they were applied; the first owns the others
    served_since: str  # UTC, ISO 8601, milliseconds
    cause: Literal["deploy", "rollback"] = "deploy"  # "deploy", or "rollback" to a judge that was served before


def _folder(namespace: str, name: str) -> str:
    return f"served/{namespace}/{name}"


def record_served(store: Store, judge: ServedJudge) -> None:
    """Write down that this judge is served now; the current one is replaced last."""
    data = judge.model_dump_json(indent=2).encode()
    folder, since = _folder(judge.namespace, judge.name), datetime.fromisoformat(judge.served_since)
    store.put_bytes(f"{folder}/{since:%Y%m%dT%H%M%S.%f}-{judge.model.digest[-8:]}.json", data)
    store.put_bytes(f"{folder}.json", data)


def served_judge(store: Store, namespace: str, name: str) -> ServedJudge | None:
    """The judge that is served now, None if none of this name was ever deployed.

    Raises:
        StoreError: the record cannot be read.
    """
    current = f"{_folder(namespace, name)}.json"
    return _parse(store, current) if store.exists(current) else None


def served_now(store: Store) -> list[ServedJudge]:
    """The judge that each name serves now, by name.

    Raises:
        StoreError: a record cannot be read.
    """
    return [_parse(store, found) for found in store.list("served/") if found.count("/") == 2]


def served_history(store: Store, namespace: str, name: str) -> list[ServedJudge]:
    """Every judge that was served under this name, oldest first; the last one is served now.

    Raises:
        StoreError: a record cannot be read.
    """
    return [_parse(store, found) for found in store.list(f"{_folder(namespace, name)}/")]


def _parse(store: Store, name: str) -> ServedJudge:
    expected = "the record of a served judge. Delete the file if nothing is served, or deploy again."
    with validated(store.uri_of(name), expected, StoreError):
        return ServedJudge.model_validate_json(store.get_bytes(name))
