"""Half a cosine down (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, without restarts)."""

import math
from typing import Literal

from pydantic import Field

from fmray.train.schedules import Schedule


class Cosine(Schedule):
    """Falls slowly at first and last, to `min_lr_ratio` of the peak."""

    type: Literal["cosine"] = "cosine"
    min_lr_ratio: float = Field(0.1, ge=0, le=1)

    def factor(self, progress: float) -> float:
        """1 at the start, `min_lr_ratio` at the end."""
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))
