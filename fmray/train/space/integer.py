"""A whole number."""

from types import ModuleType
from typing import Any, Literal

from pydantic import model_validator

from fmray.train.space import Distribution


class Integer(Distribution):
    """A whole number from low to high, both included."""

    type: Literal["integer"] = "integer"
    low: int
    high: int

    @model_validator(mode="after")
    def _not_empty(self) -> "Integer":
        if self.low > self.high:
            raise ValueError(f"the range is empty: low {self.low} is above high {self.high}")
        return self

    def edges(self) -> tuple[Any, ...]:
        """Both ends."""
        return (self.low, self.high)

    def listed(self) -> tuple[Any, ...]:
        """Every number."""
        return tuple(range(self.low, self.high + 1))

    def nearest(self, value: Any) -> Any:
        """The nearest whole number of the range."""
        return min(max(round(value), self.low), self.high)

    def domain(self, tune: ModuleType) -> Any:
        """`tune.randint`, whose upper end is exclusive; of one number a choice, for not every algorithm takes a range of one."""
        return tune.choice([self.low]) if self.low == self.high else tune.randint(self.low, self.high + 1)
