"""Writes the figures of docs/install.md and docs/planning.md, and docs/growth.svg, anew from the shipped points.

    python -m reasongenrm.planning.pages docs

A test compares. A block begins with a comment that says what stands in it, and ends with `<!-- end -->`:

    <!-- computed: the tables of install.md -->
    <!-- computed: the laws of cpu -->
    <!-- computed: reasongenrm plan --pairs 80000 ... -->
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from reasongenrm.planning.chart import chart
from reasongenrm.planning.fit import Law, fit_law
from reasongenrm.planning.plan import CPU
from reasongenrm.planning.points import KINDS, shipped_points
from reasongenrm.planning.tables import install_tables, laws_grid

PAGES = ("install.md", "planning.md")
PICTURE = "growth.svg"
INSTALL_TABLES = "the tables of install.md"
CPU_LAWS = "the laws of cpu"
_BLOCK = re.compile(r"(<!-- computed: (.+?) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def render(page: str) -> str:
    """A page's text with every computed block as it is now."""
    return _BLOCK.sub(lambda block: block[1] + compute(block[2]), page)


def cpu_laws() -> list[Law]:
    """Laws of the CPU, of which every kind was measured at three sizes and more."""
    points = shipped_points()
    return [fit_law(its) for its in (points.of(CPU, kind) for kind in KINDS) if its]


def picture() -> str:
    """Points and laws of the CPU."""
    return chart(cpu_laws())


def compute(what: str) -> str:
    """A block's content: a table, or a command with what it prints.

    Raises:
        ValueError: none of these.
        CalledProcessError: the command failed.
    """
    if what == INSTALL_TABLES:
        return install_tables()
    if what == CPU_LAWS:
        return f"{laws_grid(cpu_laws()).markdown()}\n"
    program, *arguments = shlex.split(what)
    if program != "reasongenrm":
        raise ValueError(
            f"computed block: {what!r}; expected '{INSTALL_TABLES}', '{CPU_LAWS}' or a command of reasongenrm."
        )
    environment = os.environ | {"COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "reasongenrm", *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = "\n".join(line.rstrip() for line in ran.stdout.splitlines())
    return f"```\n$ {what}\n{lines}\n```\n"


if __name__ == "__main__":
    docs = Path(sys.argv[1])
    for name in PAGES:
        (docs / name).write_text(render((docs / name).read_text(encoding="utf-8")), encoding="utf-8")
    (docs / PICTURE).write_text(picture(), encoding="utf-8")
