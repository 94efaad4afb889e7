"""A positive real number whose order of magnitude is unknown: a learning rate, a weight decay."""

from types import ModuleType
from typing import Any, Literal

from pydantic import Field, model_validator

from fmray.train.space import Distribution


class LogUniform(Distribution):
    """A real number in [low, high) whose logarithm is uniform."""

    type: Literal["loguniform"] = "loguniform"
    low: float = Field(gt=0)
    high: float

    @model_validator(mode="after")
    def _not_empty(self) -> "LogUniform":
        if self.low >= self.high:
            raise ValueError(f"the range is empty: low {self.low:g} is not below high {self.high:g}")
        return self

    def edges(self) -> tuple[Any, ...]:
        """Both ends."""
        return (self.low, self.high)

    def nearest(self, value: Any) -> Any:
        """The value, or the end of the range that is nearer to it."""
        return min(max(value, self.low), self.high)

    def domain(self, tune: ModuleType) -> Any:
        """`tune.loguniform`."""
        return tune.loguniform(self.low, self.high)
