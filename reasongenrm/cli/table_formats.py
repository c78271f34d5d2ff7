"""One table in the forms that people and programs want: --format table, csv, json, latex or md."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from typer import Option, echo

from reasongenrm.cli.console import plain_table, print_json, print_table

TableFormat = Literal["table", "csv", "json", "latex", "md"]
FormatOption = Annotated[
    TableFormat,
    Option("--format", help="csv and json have every digit, as fractions; latex is a tabular, md a Markdown table."),
]
_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


def print_as(
    kind: TableFormat,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    records: Sequence[Mapping[str, Any]],
    value: Any,
) -> None:
    """Print a table on stdout.

    Args:
        columns: headings for people.
        rows: cells for people, as long as `columns`; for table, latex and md.
        records: the same rows with every digit, flat and of the same keys; for csv.
        value: all that there is to say; for json.
    """
    if kind == "json":
        print_json(value)
    elif kind == "table":
        print_table(plain_table(columns, rows))
    else:
        echo(_csv(records) if kind == "csv" else _latex(columns, rows) if kind == "latex" else _markdown(columns, rows))


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    written = io.StringIO()
    writer = csv.DictWriter(written, fieldnames=[*records[0]] if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return written.getvalue().removesuffix("\n")


def _latex(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heading, *body = (" & ".join(map(_latex_text, row)) + r" \\" for row in (columns, *rows))
    start = rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}"
    return "\n".join([start, r"\hline", heading, r"\hline", *body, r"\hline", r"\end{tabular}"])


def _latex_text(text: str) -> str:
    return re.sub(r"[&%$#_{}~^\\]", lambda sign: _LATEX[sign[0]], " ".join(text.split()))


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in row) for row in (columns, *rows)]
    lines.insert(1, " | ".join(["---"] + ["---:"] * (len(columns) - 1)))
    return "\n".join(f"| {line} |" for line in lines)
