"""How a run looks: in a log line by line, on a terminal with a living last line."""

import io

import pytest
from rich.console import Console

from reasongenrm.cli.views import ConsoleRunView, clock
from reasongenrm.store.artifacts import ArtifactRef
from reasongenrm.store.run_records import TaskRecord


def task(name: str, reused: bool, **counts: int) -> TaskRecord:
    ref = ArtifactRef(stage="s", key="k", digest="d", uri="s3://b/s", counts=counts)
    return TaskRecord(name=name, seconds=4.24, reused=reused, ref=ref)


def play(console: Console) -> None:
    view = ConsoleRunView(console)
    with view.live():
        view.task_started("distill_reasons", 3, 17)
        view.task_line("distill_reasons: 5/16 reason  2.1 reason/s  0:05 left")
        view.task_line("distill_reasons: dropped 4: [bold]duplicate[/bold]")
        view.task_line("distill_reasons: wrote s3://b/distill_reasons/k")
        view.task_ended(task("distill_reasons", False, num_in=1600, num_out=12, num_dropped_duplicate=4))
        view.task_started("deploy_kserve", 4, 17)
        view.task_ended(task("deploy_kserve", True))


def test_log_has_every_line_in_order_and_nothing_twice() -> None:
    out = io.StringIO()
    play(Console(file=out, width=60))
    assert out.getvalue().splitlines() == [
        "[ 3/17] distill_reasons",
        "          distill_reasons: 5/16 reason  2.1 reason/s  0:05 left",
        "          distill_reasons: dropped 4: [bold]duplicate[/bold]",
        "[ 3/17] + distill_reasons: done in 4.2 s; 1,600 in, 12 out",
        "[ 4/17] deploy_kserve",
        "[ 4/17] = deploy_kserve: reused",
    ]


def test_terminal_shows_progress_in_its_last_line_and_leaves_the_rest() -> None:
    out = io.StringIO()
    play(Console(file=out, width=120, force_terminal=True, color_system=None))
    text = out.getvalue()
    assert "[ 3/17] distill_reasons" in text
    assert "5/16 reason  2.1 reason/s  0:05 left" in text
    assert "distill_reasons: 5/16" not in text
    assert "dropped 4: [bold]duplicate[/bold]" in text
    assert "[ 3/17] + distill_reasons: done in 4.2 s; 1,600 in, 12 out" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.24, "4.2 s"), (59.9, "59.9 s"), (187, "3:07 min"), (3723, "1:02:03 h"), (3599.6, "1:00:00 h")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert clock(seconds) == text
