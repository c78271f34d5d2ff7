"""Which of the package's extras are installed here, told from metadata alone."""

import importlib.metadata
from typing import TYPE_CHECKING

from reasongenrm.errors import ConfigError

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def require(*extras: str) -> None:
    """See that everything that these extras name is installed.

    Raises:
        ConfigError: something is missing; names it and says how to get it.
    """
    missing = {extra: found for extra in extras if (found := missing_packages(extra))}
    if missing:
        named = "; ".join(f"extra '{extra}': {', '.join(names)}" for extra, names in missing.items())
        raise ConfigError(f"not everything is installed here: {named}. Run: {how_to_install(','.join(missing))}")


def missing_packages(extra: str) -> list[str]:
    """What an extra names and is not installed, as "NAME is missing"."""
    return [f"{requirement.name} is missing" for requirement in _requirements(extra) if _version(requirement) is None]


def unfit_packages(extra: str) -> list[str]:
    """What an extra names and is installed in a version that does not fit."""
    versions = [(requirement, _version(requirement)) for requirement in _requirements(extra)]
    return [
        f"{requirement.name} is {version}, expected {requirement.specifier}"
        for requirement, version in versions
        if version is not None and not requirement.specifier.contains(version, prereleases=True)
    ]


def how_to_install(extras: str) -> str:
    """The command for extras, separated by commas."""
    return f"pip install 'reasongenrm[{extras}]' (in a clone: pip install -e '.[{extras}]')."


def _requirements(extra: str) -> "list[Requirement]":
    from packaging.requirements import Requirement

    requirements = [Requirement(text) for text in importlib.metadata.requires("reasongenrm") or ()]
    return [found for found in requirements if found.marker and found.marker.evaluate({"extra": extra})]


def _version(requirement: "Requirement") -> str | None:
    try:
        return importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return None
