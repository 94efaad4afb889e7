"""Every trial runs to its end."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

from fmray.train.schedulers import Scheduler
from fmray.train.space import Distribution


class Fifo(Scheduler):
    """First in, first out; nothing is stopped early."""

    type: Literal["fifo"] = "fifo"

    def build(self, tune: ModuleType, metric: str, max_epochs: int, space: Mapping[str, Distribution]) -> Any:
        """`FIFOScheduler`."""
        return tune.create_scheduler("fifo")
