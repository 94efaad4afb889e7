"""Search algorithms: which hyperparameters to try next. One file each."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from fmray.core.config import Component
from fmray.train.space import Distribution


@dataclass(frozen=True)
class Wanted:
    """What an algorithm is asked for: the space, the figure that trials are judged by and Tune's name of it, the seed, and how many at a time."""

    space: Mapping[str, Distribution]
    metric: str
    key: str
    seed: int
    max_concurrent: int


class Algorithm(Component, package="fmray.train.algorithms"):
    """Suggests the hyperparameters of each trial."""

    @abc.abstractmethod
    def build(self, tune: ModuleType, wanted: Wanted) -> Any:
        """The Ray Tune searcher, seeded, with at most `max_concurrent` trials at a time. What is reported under `key` is maximised."""

    def domains(self, tune: ModuleType, space: Mapping[str, Distribution]) -> dict[str, Any]:
        """The space as Ray Tune takes it."""
        return {name: distribution.domain(tune) for name, distribution in space.items()}

    def n_samples(self, num_trials: int) -> int:
        """How many trials Ray Tune is asked for, of `num_trials` in all."""
        return num_trials

    def check(self, space: Mapping[str, Distribution], num_trials: int, scheduler: str) -> None:
        """Refuses a space, or a scheduler, that the algorithm cannot work with, or a package of its own that is not installed.

        Raises:
            ConfigError: it cannot.
        """

    def ready(self, wanted: Wanted) -> None:
        """Refuses what the algorithm is told to read and cannot use; asked by `fmray check` and before a search begins.

        Raises:
            ConfigError: it cannot use it.
        """
