"""What a deployment replaces, saved in the store before it is touched.

replaced/<namespace>/<name>/<digest>.json    an InferenceService without what the server adds; named by its content
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from reasongenrm.deploy.manifest import DECISION, DIGEST, OWN, REPLACED
from reasongenrm.errors import InputError
from reasongenrm.store.artifacts import Store, read_uri

_KEPT = ("name", "namespace", "labels", "annotations")  # of metadata; the rest is the server's


def manifest_of(item: Mapping[str, Any]) -> dict[str, Any]:
    """An object without status and without what the server adds to its metadata."""
    metadata = {key: item["metadata"][key] for key in _KEPT if key in item["metadata"]}
    return copy.deepcopy(
        {"apiVersion": item["apiVersion"], "kind": item["kind"], "metadata": metadata, "spec": item["spec"]}
    )


def save_replaced(store: Store, existing: Mapping[str, Any]) -> str:
    """Keep the object that is about to be replaced; returns the URI of the store's object."""
    data = json.dumps(manifest_of(existing), indent=2, sort_keys=True).encode()
    meta = existing["metadata"]
    name = f"replaced/{meta['namespace']}/{meta['name']}/{hashlib.sha256(data).hexdigest()[:16]}.json"
    store.put_bytes(name, data)
    return store.uri_of(name)


def load_replaced(item: Mapping[str, Any]) -> dict[str, Any] | None:
    """What this object has replaced; None if it replaced nothing.

    Raises:
        InputError: the annotation names an object that is not there or cannot be read.
    """
    note = item["metadata"].get("annotations", {}).get(REPLACED)
    if note is None:
        return None
    try:
        uri = json.loads(note)["object"]
        found: dict[str, Any] = json.loads(read_uri(uri))
    except (ValueError, KeyError, TypeError) as error:  # InputError (no such object) is a ValueError
        raise InputError(
            f"InferenceService {item['metadata']['name']}: the annotation {REPLACED} is {note!r}: {error}. Expected "
            "JSON with the URI of a saved manifest in this store. Give the judge to go back to with --to."
        ) from error
    return found


def with_replaced(service: Mapping[str, Any], existing: Mapping[str, Any], uri: str) -> dict[str, Any]:
    """The manifest with a note of what it replaces."""
    before = existing["metadata"].get("annotations", {})
    note = json.dumps({"digest": before.get(DIGEST), "decision": before.get(DECISION), "object": uri})
    noted = copy.deepcopy(dict(service))
    noted["metadata"].setdefault("annotations", {})[REPLACED] = note
    return noted


def over(existing: Mapping[str, Any], service: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest as it replaces an object: what others wrote into the metadata stays, the spec is ours as a whole."""
    body = copy.deepcopy(dict(service))
    metadata = body["metadata"]
    for part in ("labels", "annotations"):
        foreign = {key: value for key, value in existing["metadata"].get(part, {}).items() if not key.startswith(OWN)}
        metadata[part] = {**foreign, **metadata.get(part, {})}
    return versioned(existing, body)


def versioned(existing: Mapping[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """The body with what the server needs to let it replace exactly this state of the object."""
    for key in ("resourceVersion", "uid", "finalizers", "ownerReferences"):
        if key in existing["metadata"]:
            body["metadata"][key] = existing["metadata"][key]
    return body
