"""Every shell script of the repository is clean for shellcheck, and stops at the first error."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")


def scripts() -> list[str]:
    """Tracked or new files that end in .sh or begin with a shell's shebang."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = []
    for name in listed:
        path = ROOT / name
        if not path.is_file() or path.stat().st_size > 100_000:
            continue
        first = path.read_bytes()[:40].split(b"\n")[0]
        if name.endswith(".sh") or (first.startswith(b"#!") and first.endswith((b"sh", b"bash"))):
            found.append(name)
    return found


def shellcheck(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(SHELLCHECK), "-x", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_script_is_clean() -> None:
    names = scripts()
    assert {"manifests/kind/up.sh", "manifests/kind/e2e.sh", "manifests/kind/down.sh", "manifests/kind/lib.sh"} <= set(
        names
    )
    ended = shellcheck(*names)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("name", ["up.sh", "e2e.sh", "down.sh"])
def test_a_script_stops_at_the_first_error(name: str) -> None:
    assert "\nset -euo pipefail\n" in (ROOT / "manifests" / "kind" / name).read_text(encoding="utf-8")


def test_an_unquoted_variable_would_be_found(tmp_path: Path) -> None:
    source = (ROOT / "manifests" / "kind" / "down.sh").read_text(encoding="utf-8")
    quoted = '--name "$cluster"'
    assert quoted in source
    mutant = tmp_path / "down.sh"
    mutant.write_text(source.replace(quoted, "--name $1"), encoding="utf-8")
    ended = shellcheck(str(mutant))
    assert ended.returncode == 1
    assert "SC2086" in ended.stdout
