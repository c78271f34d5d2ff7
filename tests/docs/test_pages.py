"""Pages name what is there: links and their headings, files, make targets, commands and their options."""

import re
import subprocess
from pathlib import Path

import pytest
import typer

from reasongenrm.cli import app

ROOT = Path(__file__).parents[2]
LISTED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
PAGES = sorted(name for name in LISTED.split() if name != "docs/cli.md")  # that one is made from the commands
FOLDERS = "benchmarks|components|docs|examples|images|manifests|pipelines|reasongenrm|tests"
NOT_THERE = {  # made by a command, placeholders, a rate
    *("images/wheels", "images/NAME", "manifests/overlays/OVERLAY", "manifests/overlays/NAME"),
    *("manifests/third-party/NAME", "examples/s"),
}
MENU = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
# "config show" is a command in a group.
MENU |= {
    f"{group} {name}": one for group, found in MENU.items() for name, one in getattr(found, "commands", {}).items()
}


def read(name: str) -> str:
    """The text of a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def files(text: str) -> set[str]:
    """Files and folders of the repository, by their path from its root."""
    return set(re.findall(rf"(?<![\w/.$(-])((?:{FOLDERS})/[\w./-]*\w)", text)) - NOT_THERE


def targets(text: str) -> set[str]:
    """What is made with make."""
    return set(re.findall(r"(?:`|^|&& )make ([a-z0-9-]+)\b", text, re.MULTILINE))


def commands(text: str) -> list[tuple[str, set[str]]]:
    """Our commands, each with the options that it is shown with."""
    joined = re.sub(r"\\\n\s*", "", text)  # a command over several lines
    groups = "|".join(f"{name} [a-z]+" for name, found in MENU.items() if hasattr(found, "commands"))
    found = re.findall(rf"(?:`|^|/|\$ )reasongenrm ({groups}|[a-z]+(?:-[a-z]+)*)([^`\n|&#;>]*)", joined, re.MULTILINE)
    return [(command, set(re.findall(r"(?<= )--?[a-z][a-z-]*", rest))) for command, rest in found]


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://")):
            path, _, heading = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{name}: {link}"
            assert not heading or heading in anchors(target), f"{name}: {link}; headings: {sorted(anchors(target))}"


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_are_there(name: str) -> None:
    assert [path for path in files(read(name)) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", PAGES)
def test_make_targets_are_there(name: str) -> None:
    makefile = read("Makefile")
    assert [target for target in targets(read(name)) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def test_make_lists_what_users_need_first() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    users, developers = (re.findall(r"^  make (\S+)", part, re.MULTILINE) for part in shown.split("To change it:"))
    assert users[:5] == ["demo", "serve", "web", "install", "test"]
    assert {"lint", "lock", "docs", "compile", "bench"} <= set(developers)
    assert not set(users) & set(developers)
    described = re.findall(r"^([a-z0-9-]+):.*##", read("Makefile"), re.MULTILINE)
    assert sorted(users + developers) == sorted(described)


@pytest.mark.parametrize("name", PAGES)
def test_commands_have_the_options_that_are_shown(name: str) -> None:
    for command, options in commands(read(name)):
        assert command in MENU, f"{name}: reasongenrm {command}"
        known = {option for parameter in MENU[command].params for option in parameter.opts} | {"--help"}
        assert options <= known, f"{name}: reasongenrm {command} {sorted(options - known)}"


def test_what_is_compared_is_found_on_a_page() -> None:
    page = read("docs/install.md")
    assert {"manifests/overlays/gpu", "manifests/third-party/kserve/crds"} <= files(page)
    assert {"kind-up", "kind-e2e", "kind-down", "images"} <= targets(page)
    assert ("runs", {"--host"}) in commands(page)
    shown = {
        "--host",
        "--wait",
        "--config",
        "--limit",
        "--model",
        "--preferences",
        "--benchmark",
        "--upload",
        "--store",
    }
    assert ("submit", shown) in commands(page)
    assert {"doctor", "rollback", "judge"} <= {command for command, _options in commands(page)}
