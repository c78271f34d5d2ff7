"""Bradley-Terry: comparisons of pairs to one score per item, so that weak and strong opponents count as such.

Source: Bradley and Terry, Rank Analysis of Incomplete Block Designs, Biometrika 39 (1952). An outcome may be a
probability instead of 0 or 1; the maximum is found by Newton's method.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

# Precision of a normal prior of mean 0 on each strength, in logits. It keeps strengths finite when every outcome is 0
# or 1, and sets items that no comparisons connect side by side. After a whole sort it must not be felt: at 0.01 the
# scores of a judge without noise lose their tau of 1. After a part of a sort it may: items that met few others stay
# near the middle. Figures: docs/judge.md, `python -m benchmarks list-scores`.
PRIOR_PRECISION = 1e-6
PRIOR_PRECISION_OF_A_PART = 1e-2
GRADIENT_TOLERANCE = 1e-10
MAX_NEWTON_STEPS = 200


def expected_scores(num_items: int, outcomes: Iterable[tuple[int, int, float]], *, is_whole: bool) -> list[float]:
    """Score every item by the probability of winning against another one drawn from the list.

    score_i = mean over j != i of sigmoid(strength_i - strength_j), at the strengths that maximise
    sum over outcomes of p log sigmoid(strength_i - strength_j) + (1 - p) log sigmoid(strength_j - strength_i), less
    half the prior's precision times the sum of their squares.

    Args:
        num_items: n >= 2.
        outcomes: (i, j, p): item i was compared with item j and is the better one with probability p in [0, 1].
        is_whole: the outcomes order the items: each was compared with its neighbours.

    Returns:
        n numbers in [0, 1], to nine digits; their mean is 0.5. All are 0.5 without outcomes.
    """
    prior_precision = PRIOR_PRECISION if is_whole else PRIOR_PRECISION_OF_A_PART
    strengths_N = _strengths(num_items, list(outcomes), prior_precision)
    wins_NN = _sigmoid(strengths_N[:, None] - strengths_N[None, :])
    # Without its 0.5 against itself. Nine digits: equal strengths must not differ by the last bit.
    return [round(float(score), 9) for score in (wins_NN.sum(axis=1) - 0.5) / (num_items - 1)]


def _strengths(num_items: int, outcomes: list[tuple[int, int, float]], prior_precision: float) -> NDArray[np.float64]:
    """Legend: M outcomes, N items. The loss is strictly convex, so halved Newton steps reach its one minimum."""
    design_MN = np.zeros((len(outcomes), num_items))
    for place, (first, second, _) in enumerate(outcomes):
        design_MN[place, first], design_MN[place, second] = 1.0, -1.0
    p_M = np.array([p for _, _, p in outcomes])
    prior_NN = prior_precision * np.eye(num_items)

    def loss(strengths_N: NDArray[np.float64]) -> float:
        logits_M = design_MN @ strengths_N
        return float(
            np.sum(np.logaddexp(0, logits_M) - p_M * logits_M) + prior_precision / 2 * strengths_N @ strengths_N
        )

    strengths_N = np.zeros(num_items)
    for _ in range(MAX_NEWTON_STEPS):
        fitted_M = _sigmoid(design_MN @ strengths_N)
        gradient_N = design_MN.T @ (fitted_M - p_M) + prior_precision * strengths_N
        if np.abs(gradient_N).max() < GRADIENT_TOLERANCE:
            break
        hessian_NN = design_MN.T @ ((fitted_M * (1 - fitted_M))[:, None] * design_MN) + prior_NN
        step_N = np.linalg.solve(hessian_NN, gradient_N)
        before = loss(strengths_N)
        while loss(strengths_N - step_N) > before and np.abs(step_N).max() > GRADIENT_TOLERANCE:
            step_N /= 2
        strengths_N = strengths_N - step_N
    return strengths_N


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0, -x))
