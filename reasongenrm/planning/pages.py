"""Writes what docs/install.md and docs/planning.md say in figures anew, from the shipped points; a test compares.

    python -m reasongenrm.planning.pages docs/install.md docs/planning.md

A block begins with a comment that says what stands in it, and ends with `<!-- end -->`:

    <!-- computed: the tables of install.md -->
    <!-- computed: reasongenrm plan --pairs 80000 ... -->
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from reasongenrm.planning.tables import install_tables

INSTALL_TABLES = "the tables of install.md"
_BLOCK = re.compile(r"(<!-- computed: (.+?) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def render(page: str) -> str:
    """A page's text with every computed block as it is now."""
    return _BLOCK.sub(lambda block: block[1] + compute(block[2]), page)


def compute(what: str) -> str:
    """A block's content: the tables of install.md, or a command with what it prints.

    Raises:
        ValueError: neither.
        CalledProcessError: the command failed.
    """
    if what == INSTALL_TABLES:
        return install_tables()
    program, *arguments = shlex.split(what)
    if program != "reasongenrm":
        raise ValueError(f"computed block: {what!r}; expected '{INSTALL_TABLES}' or a command of reasongenrm.")
    environment = os.environ | {"COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "reasongenrm", *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = "\n".join(line.rstrip() for line in ran.stdout.splitlines())
    return f"```\n$ {what}\n{lines}\n```\n"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")
