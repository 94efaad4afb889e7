"""Figures of single-label predictions. Shapes: N examples, K labels, R weightings."""

import numpy as np
from numpy.typing import NDArray


def macro_f1_R(truth_N: NDArray[np.int64], predicted_N: NDArray[np.int64], n_labels: int, weights_RN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Macro-F1 under each of R weightings of the examples, over the labels that occur in truth or predictions.

    With weights of one it equals `sklearn.metrics.f1_score(average="macro")`; a bootstrap needs it a thousand times.
    """
    truth_NK, predicted_NK = np.eye(n_labels)[truth_N], np.eye(n_labels)[predicted_N]
    hits_RK = weights_RN @ (truth_NK * predicted_NK)
    total_RK = weights_RN @ (truth_NK + predicted_NK)
    f1_RK = np.divide(2 * hits_RK, total_RK, out=np.full_like(hits_RK, np.nan), where=total_RK > 0)
    figures: NDArray[np.float64] = np.nanmean(f1_RK, axis=1)
    return figures
