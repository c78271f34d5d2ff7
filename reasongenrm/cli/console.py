"""What the commands print: results on stdout, progress and errors on stderr."""

import json
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from reasongenrm.errors import ReasonGenRMError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
_WIDER_THAN_ANY = 100_000  # characters; a row has several addresses of up to 1,024 each


def plain_table(columns: Iterable[str], rows: Iterable[Iterable[str | Text]]) -> Table:
    """Columns without lines between them. A string is text, not markup."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def print_table(table: Table) -> None:
    """A table whole, also where the lines of a narrow terminal or of a log are shorter."""
    needed = table.__rich_measure__(out, out.options.update(width=_WIDER_THAN_ANY)).maximum
    # A console of its own: to set the width of `out` would keep it for all that follows.
    Console(highlight=False, width=max(out.width, needed)).print(table)


def print_line(text: str) -> None:
    """One line on stdout as it is, however long."""
    out.print(Text(text), soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON value on stdout, for programs."""
    out.print(json.dumps(value, indent=2, ensure_ascii=False), markup=False, soft_wrap=True)


def print_error(error: ReasonGenRMError) -> None:
    """The error's message in a panel, on stderr; plain lines where a program reads them."""
    if err.is_terminal:
        err.print(Panel(Text(str(error)), title="error", title_align="left", border_style="red"))
    else:
        err.print(Text(f"error: {error}"), soft_wrap=True)


def print_note(text: str) -> None:
    """One line for people, on stderr."""
    err.print(Text(text), soft_wrap=True)
