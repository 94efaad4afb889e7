"""Distributions of a search space: what one hyperparameter may be. One file each."""

import abc
from types import ModuleType
from typing import Any

from fmray.core.config import Component


class Distribution(Component, package="fmray.train.space"):
    """The values that one hyperparameter may take in a search."""

    @abc.abstractmethod
    def edges(self) -> tuple[Any, ...]:
        """Values that stand for the whole range when a space is checked at load time: its ends, or every choice."""

    def listed(self) -> tuple[Any, ...] | None:
        """Every value, in order, of a range that can be counted; None of a continuous one."""
        return None

    @abc.abstractmethod
    def nearest(self, value: Any) -> Any:
        """The value itself where the range holds it, else the one of the range that is nearest to it (of values without distance, the first)."""

    @abc.abstractmethod
    def domain(self, tune: ModuleType) -> Any:
        """The same range as a Ray Tune domain; `tune` is the module `ray.tune`, which only the search imports."""
