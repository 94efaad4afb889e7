"""Figures of predictions under weightings of the examples, as a bootstrap needs them a thousand times. Shapes: N examples, K labels,
R weightings.

Under weights of one they equal those of scikit-learn.
"""

import numpy as np
from numpy.typing import NDArray

from fmray.core.errors import DataError

Floats = NDArray[np.float64]
BINS = 15


def macro_f1_R(truth_N: NDArray[np.int64], predicted_N: NDArray[np.int64], n_labels: int, weights_RN: Floats) -> Floats:
    """Macro-F1 under each of R weightings of the examples, over the labels that occur in truth or predictions.

    With weights of one it equals `sklearn.metrics.f1_score(average="macro")`.
    """
    return averages(np.eye(n_labels)[truth_N], np.eye(n_labels)[predicted_N], weights_RN, present_only=True)["macro_f1"]


def averages(truth_NK: Floats, predicted_NK: Floats, weights_RN: Floats, *, present_only: bool) -> dict[str, Floats]:
    """Macro, micro and weighted precision, recall and F1 of labels that each example bears (1) or not (0); 0/0 counts as 0.

    Args:
        present_only: macro figures are means over the labels that occur in truth or predictions, as for one label an example;
            else over all of them, as scikit-learn does for several labels an example.
    """
    hits_RK = weights_RN @ (truth_NK * predicted_NK)
    true_RK, said_RK = weights_RN @ truth_NK, weights_RN @ predicted_NK
    present_RK = (true_RK + said_RK > 0) | (not present_only)
    parts = {"precision": (hits_RK, said_RK), "recall": (hits_RK, true_RK), "f1": (2 * hits_RK, true_RK + said_RK)}
    found: dict[str, Floats] = {}
    for name, (top_RK, bottom_RK) in parts.items():
        each_RK = ratio(top_RK, bottom_RK)
        found[f"macro_{name}"] = np.nanmean(np.where(present_RK, each_RK, np.nan), axis=1)
        found[f"micro_{name}"] = ratio(top_RK.sum(axis=1), bottom_RK.sum(axis=1))
        found[f"weighted_{name}"] = ratio((each_RK * true_RK).sum(axis=1), true_RK.sum(axis=1))
    return found


def matthews(truth_NK: Floats, predicted_NK: Floats, weights_RN: Floats) -> Floats:
    """Matthews' correlation of one label an example, by Gorodkin's formula for K labels (2004); 0 where one side never varies."""
    correct_R = (weights_RN @ (truth_NK * predicted_NK)).sum(axis=1)
    true_RK, said_RK, total_R = weights_RN @ truth_NK, weights_RN @ predicted_NK, weights_RN.sum(axis=1)
    top_R = correct_R * total_R - (true_RK * said_RK).sum(axis=1)
    spread_R = (total_R**2 - (true_RK**2).sum(axis=1)) * (total_R**2 - (said_RK**2).sum(axis=1))
    return ratio(top_R, np.sqrt(np.maximum(spread_R, 0.0)))


def calibration_error(correct_N: NDArray[np.bool_], confidence_N: Floats, weights_RN: Floats) -> Floats:
    """Expected calibration error with 15 bins of equal width (Guo et al. 2017, https://arxiv.org/abs/1706.04599): the mean distance of
    confidence and accuracy, each bin weighing its examples.

    Raises:
        DataError: a confidence is no number from 0 to 1.
    """
    if not ((confidence_N >= 0) & (confidence_N <= 1 + 1e-9)).all():
        raise DataError("a confidence is no number from 0 to 1", where="calibration")
    bin_N = np.clip(np.ceil(confidence_N * BINS).astype(int) - 1, 0, BINS - 1)
    gap_NB = np.eye(BINS)[bin_N] * (correct_N - confidence_N)[:, None]
    found: Floats = np.abs(weights_RN @ gap_NB).sum(axis=1) / weights_RN.sum(axis=1)
    return found


def ratio(top: Floats, bottom: Floats) -> Floats:
    """Elementwise quotient, 0 where the divisor is 0."""
    found: Floats = np.divide(top, bottom, out=np.zeros_like(np.asarray(top, float)), where=bottom > 0)
    return found


def ranks(values_N: Floats, weights_RN: Floats) -> Floats:
    """How much weight lies below each value, and half of what lies at it: [R, N]. Under weights of one, the mean rank less a half."""
    _, group_N = np.unique(values_N, return_inverse=True)
    order_N = np.argsort(group_N, kind="stable")
    starts = np.flatnonzero(np.diff(group_N[order_N], prepend=-1))
    at_RG = np.add.reduceat(weights_RN[:, order_N], starts, axis=1)
    found: Floats = (np.cumsum(at_RG, axis=1) - at_RG / 2)[:, group_N]
    return found


def pearson(a_RN: Floats, b_RN: Floats, weights_RN: Floats) -> Floats:
    """Pearson's correlation of two columns ([N], or one under each weighting); 0 where one of them never varies."""
    total_R1 = weights_RN.sum(axis=1, keepdims=True)
    a_RN, b_RN = (column - (weights_RN * column).sum(axis=1, keepdims=True) / total_R1 for column in (np.atleast_2d(a_RN), np.atleast_2d(b_RN)))
    spread_R = np.sqrt((weights_RN * a_RN**2).sum(axis=1) * (weights_RN * b_RN**2).sum(axis=1))
    return np.clip(ratio((weights_RN * a_RN * b_RN).sum(axis=1), np.where(spread_R > 1e-12, spread_R, 0.0)), -1.0, 1.0)


def spearman(a_N: Floats, b_N: Floats, weights_RN: Floats) -> Floats:
    """Spearman's correlation: that of the ranks, equal values at their mean rank; weights are repetitions."""
    return pearson(ranks(a_N, weights_RN), ranks(b_N, weights_RN), weights_RN)


def area_under_curve(truth_N: Floats, said_N: Floats, weights_RN: Floats) -> Floats:
    """How often what is true (1) is said to be more so than what is not (0), equals half: the area under the ROC curve."""
    false_RN, true_RN = weights_RN * (1 - truth_N), weights_RN * truth_N
    return ratio((true_RN * ranks(said_N, false_RN)).sum(axis=1), true_RN.sum(axis=1) * false_RN.sum(axis=1))
