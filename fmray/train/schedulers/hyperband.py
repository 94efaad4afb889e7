"""HyperBand as BOHB needs it (Li et al. 2018; Falkner et al. 2018)."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar, Literal

from pydantic import Field

from fmray.core.errors import ConfigError
from fmray.train.schedulers import Scheduler
from fmray.train.space import Distribution


class Hyperband(Scheduler):
    """Trials wait for those of their bracket at each rung, and the best 1/r go on. With the algorithm `bohb` alone.

    A trial that waits gives its place away and is loaded again when it goes on.
    """

    type: Literal["hyperband"] = "hyperband"
    exchanges: ClassVar[bool] = True
    reduction_factor: int = Field(3, ge=2, description="r: one trial in r goes on")

    def check(self, space: Mapping[str, Distribution], algorithm: str, num_trials: int, max_concurrent: int) -> None:
        """Wants the algorithm `bohb`."""
        if algorithm != "bohb":
            raise ConfigError(f"hyperband is BOHB's other half and does not go with {algorithm}", where="scheduler", todo="use asha, or algorithm: {type: bohb}")

    def build(self, tune: ModuleType, metric: str, max_epochs: int, space: Mapping[str, Distribution]) -> Any:
        """`HyperBandForBOHB`, counting epochs."""
        return tune.create_scheduler(
            "hb_bohb", time_attr="training_iteration", metric=metric, mode="max", max_t=max_epochs, reduction_factor=self.reduction_factor
        )
