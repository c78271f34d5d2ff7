"""Writes the tree of docs/architecture.md: the first docstring line of every folder and module of reasongenrm.

`make docs` runs it; tests/docs/test_tree.py compares.
"""

import ast
import re
import textwrap
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BETWEEN = re.compile(r"(?<=<!-- tree: made by docs/tree.py -->\n```\n).*?(?=```\n<!-- end -->)", re.DOTALL)
WIDTH, COLUMN = 120, 26
# Folders in data-flow order: the layers that `make lint` checks, the lowest first.
LAYERS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"][0]
ORDER = [name.strip() for layer in reversed(LAYERS["layers"]) for name in layer.split("|")]


def phrase(module: Path) -> str:
    """The first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{module} has no docstring; its first line becomes the phrase of the tree in {PAGE.name}")
    return docstring.splitlines()[0].removesuffix(".")


def rows(folder: Path, depth: int = 1) -> list[tuple[str, str]]:
    """(indented name, phrase) of what is in a package: modules by name, then folders in the order of the data flow."""
    modules = sorted(path for path in folder.glob("*.py") if not path.name.startswith("__"))
    found = [("  " * depth + path.name, phrase(path)) for path in modules]
    packages = [path.parent for path in folder.glob("*/__init__.py")]
    for package in sorted(packages, key=lambda path: (ORDER.index(path.name) if depth == 1 else 0, path.name)):
        inside = (
            [] if package.is_symlink() else rows(package, depth + 1)
        )  # components/, pipelines/: at the top of the repository
        found += [("  " * depth + package.name + "/", phrase(package / "__init__.py")), *inside]
    return found


def tree(package: Path) -> str:
    """The tree as text, at most WIDTH columns wide."""
    lines = [(package.name + "/", phrase(package / "__init__.py")), *rows(package)]
    wrap = textwrap.TextWrapper(WIDTH, subsequent_indent=" " * COLUMN, break_on_hyphens=False)
    return "".join(wrap.fill(f"{name:<{COLUMN - 1}} {words}").rstrip() + "\n" for name, words in lines)


def page(text: str) -> str:
    """The page with the tree of now."""
    return BETWEEN.sub(lambda _match: tree(ROOT / "reasongenrm"), text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
