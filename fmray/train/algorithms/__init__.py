"""Search algorithms: which hyperparameters to try next. One file each."""

import abc
from types import ModuleType
from typing import Any

from fmray.core.config import Component


class Algorithm(Component, package="fmray.train.algorithms"):
    """Suggests the hyperparameters of each trial."""

    @abc.abstractmethod
    def build(self, tune: ModuleType, metric: str, seed: int, max_concurrent: int) -> Any:
        """The Ray Tune searcher, seeded, with at most `max_concurrent` trials at a time. `metric` is maximised."""
