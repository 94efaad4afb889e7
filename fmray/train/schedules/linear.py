"""A straight line down."""

from typing import Literal

from pydantic import Field

from fmray.train.schedules import Schedule


class Linear(Schedule):
    """Falls evenly to `min_lr_ratio` of the peak."""

    type: Literal["linear"] = "linear"
    min_lr_ratio: float = Field(0.0, ge=0, le=1)

    def factor(self, progress: float) -> float:
        """1 at the start, `min_lr_ratio` at the end."""
        return 1.0 - (1.0 - self.min_lr_ratio) * progress
