"""The house rules that a reader relies on: one noun, one file, one class name; few modules at the top; two names not
taken."""

import ast
from collections import defaultdict
from pathlib import Path
from zipfile import ZipFile

import pytest
from setuptools import build_meta

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "reasongenrm"
MODULES = sorted(PACKAGE.rglob("*.py"))


def repeated(places: list[tuple[str, Path]]) -> dict[str, list[str]]:
    """Names that stand in more than one file, each with its files."""
    found = defaultdict(set)
    for name, path in places:
        found[name].add(path.relative_to(ROOT).as_posix())
    return {name: sorted(paths) for name, paths in found.items() if len(paths) > 1}


def public_classes(path: Path) -> list[str]:
    """Classes and type aliases at a module's top level."""
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name) and is_class_like(target.id)]
    return [name for name in names if not name.startswith("_")]


def is_class_like(name: str) -> bool:
    """CamelCase, as classes and type aliases are; constants are all capitals."""
    return name[0].isupper() and not name.isupper() and len(name) > 1


def test_no_two_modules_have_one_name() -> None:
    assert repeated([(path.name, path) for path in MODULES if path.name != "__init__.py"]) == {}


def test_no_two_public_classes_have_one_name() -> None:
    assert repeated([(name, path) for path in MODULES for name in public_classes(path)]) == {}


def test_repetition_is_seen() -> None:
    assert repeated([("Order", ROOT / "a.py"), ("Order", ROOT / "b.py"), ("Pair", ROOT / "a.py")]) == {
        "Order": ["a.py", "b.py"]
    }
    assert "Drops" in public_classes(PACKAGE / "records.py")


def test_top_of_the_package_holds_the_vocabulary_alone() -> None:
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == [
        "__init__",
        "__main__",
        "config",
        "errors",
        "http_client",
        "progress",
        "records",
        "variants",
    ]


def test_wheel_takes_no_name_but_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders components/ and pipelines/ are installed below reasongenrm: their names are too common for
    site-packages."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "reasongenrm", "components", "pipelines"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    name = build_meta.build_wheel(str(tmp_path))
    with ZipFile(tmp_path / name) as wheel:
        files = wheel.namelist()
    assert {file.partition("/")[0] for file in files} == {"reasongenrm", f"{name.partition('-py3')[0]}.dist-info"}
    assert "reasongenrm/pipelines/configs/demo.yaml" in files
    assert "reasongenrm/components/images/kustomization.yaml" in files
    assert "reasongenrm/data/chat_templates/turns.jinja" in files
