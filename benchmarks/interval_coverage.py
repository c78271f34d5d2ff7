"""How often do our intervals hold the truth?

    python -m benchmarks intervals [--simulations 1000] [--seed 0]

Rows are judged in both orders, so a row's accuracy is 0, 1/2 or 1. With probability `agreement` the second order ends
like the first, else it is drawn again; either is right with probability p. Three parts: the accuracy of one subset, the
mean of several subsets, the paired difference of two judges that find the same rows hard. Each cell is the share of
simulations whose 95 % interval holds the true value. No model, no network.
"""

from collections.abc import Iterable, Sequence
from itertools import product
from statistics import fmean
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from reasongenrm.evaluation.intervals import mean_interval
from reasongenrm.evaluation.metrics import ACCURACY_BOUNDS, DIFFERENCE_BOUNDS

CONFIDENCE = 0.95
SIZES = (10, 20, 60, 100, 500)
ACCURACIES = (0.5, 0.8, 0.95, 0.983, 1.0)
AGREEMENTS = (0.5, 0.9, 1.0)
PAIRS = ((0.8, 0.8), (0.95, 0.8), (0.95, 0.95), (0.983, 0.95), (1.0, 0.95), (1.0, 1.0))
SUBSETS = {  # rows of each subset and by how much its accuracy is off; subsets weigh alike
    "10 of 10": ((10,) * 10, (0.0,) * 10),
    "23 of 3": ((3,) * 23, (0.0,) * 23),
    "10 and 500": ((10, 500), (0.0, -0.15)),
    "500 and 10": ((500, 10), (0.0, -0.15)),
    "5, 10, 30, 100": ((5, 10, 30, 100), (0.0, -0.05, -0.1, -0.25)),
}

Rows = NDArray[np.float64]


def subset_coverage(num_rows: int, p: float, agreement: float, simulations: int, rng: np.random.Generator) -> float:
    """Of the accuracy of one subset."""
    return weighted_coverage([num_rows], [p], agreement, simulations, rng)


def weighted_coverage(
    num_rows: Sequence[int], p: Sequence[float], agreement: float, simulations: int, rng: np.random.Generator
) -> float:
    """Of the plain mean over subsets with these numbers of rows and accuracies."""
    weights = [1 / len(num_rows)] * len(num_rows)
    drawn = [
        _rows(rng.random((simulations, n)), of_subset, agreement, rng) for n, of_subset in zip(num_rows, p, strict=True)
    ]
    return _held(zip(*drawn, strict=True), weights, fmean(p), ACCURACY_BOUNDS)


def paired_coverage(
    num_rows: int, p: tuple[float, float], shared: float, agreement: float, simulations: int, rng: np.random.Generator
) -> float:
    """Of the difference of two judges; on a share of the rows they go by the same draw."""
    ours = rng.random((simulations, num_rows))
    theirs = np.where(rng.random(ours.shape) < shared, ours, rng.random(ours.shape))
    differences = _rows(ours, p[0], agreement, rng) - _rows(theirs, p[1], agreement, rng)
    return _held(([rows] for rows in differences), [1.0], p[0] - p[1], DIFFERENCE_BOUNDS)


def _rows(first: Rows, p: float, agreement: float, rng: np.random.Generator) -> Rows:
    """Accuracies of rows: the mean of an order that is right where `first` is below p, and a second one."""
    right = first < p
    again = np.where(rng.random(first.shape) < agreement, right, rng.random(first.shape) < p)
    return (right + again.astype(np.float64)) / 2


def _held(
    groups: Iterable[Sequence[Rows]], weights: Sequence[float], truth: float, bounds: tuple[float, float]
) -> float:
    found = [mean_interval(each, weights, CONFIDENCE, bounds) for each in groups]
    return fmean(one.low - 1e-9 <= truth <= one.high + 1e-9 for one in found)


def main(
    simulations: Annotated[int, typer.Option(min=10, help="Simulated evaluations of each cell.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
) -> None:
    """Coverage of the 95 % intervals of accuracies and of paired differences, in percent."""
    rng = np.random.default_rng(seed)
    console = Console(width=120)
    single = Table("agreement of orders", "rows", *map(str, ACCURACIES), title="One subset, by true accuracy")
    found = {}
    for agreement, n in product(AGREEMENTS, SIZES):
        cells = {p: subset_coverage(n, p, agreement, simulations, rng) for p in ACCURACIES}
        found |= {(agreement, n, p): covered for p, covered in cells.items()}
        single.add_row(f"{agreement:g}", str(n), *(f"{100 * covered:.1f}" for covered in cells.values()))
    console.print(single)
    ordinary = fmean(covered for (_, _, p), covered in found.items() if p <= 0.95)
    console.print(f"least {100 * min(found.values()):.1f} %; mean where the accuracy is at most 0.95: {ordinary:.1%}")
    several = Table("agreement of orders", "subsets", *map(str, ACCURACIES), title="Mean of subsets, by accuracy")
    for agreement, (name, (sizes, off)) in product(AGREEMENTS, SUBSETS.items()):
        cells = {
            p: weighted_coverage(sizes, [p + of_subset for of_subset in off], agreement, simulations, rng)
            for p in ACCURACIES
        }
        several.add_row(f"{agreement:g}", name, *(f"{100 * covered:.1f}" for covered in cells.values()))
    console.print(several)
    paired = Table(
        "agreement of orders", "shared", "rows", *(f"{a:g}, {b:g}" for a, b in PAIRS), title="Paired, by accuracies"
    )
    for agreement, shared, n in product((0.5, 1.0), (0.0, 0.5, 0.9), (10, 60, 500)):
        cells = {p: paired_coverage(n, p, shared, agreement, simulations, rng) for p in PAIRS}
        paired.add_row(f"{agreement:g}", f"{shared:g}", str(n), *(f"{100 * covered:.1f}" for covered in cells.values()))
    console.print(paired)


if __name__ == "__main__":
    typer.run(main)
