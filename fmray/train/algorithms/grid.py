"""Grid search: every combination of listed values."""

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

from fmray.core.errors import ConfigError
from fmray.train.algorithms import Algorithm, Wanted
from fmray.train.space import Distribution


class Grid(Algorithm):
    """Tries every combination once. Every field is a choice or whole numbers, and `num_trials` their product."""

    type: Literal["grid"] = "grid"

    def build(self, tune: ModuleType, wanted: Wanted) -> Any:
        """`BasicVariantGenerator`, which lays grids out."""
        return tune.create_searcher("random", random_state=wanted.seed, max_concurrent=wanted.max_concurrent)

    def domains(self, tune: ModuleType, space: Mapping[str, Distribution]) -> dict[str, Any]:
        """`tune.grid_search` over all values of each field."""
        return {name: tune.grid_search(list(distribution.listed() or ())) for name, distribution in space.items()}

    def n_samples(self, num_trials: int) -> int:
        """One walk over the grid."""
        return 1

    def check(self, space: Mapping[str, Distribution], num_trials: int, scheduler: str) -> None:
        """Wants values that can be counted, and as many trials as there are combinations."""
        sizes = []
        for name, distribution in space.items():
            values = distribution.listed()
            if values is None:
                raise ConfigError("a grid needs values that can be counted", where=f"space.{name}", todo="use type: choice, or another algorithm")
            sizes.append(len(values))
        if math.prod(sizes) != num_trials:
            combined = " x ".join(map(str, sizes))
            raise ConfigError(f"is {num_trials}, but the grid has {combined} = {math.prod(sizes)} points", where="num_trials", todo=f"set it to {math.prod(sizes)}")
