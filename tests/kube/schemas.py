"""Strict validation of any Kubernetes object: `check(obj)`.

Custom kinds are held against the published CRDs in ../shared/crds (PROVENANCE.md there) or, elsewhere, of `make crds`,
built-in kinds against Kubernetes' own OpenAPI schemas (package kubernetes-validate). Unknown fields are refused. What
schemas do not say (names, labels, quantities, duplicates, mounts) is in `syntax.py` and `pods.py`, and `check` asks
them too.
"""

import copy
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate.utils
import pytest
import yaml
from referencing import Registry, Resource

from tests.kube.pods import check_pods
from tests.kube.syntax import QUANTITY, ManifestError, check_syntax, describe

_ROOT = Path(__file__).parents[2]
_GIVEN, _FETCHED = _ROOT.parent / "shared" / "crds", _ROOT / "build" / "crds"  # `make crds` fetches the same files
CRDS = _GIVEN if _GIVEN.is_dir() else _FETCHED
EXCERPTS = Path(__file__).parent / "crds"  # of CRDs that neither has; each names its source
KUBERNETES = "1.37.0"
_SCHEMAS = f"kubernetes-json-schema/v{KUBERNETES}-local-strict"
_OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"


def check(obj: dict[str, Any]) -> None:
    """Validate one object as it would be applied.

    Raises:
        jsonschema.ValidationError: an unknown or a wrong field; the message says where.
        ManifestError: an unknown kind, a bad name, label or quantity, a duplicate, a mount of no volume.
    """
    for key in ("apiVersion", "kind", "metadata"):
        if key not in obj:
            raise ManifestError(f"an object without {key}: {str(obj)[:200]}; expected apiVersion, kind and metadata")
    error = jsonschema.exceptions.best_match(validator(obj["apiVersion"], obj["kind"]).iter_errors(obj))
    if error is not None:
        where = ".".join(str(part) for part in error.absolute_path) or "top level"
        error.message = f"{describe(obj)}: {where}: {error.message}"
        raise error
    check_syntax(obj)
    check_pods(obj)


def is_custom(api_version: str) -> bool:
    """Whether a kind of this group comes from a CRD: the group has a domain that is not Kubernetes' own, or it is the
    Gateway API's."""
    group = api_version.rpartition("/")[0]
    return group == "gateway.networking.k8s.io" or ("." in group and not group.endswith(".k8s.io"))


@cache
def validator(api_version: str, kind: str) -> jsonschema.protocols.Validator:
    """The strict validator of one kind; made once a session, the schema itself is taken as good.

    Raises:
        ManifestError: nobody knows this kind, or not in this version.
    """
    if is_custom(api_version):
        schema = _custom_schema(api_version, kind)
    else:
        stem = api_version.replace("/", "-") if "." not in api_version else _short(api_version)
        try:
            schema = _read(f"{kind.lower()}-{stem}.json")
        except FileNotFoundError:
            raise ManifestError(f"unknown kind {kind} ({api_version}): Kubernetes {KUBERNETES} has none") from None
    return jsonschema.Draft202012Validator(schema, registry=_registry())


def _short(api_version: str) -> str:
    """rbac.authorization.k8s.io/v1 -> rbac-v1, as the schemas' files are called."""
    group, _, version = api_version.partition("/")
    return f"{group.partition('.')[0]}-{version}"


def _custom_schema(api_version: str, kind: str) -> Any:
    group, _, version = api_version.partition("/")
    if not CRDS.is_dir():
        pytest.skip(f"no CRDs here ({CRDS}); run `make crds`")
    found: dict[str, list[str]] = {}
    for path in [*CRDS.glob(f"{group}_*.yaml"), *EXCERPTS.glob(f"{group}_*.yaml")]:
        # The plural, lower case, starts as the kind does, but for "y" -> "ies": enough not to parse every file of a
        # group.
        if not path.stem.partition("_")[2].startswith(kind.lower().removesuffix("y")):
            continue
        crd = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)["spec"]
        versions = {item["name"]: item["schema"]["openAPIV3Schema"] for item in crd["versions"] if item["served"]}
        if crd["names"]["kind"] == kind and version in versions:
            schema = _strict(versions[version])
            schema["properties"]["metadata"] = {"$ref": f"/api/_definitions.json#/$defs/{_OBJECT_META}"}
            schema["$id"] = f"https://kubernetes.io/api/{group}-{version}-{kind}.json"
            return schema
        found[crd["names"]["kind"]] = sorted(versions)
    raise ManifestError(f"unknown kind {kind} ({api_version}): the CRDs of {group} here have {found or 'no such kind'}")


def _strict(schema: Any) -> Any:
    """The schema with unknown fields refused, and Kubernetes' own extensions understood."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"], **({"pattern": schema["pattern"]} if "pattern" in schema else {})}
    made = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and isinstance(schema.get("type"), str):
        if schema.get("x-kubernetes-embedded-resource"):
            return {"type": "object"}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        made["type"] = [schema["type"], "null"]
    return made


def _read(name: str) -> Any:
    return kubernetes_validate.utils.schema_contents(f"{_SCHEMAS}/{name}", KUBERNETES)


@lru_cache(maxsize=1)
def _registry() -> Registry:
    definitions = copy.deepcopy(_read("_definitions.json"))
    definitions["$defs"][_QUANTITY] = {"type": ["string", "number"], "pattern": f"^{QUANTITY}$"}
    return Resource.from_contents(definitions) @ Registry()
