"""Bootstrap intervals for figures that stand on a limited number of independent units.

Every interval is the 95 % percentile interval of a bootstrap (Efron and Tibshirani 1993) with a fixed seed, so that the
same data give the same figure. What is resampled is the unit that is independent (a row, a canary, a template), never the
token or the pair inside it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000
LEVEL = 0.95
_CELLS = 4_000_000  # weights held at once, so that many units cost time and not memory


@dataclass(frozen=True)
class Interval:
    """A figure with its bootstrap standard error, its 95 % interval and the number of independent units behind it."""

    value: float
    stderr: float
    lower: float
    upper: float
    n: int

    def map(self, increasing: Callable[[float], float]) -> "Interval":
        """The interval of an increasing function of the figure; the standard error follows by the half width of the bounds."""
        lower, upper = increasing(self.lower), increasing(self.upper)
        width = self.upper - self.lower
        return Interval(increasing(self.value), self.stderr * (upper - lower) / width if width else 0.0, lower, upper, self.n)


def ratio(numerators: ArrayLike, denominators: ArrayLike, *, seed: int = 0) -> Interval:
    """Interval of sum(numerators) / sum(denominators), resampling units.

    Args:
        numerators: one value a unit, such as the nats of a row.
        denominators: one value a unit, such as the predicted tokens of a row; their sum must be positive.
    """
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    draws = np.concatenate([(w @ top) / np.maximum(w @ bottom, np.finfo(float).tiny) for w in _weights(len(top), seed)])
    return _interval(float(top.sum() / bottom.sum()), draws, len(top))


def mean(values: ArrayLike, *, seed: int = 0) -> Interval:
    """Interval of a mean over independent units."""
    units = np.asarray(values, float)
    return ratio(units, np.ones_like(units), seed=seed)


def difference(values: ArrayLike, controls: ArrayLike, *, seed: int = 0) -> Interval:
    """Interval of mean(values) - mean(controls), the two groups resampled independently; n is that of `values`."""
    left, right = np.asarray(values, float), np.asarray(controls, float)
    draws_left = np.concatenate([w @ left / len(left) for w in _weights(len(left), seed)])
    draws_right = np.concatenate([w @ right / len(right) for w in _weights(len(right), seed + 1)])
    return _interval(float(left.mean() - right.mean()), draws_left - draws_right, len(left))


def crossed_mean(values: ArrayLike, rows: ArrayLike, columns: ArrayLike, *, seed: int = 0) -> Interval:
    """Interval of a mean over observations that share row factors and column factors (pigeonhole bootstrap, Owen 2007).

    Both factors are resampled and an observation weighs the product of its two counts, so that neither the effect of a
    template nor that of a word passes for evidence from many independent pairs.

    Args:
        values: one value an observation.
        rows: the level of the first factor of each observation, as any comparable labels.
        columns: the same for the second factor.
    """
    observed = np.asarray(values, float)
    row_of, n_rows = _codes(rows)
    column_of, n_columns = _codes(columns)
    draws = []
    pairs = zip(_weights(n_rows, seed, len(observed)), _weights(n_columns, seed + 1, len(observed)), strict=True)
    for row_weights, column_weights in pairs:
        weights = row_weights[:, row_of] * column_weights[:, column_of]
        total = weights.sum(axis=1)
        draws.append((weights @ observed)[total > 0] / total[total > 0])
    return _interval(float(observed.mean()), np.concatenate(draws), min(n_rows, n_columns))


def statistic(figures: Callable[[NDArray[np.float64]], NDArray[np.float64]], n_units: int, *, seed: int = 0) -> Interval:
    """Interval of any figure that can be computed from weighted units, such as a macro-F1.

    Args:
        figures: from weights [R, n_units], how often each unit is drawn in each of R resamples, to R figures.
    """
    draws = np.concatenate([figures(weights) for weights in _weights(n_units, seed)])
    return _interval(float(figures(np.ones((1, n_units)))[0]), draws, n_units)


def statistics(figures: Callable[[NDArray[np.float64]], Mapping[str, NDArray[np.float64]]], n_units: int, *, seed: int = 0) -> dict[str, Interval]:
    """`statistic` of several figures by name, from the same resamples."""
    values = figures(np.ones((1, n_units)))
    blocks = [figures(weights) for weights in _weights(n_units, seed)]
    return {name: _interval(float(value[0]), np.concatenate([block[name] for block in blocks]), n_units) for name, value in values.items()}


def _codes(labels: ArrayLike) -> tuple[NDArray[np.intp], int]:
    distinct, codes = np.unique(np.asarray(labels), return_inverse=True)
    return codes, len(distinct)


def _weights(n_units: int, seed: int, width: int = 0) -> Iterator[NDArray[np.float64]]:
    """How often each of `n_units` is drawn in each resample, in blocks [block, n_units]; `width` sizes the blocks when larger."""
    generator = np.random.default_rng([seed, n_units])
    block = max(1, min(RESAMPLES, _CELLS // max(n_units, width, 1)))
    share = np.full(n_units, 1.0 / n_units)
    for start in range(0, RESAMPLES, block):
        yield generator.multinomial(n_units, share, size=min(block, RESAMPLES - start)).astype(float)


def _interval(value: float, draws: NDArray[np.float64], n_units: int) -> Interval:
    tail = (1.0 - LEVEL) / 2.0
    lower, upper = np.quantile(draws, [tail, 1.0 - tail])
    return Interval(value, float(draws.std(ddof=1)), float(lower), float(upper), n_units)
