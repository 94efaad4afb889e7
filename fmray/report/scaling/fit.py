"""Fits the law to runs: Huber loss of the logarithms, L-BFGS from many starts, intervals by the bootstrap.

Hoffmann et al. 2022, appendix D.3; Besiroglu et al. 2024 (https://arxiv.org/abs/2404.10102), who found that the published fit had been
stopped too early: the objective is a sum of tiny numbers, so it is scaled here until the minimiser's tolerances mean something.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fmray.core.errors import DataError
from fmray.report.scaling.law import Law

DELTA = 1e-3
LEAST_RUNS = 6
LEAST_SIZES = 3
# A law cannot tell N from D where they grow together along one line.
MOST_CORRELATION = 0.999
# The grid of the paper: exponents of A, B and E, and alpha and beta.
STARTS = (range(0, 30, 5), range(0, 30, 5), (-1.0, -0.5, 0.0, 0.5, 1.0), (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 0.5, 1.0, 1.5, 2.0))
BEST_STARTS = 24
BOUNDS = [(-50.0, 100.0), (-50.0, 100.0), (-20.0, 20.0), (1e-3, 5.0), (1e-3, 5.0)]
LEVEL = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A finished training: parameters, tokens and the loss it came to."""

    name: str
    n_params: float
    tokens: float
    loss: float

    @property
    def flops(self) -> float:
        """6 N D."""
        return 6.0 * self.n_params * self.tokens


@dataclass(frozen=True)
class Fit:
    """A fitted law, the laws of the resampled runs, and how far the runs lie from it.

    Attributes:
        objective: the summed Huber loss of the log residuals.
        residual: the root mean square of the log residuals, a relative error of the loss.
    """

    law: Law
    draws: tuple[Law, ...]
    objective: float
    residual: float
    runs: tuple[Run, ...] = field(repr=False)

    def interval(self, figure: Callable[[Law], float]) -> tuple[float, float]:
        """The 95 % percentile interval of anything that follows from a law."""
        found = np.array([figure(law) for law in self.draws])
        # The nearest draw and no mean of two: one of them may be infinite.
        low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
        return float(low), float(high)


def fit(runs: Sequence[Run], *, resamples: int = 500, seed: int = 0) -> Fit:
    """The law that fits the runs best, and those of `resamples` draws of as many runs with replacement.

    Raises:
        DataError: too few runs, or parameters and tokens that do not vary enough to tell the terms apart.
    """
    check_spread(runs)
    problem = _Problem(runs)
    theta, least = problem.search(np.ones(len(runs)))
    draw = np.random.default_rng(seed)
    shares = np.full(len(runs), 1.0 / len(runs))
    draws = [problem.law(problem.minimise(theta, weights)[0]) for weights in draw.multinomial(len(runs), shares, size=resamples).astype(float)]
    residuals = problem.residuals(theta)
    return Fit(problem.law(theta), tuple(draws), least * DELTA**2, math.sqrt(float(np.mean(residuals**2))), tuple(runs))


def check_spread(runs: Sequence[Run]) -> None:
    """Refuses runs that five parameters cannot be fitted to.

    Raises:
        DataError: says what is missing.
    """
    todo = "train more of them, of several sizes on several numbers of tokens each"
    if len(runs) < LEAST_RUNS:
        raise DataError(f"{len(runs)} runs are too few for the five parameters of the law: at least {LEAST_RUNS} are needed", where="RUNS", todo=todo)
    for name, values in (("n_params", [run.n_params for run in runs]), ("tokens", [run.tokens for run in runs])):
        if len(set(values)) < LEAST_SIZES:
            raise DataError(f"the runs have {len(set(values))} different values of {name}: at least {LEAST_SIZES} are needed", where="RUNS", todo=todo)
    logs = np.log([[run.n_params, run.tokens] for run in runs])
    if abs(np.corrcoef(logs.T)[0, 1]) > MOST_CORRELATION:
        raise DataError("n_params and tokens grow together in all runs, so the law cannot tell one's share from the other's", where="RUNS", todo=todo)


class _Problem:
    """The objective over theta = (a, b, e, alpha, beta): log L = logsumexp(a - alpha log N, b - beta log D, e).

    log N and log D are taken from their means, so that a and alpha hardly pull on one another and the minimiser is quick.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.log_n, self.log_d, self.log_l = (np.log([getattr(run, name) for run in runs]) for name in ("n_params", "tokens", "loss"))
        self.mean_n, self.mean_d = float(self.log_n.mean()), float(self.log_d.mean())
        self.x, self.y = self.log_n - self.mean_n, self.log_d - self.mean_d

    def law(self, theta: Floats) -> Law:
        """The law that a theta stands for."""
        a, b, e, alpha, beta = (float(value) for value in theta)
        return Law(E=math.exp(e), A=math.exp(a + alpha * self.mean_n), alpha=alpha, B=math.exp(b + beta * self.mean_d), beta=beta)

    def terms(self, theta: Floats) -> Floats:
        """The logarithms of the three terms, [..., 3, runs]."""
        a, b, e, alpha, beta = (theta[..., i, None] for i in range(5))
        return np.stack([a - alpha * self.x, b - beta * self.y, np.broadcast_to(e, np.broadcast_shapes(e.shape, self.x.shape))], axis=-2)

    def residuals(self, theta: Floats) -> Floats:
        """Measured less fitted logarithms of the loss, [..., runs]."""
        return np.asarray(self.log_l - np.logaddexp.reduce(self.terms(theta), axis=-2))

    def value(self, theta: Floats, weights: Floats) -> Floats:
        """The weighted sum of Huber losses in units of delta squared, [...]."""
        far = np.abs(self.residuals(theta)) / DELTA
        return np.asarray((weights * np.where(far <= 1, far**2 / 2, far - 0.5)).sum(-1))

    def value_and_gradient(self, theta: Floats, weights: Floats) -> tuple[float, Floats]:
        """For the minimiser: d huber / d residual is the residual cut at delta, d logsumexp / d term its share."""
        terms = self.terms(theta)
        fitted = np.logaddexp.reduce(terms, axis=-2)
        far = (self.log_l - fitted) / DELTA
        huber = np.where(np.abs(far) <= 1, far**2 / 2, np.abs(far) - 0.5)
        pull = -weights * np.clip(far, -1, 1) / DELTA
        by_n, by_d, by_e = pull * np.exp(terms - fitted)
        gradient = np.array([by_n.sum(), by_d.sum(), by_e.sum(), -(by_n * self.x).sum(), -(by_d * self.y).sum()])
        return float((weights * huber).sum()), gradient

    def minimise(self, start: Floats, weights: Floats) -> tuple[Floats, float]:
        """L-BFGS from one start: the theta it ends at and the value there."""
        from scipy.optimize import minimize

        options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-7, "maxcor": 20}
        done = minimize(self.value_and_gradient, start, args=(weights,), jac=True, method="L-BFGS-B", bounds=BOUNDS, options=options)
        return np.asarray(done.x), float(done.fun)

    def search(self, weights: Floats) -> tuple[Floats, float]:
        """The best of L-BFGS from those points of the paper's grid that fit best to begin with."""
        grid = np.array(list(itertools.product(*STARTS)), dtype=float)
        grid[:, 0] -= grid[:, 3] * self.mean_n
        grid[:, 1] -= grid[:, 4] * self.mean_d
        values = np.concatenate([self.value(block, weights) for block in np.array_split(grid, 30)])
        ends = [self.minimise(start, weights) for start in grid[np.argsort(values)[:BEST_STARTS]]]
        return min(ends, key=lambda end: end[1])
