"""Tree-structured Parzen estimator by Optuna: learns from finished trials where to look next."""

from types import ModuleType
from typing import Any, Literal

from pydantic import Field

from fmray.train.algorithms import Algorithm


class Optuna(Algorithm):
    """TPE (Bergstra et al. 2011). The first `startup_trials` are drawn at random; the rest depend on the results so far.

    With several trials at a time a suggestion depends on which of them had finished, so only `max_concurrent_trials: 1`
    repeats a search exactly beyond the start-up trials.
    """

    type: Literal["optuna"] = "optuna"
    startup_trials: int = Field(10, ge=1)

    def build(self, tune: ModuleType, metric: str, seed: int, max_concurrent: int) -> Any:
        """`OptunaSearch` with a seeded TPE sampler."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup_trials)
        searcher = tune.create_searcher("optuna", metric=metric, mode="max", sampler=sampler)
        return tune.search.ConcurrencyLimiter(searcher, max_concurrent=max_concurrent)
