"""Asynchronous successive halving (Li et al. 2018, https://arxiv.org/abs/1810.05934)."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

from pydantic import Field

from fmray.train.schedulers import Scheduler
from fmray.train.space import Distribution


class Asha(Scheduler):
    """At 1, r, r^2, ... times `grace_epochs` a trial goes on only if it is among the best 1/r that came so far.

    It never waits for other trials, so with several trials at a time who is stopped depends on who came first.
    """

    type: Literal["asha"] = "asha"
    grace_epochs: int = Field(1, ge=1, description="no trial is stopped before it")
    reduction_factor: int = Field(2, ge=2, description="r: one trial in r goes on")

    def build(self, tune: ModuleType, metric: str, max_epochs: int, space: Mapping[str, Distribution]) -> Any:
        """`AsyncHyperBandScheduler` with one bracket, counting epochs."""
        return tune.create_scheduler(
            "async_hyperband",
            time_attr="training_iteration",
            metric=metric,
            mode="max",
            max_t=max(max_epochs, self.grace_epochs),
            grace_period=self.grace_epochs,
            reduction_factor=self.reduction_factor,
            brackets=1,
        )
