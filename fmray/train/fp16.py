"""Training in float16, whose small range asks for a loss that is scaled up before the backward pass, by a factor that follows what fits.

DeepSpeed finds that factor (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740): a gradient that overflows halves it and drops
the update, a thousand updates without one double it. Such a dropped update is no fault of the run, and the factor is part of its state.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fmray.objectives import Batch
from fmray.train.deepspeed_engine import DeepSpeedEngine
from fmray.train.engine import Learnt, StepStats, never

# What of DeepSpeed's loss scaler moves.
KEPT = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
RESCALES = "rescales"


class Fp16Engine(DeepSpeedEngine):
    """DeepSpeed with dynamic loss scaling, at ZeRO stages 1 to 3, which keep float32 masters.

    `rescales` counts the updates that were dropped only because the loss was scaled too far; `skipped` has them in it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rescales = 0
        # At the smallest scale it is up to the run's rule for losses that are no numbers.
        self._scaler.raise_error_at_min_scale = False

    @property
    def _scaler(self) -> Any:
        return self._optimizer.loss_scaler

    def train_batch(self, micro_batches: Sequence[Batch], objective: Learnt, stop_asked: Callable[[], bool] = never) -> StepStats:
        """See `Engine`. Where only the scale was too large, `rescaled` says so, and the schedule stands still."""
        stats = super().train_batch(micro_batches, objective, stop_asked)
        self.rescaled = not stats.applied and math.isfinite(stats.loss_sum) and self._scaler.cur_scale > self._scaler.min_scale
        self.rescales += self.rescaled
        return stats

    def _counts(self) -> dict[str, int]:
        # A scale is a power of two, never below one.
        return super()._counts() | {name: int(getattr(self._scaler, name)) for name in KEPT} | {RESCALES: self.rescales}

    def begin_round(self) -> None:
        """See `Engine`."""
        super().begin_round()
        self.rescales = 0

    def _recount(self, counts: Mapping[str, int]) -> None:
        """A state of another precision has no scale, and finding one begins anew."""
        super()._recount(counts)
        self.rescales = counts.get(RESCALES, 0)
        for name in KEPT:
            if name in counts:
                setattr(self._scaler, name, type(getattr(self._scaler, name))(counts[name]))
