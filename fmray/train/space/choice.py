"""One of some values."""

from types import ModuleType
from typing import Any, Literal

from pydantic import model_validator

from fmray.train.space import Distribution


class Choice(Distribution):
    """One of the listed values, every one as likely as any other; null is one for a field that may be left out."""

    type: Literal["choice"] = "choice"
    values: tuple[bool | int | float | str | None, ...]

    @model_validator(mode="after")
    def _not_empty(self) -> "Choice":
        if not self.values:
            raise ValueError("the range is empty: `values` lists nothing")
        return self

    def edges(self) -> tuple[Any, ...]:
        """Every value."""
        return self.values

    def listed(self) -> tuple[Any, ...]:
        """Every value."""
        return self.values

    def nearest(self, value: Any) -> Any:
        """The value where it is listed, else the first."""
        return value if value in self.values else self.values[0]

    def domain(self, tune: ModuleType) -> Any:
        """`tune.choice`."""
        return tune.choice(list(self.values))
