"""The winner in Kubeflow Model Registry: a version of the judge, with its origin and its figures.

In go the winner and the gate's decision, out comes what the stage's artifact says about the registration. The judge is
the registered model, a checkpoint one of its versions, and the version's one artifact names the checkpoint's folder. A
version is known by the checkpoint's digest: the same winner again is found, and its properties follow its last
decision.

Source: kubeflow/hub bd07139 (formerly kubeflow/model-registry), api/openapi/model-registry.yaml and internal/core; for
v1 red-hat-data-services/model-registry ba40a36, api/openapi/model-registry-v1.yaml. The Python client 0.3.18 is not
used: it speaks v1 alone, patches asyncio's event loop, and cannot finish a version that it left without an artifact.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import httpx

from reasongenrm.config import DeployConfig
from reasongenrm.deploy.manifest import MODEL_FORMAT
from reasongenrm.errors import ClusterError, ReasonGenRMError
from reasongenrm.evaluation.gate import read_evaluation
from reasongenrm.http_client import AttemptError, Retries, bearer, retry_after_seconds
from reasongenrm.store.artifacts import ArtifactRef, open_artifact
from reasongenrm.variants import variant_label

logger = logging.getLogger(__name__)

TOKEN = "MODEL_REGISTRY_TOKEN"  # a bearer token, for a registry behind an authenticating proxy
RETRIES = Retries(4)  # of one request: 7.5 s in all
_SECONDS = 30.0  # for one answer
_APIS = "/api/model_registry"
# Registries of before mid-2026 have the second alone; later ones have both, and call it deprecated. What we send and
# read is the same in both.
_VERSIONS = ("v1", "v1alpha3")
_DIGITS = 12  # of a digest, in a version's name

_EXPECTED = "Expected the REST API of Kubeflow Model Registry, v1 or v1alpha3: check deploy.model_registry."

Resource = dict[str, Any]


def registration(config: DeployConfig, model: ArtifactRef, decision: ArtifactRef) -> dict[str, Any]:
    """Register the winner in `config.model_registry`.

    A registry that fails takes nothing back: the judge has proven itself without it.

    Returns:
        `registered`; then the model's and the version's names and ids, the artifact's id and the properties, or else
        the `error`, which is in the log as well.
    """
    try:
        return {"registered": True, **anyio.run(_register, config, model, decision)}
    except ReasonGenRMError as error:
        logger.warning(
            "deploy: the winner is not registered: %s All else is done. To register it, run the same command again: "
            "finished work is reused, and a judge that is served already is not deployed twice.",
            error,
        )
        return {"registered": False, "error": str(error)}


async def _register(config: DeployConfig, model: ArtifactRef, decision: ArtifactRef) -> dict[str, Any]:
    assert config.model_registry is not None
    variant = str(decision.metrics["winner"])
    properties = {
        name: _property(value) for name, value in provenance(variant, model, decision).items() if value is not None
    }
    version_name = f"{variant}-{model.digest.removeprefix('sha256:')[:_DIGITS]}"
    about = "A judge of two answers: it writes a reason, then a verdict. Made by ReasonGenRM."
    async with httpx.AsyncClient(
        base_url=config.model_registry, headers=bearer(os.environ.get(TOKEN, ""), TOKEN), timeout=_SECONDS
    ) as client:
        registry = await _Registry.open(client)
        name = {"name": config.name}
        judge = await registry.ensure("registered_model", name, "registered_models", {**name, "description": about})
        version = await registry.ensure(
            "model_version",
            {"name": version_name, "parentResourceId": judge["id"]},
            "model_versions",
            {
                "name": version_name,
                "registeredModelId": judge["id"],
                "description": f"{variant_label(variant)}. {decision.metrics.get('summary', '')}".rstrip(),
                "customProperties": properties,
            },
        )
        # What others have added to a version stays: an update replaces the whole map.
        there = version.get("customProperties", {})
        await registry.bring_up_to_date("model_versions", version, {"customProperties": {**there, **properties}})
        uri = {"uri": model.uri.rstrip("/") + "/"}
        artifact = await registry.ensure(
            "model_artifact",
            {**name, "parentResourceId": version["id"]},
            f"model_versions/{version['id']}/artifacts",
            {
                **name,
                **uri,
                "artifactType": "model-artifact",
                "modelFormatName": MODEL_FORMAT,
                "serviceAccountName": config.service_account,
                "state": "LIVE",
            },
        )
        await registry.bring_up_to_date("model_artifacts", artifact, uri)
    return {
        "registry": config.model_registry,
        "model": config.name,
        "model_id": judge["id"],
        "version": version_name,
        "version_id": version["id"],
        "artifact_id": artifact["id"],
        "properties": properties,
    }


def provenance(variant: str, model: ArtifactRef, decision: ArtifactRef) -> dict[str, str | int | float | None]:
    """Where a winner comes from and how it was judged; fractions in [0, 1].

    Raises:
        StoreError: an artifact on the way is not there any more.
        InputError: the evaluation is of another version.
    """
    made = base = open_artifact(model)
    while "model" in base.input_uris:
        base = open_artifact(base.input_uris["model"])
    evaluation_uri = open_artifact(decision).input_uris[f"evaluation_{variant}"]
    found = read_evaluation(evaluation_uri)
    return {
        "variant": variant,
        "digest": model.digest,
        "base_model": base.metrics.get("source"),
        "base_model_revision": base.metrics.get("revision"),  # of the hub; None for a model from elsewhere
        "base_model_digest": base.digest,
        "decision": decision.uri,
        "evaluation": evaluation_uri,
        "accuracy": found.accuracy,
        "accuracy_low": found.interval.low,
        "accuracy_high": found.interval.high,
        "accuracy_confidence": found.confidence,
        "consistent_fraction": found.consistent_fraction,
        "unparsed_fraction": found.unparsed_fraction,
        "benchmark": found.benchmark.uri,
        "benchmark_digest": found.benchmark.digest,
        "benchmark_rows_digest": found.benchmark.rows_digest,
        "num_benchmark_rows": found.benchmark.num_rows,
        "code_version": made.code_version,
        "source_sha256": made.source_sha256,
    }


def _property(value: str | int | float) -> dict[str, Any]:
    """A value as the registry's MetadataValue; integers travel as text."""
    kind = {str: "string", int: "int", float: "double"}[type(value)]
    return {"metadataType": f"Metadata{kind.title()}Value", f"{kind}_value": str(value) if kind == "int" else value}


class _PassingError(AttemptError):
    """No answer, or one that says to come back."""

    def __init__(self, what: str, after: float | None = None) -> None:
        super().__init__(what)
        self.brief, self.retry_after_seconds = what, after


@dataclass(frozen=True)
class _Registry:
    """Requests to one registry; paths are relative to its API."""

    client: httpx.AsyncClient
    version: str  # of the API

    @classmethod
    async def open(cls, client: httpx.AsyncClient) -> "_Registry":
        """Find out which version of the API the registry has."""
        newest = cls(client, _VERSIONS[0])
        listed = await newest._request("GET", "registered_models", params={"pageSize": "1"})
        return newest if listed is not None else cls(client, _VERSIONS[1])

    async def ensure(self, find: str, params: Mapping[str, str], create: str, body: Resource) -> Resource:
        """The resource that `params` find, created if there is none."""
        found = await self._request("GET", find, params=params)
        if found is None:
            # Refused where another run, or an attempt whose answer was lost, has just created it.
            found = await self._request("POST", create, body=body) or await self._request("GET", find, params=params)
        if found is None or not isinstance(found.get("id"), str):
            said = "no id" if found else "neither made nor found"
            raise ClusterError(f"{self._where('POST', create)}: {find} {params['name']!r}: {said}. {_EXPECTED}")
        return found

    async def bring_up_to_date(self, path: str, there: Resource, fields: Resource) -> None:
        """Write the fields that are others than those there."""
        path = f"{path}/{there['id']}"
        changed = {name: value for name, value in fields.items() if there.get(name) != value}
        if changed and await self._request("PATCH", path, body=changed) is None:
            raise ClusterError(f"{self._where('PATCH', path)}: was there a moment ago, and is not now. {_EXPECTED}")

    async def _request(
        self, method: str, path: str, *, params: Mapping[str, str] = {}, body: Resource | None = None
    ) -> Resource | None:
        """The answer's JSON object; None: there is no such thing (404), or there is one already (409)."""
        where, retry = self._where(method, path), RETRIES.retrying(_PassingError, logger)
        try:
            response: httpx.Response = await retry(self._once, where, method, path, params, body)
        except _PassingError as error:
            raise ClusterError(f"{error}, also when retried. Is deploy.model_registry up, and in reach?") from error
        if response.status_code in (404, 409):
            return None
        if not response.is_success:
            advice = f"Set {TOKEN} to a token that may write." if response.status_code in (401, 403) else _EXPECTED
            raise ClusterError(f"{where}: HTTP {response.status_code}: {_said(response)}. {advice}")
        found = _json(response)
        if not isinstance(found, dict):
            raise ClusterError(f"{where}: the answer is no JSON object: {_said(response)}. {_EXPECTED}")
        return found

    def _where(self, method: str, path: str) -> str:
        return f"Model Registry {self.client.base_url}: {method} {_APIS}/{self.version}/{path}"

    async def _once(
        self, where: str, method: str, path: str, params: Mapping[str, str], body: Resource | None
    ) -> httpx.Response:
        try:
            response = await self.client.request(method, f"{_APIS}/{self.version}/{path}", params=params, json=body)
        except httpx.RequestError as error:
            raise _PassingError(f"{where}: no answer ({type(error).__name__}: {error})") from error
        if response.status_code == 429 or response.status_code >= 500:
            after = retry_after_seconds(response.headers.get("retry-after"))
            raise _PassingError(f"{where}: HTTP {response.status_code}: {_said(response)}", after)
        return response


def _json(response: httpx.Response) -> Any:
    """The answer's JSON; None if it is none."""
    try:
        return response.json()
    except ValueError:
        return None


def _said(response: httpx.Response) -> str:
    """The registry's own words, or the beginning of what else came."""
    found = _json(response)
    words = found.get("message") if isinstance(found, dict) else None
    return str(words).rstrip(".") if words else repr(response.text[:200])
