"""Progress where there is no terminal: lines with rate and time left."""

from reasongenrm import progress


def test_last_unit_prints_done_rate_and_figures(capsys):
    with progress.track("train_sft", total=4, unit="step") as tracker:
        tracker.advance(3)
        tracker.advance(1, loss=0.25)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train_sft: 4/4 step")
    assert "step/s" in lines[0]
    assert lines[0].endswith("loss 0.25")


def test_units_of_an_earlier_run_count_as_done_but_not_in_the_rate(capsys, monkeypatch):
    clock = iter([0.0, 5.0, 20.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock, 20.0))
    with progress.track("distill", total=100, unit="reason") as tracker:
        tracker.start_at(60)
        tracker.advance(20)
    assert capsys.readouterr().out.splitlines() == ["distill: 80/100 reason  1 reason/s  0:20 left"]


def test_hours_are_shown_as_hours():
    assert progress._clock(3725) == "1:02:05"
    assert progress._clock(65) == "1:05"


def test_items_are_counted_as_they_are_done(capsys):
    assert list(progress.tracked("abc", "train_sft (tokenising)", "example")) == ["a", "b", "c"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("train_sft (tokenising): 3/3 example")
    for item in progress.tracked("abc", "train_sft (tokenising)", "example"):
        if item == "b":
            break
    assert capsys.readouterr().out == "", "the last one was not done"
