"""Schedulers of trials: which ones may go on after each epoch. One file each."""

import abc
from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

from fmray.core.config import Component
from fmray.train.space import Distribution


class Scheduler(Component, package="fmray.train.schedulers"):
    """Decides after each report of a trial whether it goes on.

    Attributes:
        exchanges: whether trials are put off and taken up again or take over each other's weights, so that Ray Tune keeps a checkpoint of
            every epoch and says from which one a trial goes on.
    """

    exchanges: ClassVar[bool] = False

    @abc.abstractmethod
    def build(self, tune: ModuleType, metric: str, max_epochs: int, space: Mapping[str, Distribution]) -> Any:
        """The Ray Tune scheduler. `metric` is maximised; `max_epochs` is the most that any trial of the space may run."""

    def check(self, space: Mapping[str, Distribution], algorithm: str, num_trials: int, max_concurrent: int) -> None:
        """Refuses a space, an algorithm, or a number of trials at a time, that the scheduler cannot work with.

        Raises:
            ConfigError: it cannot.
        """
