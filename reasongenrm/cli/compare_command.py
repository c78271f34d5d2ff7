"""compare: judges held against each other on the same rows."""

from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from reasongenrm.cli.console import print_note
from reasongenrm.cli.settings import DEFAULT_STORE, StoreOption
from reasongenrm.cli.table_formats import FormatOption, print_as

if TYPE_CHECKING:
    from reasongenrm.evaluation.comparison import DifferingRow, JudgeComparison


def compare(
    evaluations: Annotated[
        list[str],
        Argument(metavar="A B ...", help="RUN/VARIANT, RUN (all variants), a folder of `evaluate -o`, or s3://..."),
    ],
    rows: Annotated[bool, Option("--rows", help="List the rows on which they differ, instead of the figures.")] = False,
    kind: FormatOption = "table",
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Compare judges on the same rows: each against the first, with intervals and exact McNemar tests.

    "better" and "worse" count the rows on which a judge is right more or less often than the first, over both orders.

    [bold]Examples[/bold]

      reasongenrm compare 20261123-074612-3f2a

      reasongenrm compare 20261123-074612-3f2a/sft 20261124-101500-91c0/sft --rows

      reasongenrm compare my-judge-report another-report --format latex
    """
    from reasongenrm.evaluation.comparison import compare_judges
    from reasongenrm.runs.evaluated import find_evaluations

    found = compare_judges(find_evaluations(evaluations, store))
    (columns, cells), records = (
        (_row_cells(found), _row_records(found)) if rows else (_judge_cells(found), _judge_records(found))
    )
    print_as(kind, columns, cells, records, found.model_dump(mode="json"))
    if kind == "table":
        differing = f"{len(found.rows):,} of {found.num_rows:,} rows of {found.benchmark}"
        letters = (
            "per judge: accuracy, then its verdicts with the better answer first and second: AB is right"
            if rows
            else "--rows lists them"
        )
        print_note(f"the judges differ on {differing}; {letters}")


def _judge_cells(found: "JudgeComparison") -> tuple[list[str], list[list[str]]]:
    from reasongenrm.cli.views import percent

    interval = f"{found.confidence:.0%} interval"
    columns = [
        "judge",
        "accuracy",
        interval,
        "difference",
        interval,
        "better",
        "worse",
        "McNemar p",
        "consistent",
        "unparsed",
    ]
    cells = []
    for judge in found.judges:
        difference, test = judge.difference, judge.test
        against = ["", "", "", "", ""]
        if difference and test:
            low, high = (f"{100 * end:+.1f}" for end in (difference.interval.low, difference.interval.high))
            points = f"{100 * difference.accuracy:+.1f}"
            against = [points, f"{low} to {high}", str(test.num_better), str(test.num_worse), f"{test.p_value:.2g}"]
        accuracy = [percent(judge.accuracy), f"{percent(judge.interval.low)}-{percent(judge.interval.high)}"]
        others = [percent(judge.consistent_fraction), percent(judge.unparsed_fraction)]
        cells.append([judge.name, *accuracy, *against, *others])
    return columns, cells


def _judge_records(found: "JudgeComparison") -> list[dict[str, Any]]:
    return [
        {
            "judge": judge.name,
            "model": judge.model,
            "accuracy": judge.accuracy,
            "accuracy_low": judge.interval.low,
            "accuracy_high": judge.interval.high,
            "difference": judge.difference and judge.difference.accuracy,
            "difference_low": judge.difference and judge.difference.interval.low,
            "difference_high": judge.difference and judge.difference.interval.high,
            "num_better": judge.test and judge.test.num_better,
            "num_worse": judge.test and judge.test.num_worse,
            "p_value": judge.test and judge.test.p_value,
            "consistent_fraction": judge.consistent_fraction,
            "unparsed_fraction": judge.unparsed_fraction,
        }
        for judge in found.judges
    ]


def _row_cells(found: "JudgeComparison") -> tuple[list[str], list[list[str]]]:
    names = [judge.name for judge in found.judges]
    cells = [
        [row.row_id, row.subset, *(f"{row.accuracies[name]:g} {_letters(row, name)}" for name in names)]
        for row in found.rows
    ]
    return ["row", "subset", *names], cells


def _row_records(found: "JudgeComparison") -> list[dict[str, Any]]:
    names = [judge.name for judge in found.judges]
    return [
        {
            "row_id": row.row_id,
            "subset": row.subset,
            **{f"{name} {what}": value for name in names for what, value in _row_record(row, name).items()},
        }
        for row in found.rows
    ]


def _row_record(row: "DifferingRow", name: str) -> dict[str, Any]:
    verdicts = {f"verdict_{order}": verdict for order, verdict in row.verdicts[name].items()}
    return {"accuracy": row.accuracies[name], **verdicts}


def _letters(row: "DifferingRow", name: str) -> str:
    """The letters of a judge's verdicts, "-" for none: "AB" is right in both orders, "BA" wrong in both."""
    return "".join(verdict[2] if verdict else "-" for verdict in row.verdicts[name].values())
