"""Parts that all our pods have: a variable with a secret's key, and what Pod Security "restricted" asks for."""

from typing import Any

USER = 65532  # of all our images

POD_SECURITY: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def secret_variable(secret: str, key: str, optional: bool = False) -> dict[str, Any]:
    """A container's variable with the name and the value of a secret's key; an optional one may be missing there."""
    reference = {"name": secret, "key": key, **({"optional": True} if optional else {})}
    return {"name": key, "valueFrom": {"secretKeyRef": reference}}
