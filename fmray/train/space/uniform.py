"""A real number, every value as likely as any other."""

from types import ModuleType
from typing import Any, Literal

from pydantic import model_validator

from fmray.train.space import Distribution


class Uniform(Distribution):
    """A real number in [low, high)."""

    type: Literal["uniform"] = "uniform"
    low: float
    high: float

    @model_validator(mode="after")
    def _not_empty(self) -> "Uniform":
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
        """`tune.uniform`."""
        return tune.uniform(self.low, self.high)
