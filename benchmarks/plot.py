"""The results as one picture: tokens/s and MFU of every way, ours in green, with its ratio to each peer."""

import matplotlib
from matplotlib.figure import Figure

from benchmarks.figures import OURS, Part, Report

TITLES = {
    "sft": "SFT, tokens/s",
    "dpo": "DPO, tokens/s of the plain method",
    "scoring": "Scoring, tokens/s, each prompt once",
}
GREEN, GREY = "#1a7f37", "#8c959f"
WIDTH, HEAD, PART, WAY = 9.0, 0.7, 0.6, 0.28  # inches

matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text


def draw(report: Report) -> Figure:
    """The picture of a report's measured parts, one below the other."""
    parts = [part for part in report.parts if part.ways]
    heights = [PART + WAY * len(part.ways) for part in parts]
    figure = Figure(figsize=(WIDTH, HEAD + sum(heights)), layout="constrained")
    machine = report.machine
    processes = f"{machine.num_processes} x " if machine.num_processes > 1 else ""
    peak = f"{processes}{machine.device}, measured peak {machine.peak_tflops:,.4g} TFLOP/s ({machine.peak_how})"
    figure.suptitle(f"Speed in one run\n{peak}", fontsize="medium")
    if parts:
        axes = figure.subplots(len(parts), 2, squeeze=False, width_ratios=(2, 1), height_ratios=heights)
        for part, (rates, mfu) in zip(parts, axes, strict=True):
            _bars(part, rates, mfu)
    return figure


def _bars(part: Part, rates: matplotlib.axes.Axes, mfu: matplotlib.axes.Axes) -> None:
    """A part's ways as bars; one that was not measured has its reason instead."""
    ratios = {ratio.peer: f"   ours is {ratio.ratio:.2f} x" for ratio in part.ratios}
    for place, way in enumerate(part.ways):
        colour = GREEN if way.name == OURS else GREY
        if way.measured is None:
            rates.text(0, place, f" {way.status}: {way.message}"[:70], va="center", fontsize="small")
            continue
        rate = way.measured.tokens_per_second
        label = f" {rate:,.0f}{ratios.get(way.name, '')}"
        rates.bar_label(rates.barh(place, rate, color=colour), [label], fontsize="small")
        mfu.bar_label(mfu.barh(place, way.measured.mfu, color=colour), [f" {way.measured.mfu:.1%}"], fontsize="small")
    title = f"{TITLES[part.part]}: {part.shape}, {part.num_parameters / 1e6:,.4g}M, {part.dtype}"
    rates.set_title(title, fontsize="small", loc="left")
    mfu.set_title("MFU", fontsize="small", loc="left")
    for axes in (rates, mfu):
        axes.set(ylim=(len(part.ways) - 0.5, -0.5), yticks=[], xticks=[])
        axes.margins(x=0.6)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    rates.set_yticks(range(len(part.ways)), [way.name for way in part.ways])
    mfu.set_xlim(0, 1.3)
