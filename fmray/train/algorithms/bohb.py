"""BOHB (Falkner et al. 2018, https://arxiv.org/abs/1807.01774): a density estimate of good values, fed by runs cut short."""

import importlib.util
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

from fmray.core.errors import ConfigError
from fmray.train.algorithms import Algorithm, Wanted
from fmray.train.space import Distribution

PACKAGES = ("hpbandster", "ConfigSpace")


class Bohb(Algorithm):
    """The model-based half of BOHB, by the package hpbandster; the scheduler `hyperband` is its other half, and neither goes alone.

    The seed repeats what is drawn at random; what the model draws once it has learnt comes from a generator that nobody seeds.
    """

    type: Literal["bohb"] = "bohb"

    def check(self, space: Mapping[str, Distribution], num_trials: int, scheduler: str) -> None:
        """Wants the scheduler `hyperband`, which tells at which budget a score was reached, and its two packages."""
        if scheduler != "hyperband":
            raise ConfigError(f"bohb learns from rungs, which {scheduler} has not", where="algorithm", todo="use scheduler: {type: hyperband}")
        for package in PACKAGES:
            if importlib.util.find_spec(package) is None:
                raise ConfigError(f"bohb needs {package}, which is not installed", where="algorithm", todo="pip install 'fmray[bohb]'")

    def build(self, tune: ModuleType, wanted: Wanted) -> Any:
        """`TuneBOHB`."""
        from ray.tune.search.bohb import TuneBOHB

        # Trials that wait at a rung hold no place, which Ray Tune's own limiter would not know.
        return TuneBOHB(metric=wanted.key, mode="max", seed=wanted.seed, max_concurrent=wanted.max_concurrent)
