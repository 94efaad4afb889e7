"""Schedulers of trials: which ones may go on after each epoch. One file each."""

import abc
from types import ModuleType
from typing import Any

from fmray.core.config import Component


class Scheduler(Component, package="fmray.train.schedulers"):
    """Decides after each report of a trial whether it goes on."""

    @abc.abstractmethod
    def build(self, tune: ModuleType, metric: str, max_epochs: int) -> Any:
        """The Ray Tune scheduler. `metric` is maximised; `max_epochs` is the most that any trial of the space may run."""
