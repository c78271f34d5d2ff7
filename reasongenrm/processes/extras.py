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


def no_module(error: ModuleNotFoundError) -> ConfigError | None:
    """What to install for a module that is not there; None if no extra brings it, so that its absence is a defect.

    Packages of our extras are called as their modules are.
    """
    package = (error.name or "").partition(".")[0].replace("_", "-")
    extras = [extra for extra in _extras() if any(found.name == package for found in _requirements(extra))]
    if not extras:
        return None
    named = " or ".join(f"'{extra}'" for extra in extras)
    return ConfigError(
        f"{package} is not installed here; it comes with extra {named}. Run: {how_to_install(extras[0])}"
    )


def how_to_install(extras: str) -> str:
    """The command for extras, separated by commas."""
    return f"pip install 'reasongenrm[{extras}]' (in a clone: pip install -e '.[{extras}]')."


def _extras() -> list[str]:
    return importlib.metadata.metadata("reasongenrm").get_all("Provides-Extra") or []


def _requirements(extra: str) -> "list[Requirement]":
    from packaging.requirements import Requirement

    requirements = [Requirement(text) for text in importlib.metadata.requires("reasongenrm") or ()]
    return [found for found in requirements if found.marker and found.marker.evaluate({"extra": extra})]


def _version(requirement: "Requirement") -> str | None:
    try:
        return importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return None
