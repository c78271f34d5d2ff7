"""Maps the judge's probabilities to frequencies: Platt scaling, fitted on labelled judgments.

In go P([[A]]) of single judgments and whether A was the better answer *in the same prompt*; out comes a map with two
numbers, kept in the checkpoint's folder as judge_calibration.json. The service applies it to every order's probability
before it averages over the orders: so the bias is the judge's liking of the first place, and it is taken out.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from reasongenrm.errors import validated
from reasongenrm.records import CALIBRATION_FILE, Record

NUM_BINS = 10  # of the expected calibration error, equally wide, as in Guo et al. 2017, section 2
NUM_FOLDS = 5
MAX_TEMPERATURE = 100.0  # a judge whose probabilities say nothing, or the contrary, is all but ignored, never inverted
_SMALLEST_P = 1e-6  # one saturated probability must not decide the fit
_MAX_STEPS = 100
_TOLERANCE = 1e-10
Values = Sequence[float] | np.ndarray


class PlattScaling(Record):
    """P -> sigmoid(logit(P) / temperature + bias)."""

    temperature: float = Field(gt=0)  # above 1 the judge was too sure
    bias: float = 0.0  # added log-odds of the answer that the prompt names A

    def apply(self, p: float) -> float:
        """The calibrated probability, in (0, 1), of one judgment's P([[A]]) in [0, 1]."""
        return float(_apply(np.array([p]), self.temperature, self.bias)[0])


class Calibration(PlattScaling):
    """A fitted map, and what it was worth."""

    num_judgments: int = Field(ge=1)  # that it was fitted on
    nll_before: float  # mean negative log-likelihood of the labels, in nats, before
    nll_after: float  # the same after; of judgments that the map was not fitted on, if it was cross-validated
    ece_before: float  # expected calibration error before, in [0, 1]
    ece_after: float  # the same after, as for nll_after
    cross_validated: bool = False  # whether the two "after" are of held-out judgments
    model_digest: str | None = None  # of the judge that was calibrated, if known


def fit(p: Sequence[float], is_a_better: Sequence[bool], groups: Sequence[str] | None = None) -> Calibration:
    """Fit the map to labelled judgments, and measure it on judgments that were held out of a fit.

    Minimises the negative log-likelihood by Newton's method over the slope 1/temperature and the bias. The labels are
    smoothed to (N+ + 1)/(N+ + 2) and 1/(N- + 2), so that judgments without an error do not make the slope infinite.

    Args:
        p: P([[A]]) of each judgment in its own prompt's terms, in [0, 1].
        is_a_better: whether the answer that this prompt named A was the better one; no ties.
        groups: what a judgment belongs to (its pair): one group's judgments are always held out together, for the two
            orders of a pair are no independent evidence. Groups are dealt to NUM_FOLDS folds, or to as many as there
            are groups, in the order of their names. None: the "after" figures are those of the fitted judgments.

    Raises:
        ValueError: the arguments differ in length, are empty, a probability is outside [0, 1], or there is one group.

    Source: Platt 1999, "Probabilistic outputs for support vector machines"; on the logit, so that a temperature alone
    (Guo et al. 2017, section 4.2) is the map with bias 0.
    """
    p_J, labels_J = _checked(p, is_a_better)
    temperature, bias = _fit(p_J, labels_J)
    if groups is None:
        after_J = _apply(p_J, temperature, bias)
    else:
        after_J = np.empty_like(p_J)
        fold_J = _folds(groups, len(p_J))
        for fold in np.unique(fold_J):
            held = fold_J == fold
            after_J[held] = _apply(p_J[held], *_fit(p_J[~held], labels_J[~held]))
    return Calibration(
        temperature=temperature,
        bias=bias,
        num_judgments=len(p_J),
        nll_before=negative_log_likelihood(p_J, labels_J),
        nll_after=negative_log_likelihood(after_J, labels_J),
        ece_before=expected_calibration_error(p_J, labels_J),
        ece_after=expected_calibration_error(after_J, labels_J),
        cross_validated=groups is not None,
    )


def negative_log_likelihood(p: Values, is_a_better: Values) -> float:
    """Mean of -log P(label), in nats, >= 0; log 2 = 0.693 is a coin's. Probabilities are kept 1e-6 from 0 and 1."""
    p_J, labels_J = _checked(p, is_a_better)
    return float(-np.log(np.where(labels_J == 1, _inside(p_J), 1 - _inside(p_J))).mean())


def expected_calibration_error(p: Values, is_a_better: Values) -> float:
    """Mean distance, in [0, 1], of the probability from the frequency over equally wide bins, by their judgments.

    ECE = sum over bins of (n_bin / n) |mean p - mean label|; the last bin has 1.0. Of P([[A]]), not of the winner's.
    """
    p_J, labels_J = _checked(p, is_a_better)
    bin_J = np.minimum((p_J * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = [abs(float((p_J[bin_J == b] - labels_J[bin_J == b]).sum())) for b in np.unique(bin_J)]
    return math.fsum(gaps) / len(p_J)


def load_calibration(folder: Path) -> Calibration | None:
    """The calibration in a checkpoint's folder; None if there is none.

    Raises:
        InputError: the file holds no calibration.
    """
    path = folder / CALIBRATION_FILE
    if not path.is_file():
        return None
    with validated(f"{path}: holds no calibration", "what an evaluation writes. Copy it again, or remove it."):
        return Calibration.model_validate_json(path.read_bytes())


def save_calibration(calibration: Calibration, folder: Path) -> Path:
    """Write a calibration into a checkpoint's folder; returns its path."""
    path = folder / CALIBRATION_FILE
    path.write_text(calibration.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


def _checked(p: Values, is_a_better: Values) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of shape (J,), float64; labels are 0.0 or 1.0."""
    if len(p) != len(is_a_better) or len(p) == 0:
        raise ValueError(f"{len(p)} probabilities and {len(is_a_better)} labels; expected as many, at least one.")
    p_J = np.asarray(p, dtype=np.float64)
    if not bool(((p_J >= 0) & (p_J <= 1)).all()):
        raise ValueError(f"probabilities from {p_J.min()} to {p_J.max()}; expected [0, 1].")
    return p_J, np.asarray(is_a_better, dtype=np.float64)


def _folds(groups: Sequence[str], num_judgments: int) -> np.ndarray:
    """The fold of each judgment, shape (J,)."""
    if len(groups) != num_judgments:
        raise ValueError(f"{len(groups)} groups for {num_judgments} judgments; expected one each.")
    names, number_J = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"judgments of {len(names)} pair; expected at least 2, to hold one out. Judge more pairs.")
    return number_J % min(NUM_FOLDS, len(names))


def _inside(p_J: np.ndarray) -> np.ndarray:
    return np.clip(p_J, _SMALLEST_P, 1 - _SMALLEST_P)


def _logit(p_J: np.ndarray) -> np.ndarray:
    inside_J = _inside(p_J)
    return np.asarray(np.log(inside_J) - np.log1p(-inside_J))


def _sigmoid(x_J: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x_J))  # does not overflow


def _apply(p_J: np.ndarray, temperature: float, bias: float) -> np.ndarray:
    return _sigmoid(_logit(p_J) / temperature + bias)


def _fit(p_J: np.ndarray, labels_J: np.ndarray) -> tuple[float, float]:
    """(temperature, bias) with the least loss, the slope at least 1 / MAX_TEMPERATURE; a convex problem."""
    num_a = float(labels_J.sum())
    num_b = len(labels_J) - num_a
    targets_J = np.where(labels_J == 1, (num_a + 1) / (num_a + 2), 1 / (num_b + 2))
    columns_JF = np.stack([_logit(p_J), np.ones_like(p_J)], axis=1)
    slope, bias = _newton(columns_JF, targets_J, np.array([1.0, 0.0]), chosen=[0, 1])
    if slope < 1 / MAX_TEMPERATURE:
        slope, bias = _newton(columns_JF, targets_J, np.array([1 / MAX_TEMPERATURE, 0.0]), chosen=[1])
    return float(1 / slope), float(bias)


def _newton(columns_JF: np.ndarray, targets_J: np.ndarray, found: np.ndarray, chosen: list[int]) -> np.ndarray:
    """Minimise the mean cross-entropy of sigmoid(columns @ found) over the chosen parameters, by damped steps."""

    def loss(parameters: np.ndarray) -> float:
        z_J = columns_JF @ parameters
        return float((np.logaddexp(0, z_J) - targets_J * z_J).mean())

    for _ in range(_MAX_STEPS):
        fitted_J = _sigmoid(columns_JF @ found)
        gradient = (columns_JF.T @ (fitted_J - targets_J) / len(targets_J))[chosen]
        weights_J = fitted_J * (1 - fitted_J)
        hessian = (columns_JF.T * weights_J @ columns_JF / len(targets_J))[np.ix_(chosen, chosen)]
        # The ridge decides where the data do not: probabilities that are all equal leave slope and bias undetermined.
        step = np.linalg.solve(hessian + 1e-9 * np.eye(len(chosen)), gradient)
        if float(gradient @ step) < _TOLERANCE**2:
            break
        size, before = 1.0, loss(found)
        while size > _TOLERANCE:
            tried = found.copy()
            tried[chosen] -= size * step
            if loss(tried) <= before:
                break
            size /= 2
        found = tried
    return found
