"""Schedules of the learning rate after warm-up. One file each."""

import abc

from fmray.core.config import Component


class Schedule(Component, package="fmray.train.schedules"):
    """A pure function of progress, so that a resumed run needs no saved schedule."""

    @abc.abstractmethod
    def factor(self, progress: float) -> float:
        """What the peak lr is multiplied with; `progress` runs from 0 (end of warm-up) towards 1 (never reached) over the run."""
