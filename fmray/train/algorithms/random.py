"""Random search (Bergstra and Bengio 2012): the honest baseline of every other algorithm."""

from types import ModuleType
from typing import Any, Literal

from fmray.train.algorithms import Algorithm, Wanted


class Random(Algorithm):
    """Draws every trial independently; the same seed draws the same trials whatever runs beside what."""

    type: Literal["random"] = "random"

    def build(self, tune: ModuleType, wanted: Wanted) -> Any:
        """`BasicVariantGenerator` with a seeded generator."""
        return tune.create_searcher("random", random_state=wanted.seed, max_concurrent=wanted.max_concurrent)
