"""Recomputes what commands print in docs/install.md and docs/planning.md.

`make docs` runs it; tests/docs/test_recompute.py compares. A block begins with the command that gives it, and ends with
`<!-- end -->`:

    <!-- computed: reasongenrm plan --pairs 80000 ... -->
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("install.md", "planning.md")
BLOCK = re.compile(r"(<!-- computed: (.+?) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def recomputed(page: str) -> str:
    """A page's text with every computed block as it is now."""
    return BLOCK.sub(lambda block: block[1] + compute(block[2]), page)


def compute(command: str) -> str:
    """A block's content: the command and what it prints, run from the repository's root.

    Raises:
        ValueError: it is not a command of reasongenrm.
        CalledProcessError: the command failed.
    """
    program, *arguments = shlex.split(command)
    if program != "reasongenrm":
        raise ValueError(f"computed block: {command!r}; expected a command of reasongenrm.")
    environment = os.environ | {"COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1"}
    run = [sys.executable, "-m", "reasongenrm", *arguments]
    ran = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    lines = "\n".join(line.rstrip() for line in ran.stdout.splitlines())
    return f"```\n$ {command}\n{lines}\n```\n"


if __name__ == "__main__":
    for name in PAGES:
        path = ROOT / "docs" / name
        path.write_text(recomputed(path.read_text(encoding="utf-8")), encoding="utf-8")
