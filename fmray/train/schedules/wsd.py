"""Warm-up, stable, decay (Hu et al. 2024, https://arxiv.org/abs/2404.06395, section 4): the peak lr, and a straight fall at the end."""

from typing import Literal

from pydantic import Field

from fmray.train.schedules import Schedule


class Wsd(Schedule):
    """Stays at the peak until the last `decay_share` of the run, then falls evenly to `min_lr_ratio`."""

    type: Literal["wsd"] = "wsd"
    decay_share: float = Field(0.2, gt=0, le=1)
    min_lr_ratio: float = Field(0.0, ge=0, le=1)

    def factor(self, progress: float) -> float:
        """1 while stable, `min_lr_ratio` at the end."""
        return 1.0 - (1.0 - self.min_lr_ratio) * max(0.0, progress - (1.0 - self.decay_share)) / self.decay_share
