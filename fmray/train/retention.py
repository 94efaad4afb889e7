"""Which states are kept: the last ones, the best ones, and one every so many hours."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from fmray.core.config import Config
from fmray.train.engine import StepStats
from fmray.train.state import TrainState

LOSS, EVAL_LOSS = "train/loss", "eval/loss"
# What a state's `metrics` may tell.
METRICS = (LOSS, EVAL_LOSS)


class Keep(Config):
    """States that are kept while a run goes on; a number is short for that many last ones.

    Attributes:
        last: the newest ones, of which the first that is whole is resumed from.
        best: besides, so many by `metric`, which each state tells of the steps since the one before it.
        metric: `train/loss` is the mean loss of a target over these steps, `eval/loss` the held-out loss that was measured last (see `eval_every_steps`).
        higher_is_better: of `metric`.
        every_hours: besides, the first state and for ever one behind every so many hours.
    """

    last: int = Field(2, ge=1)
    best: int = Field(0, ge=0)
    metric: str = LOSS
    higher_is_better: bool = False
    every_hours: float | None = Field(None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _number(cls, data: Any) -> Any:
        # A bool is an int in Python, and no number of states.
        if isinstance(data, bool) or not isinstance(data, (int, Mapping, Keep)):
            raise ValueError(f"must be a number or {{last: , best: , metric: , every_hours: }}, got {data!r}")
        return {"last": data} if isinstance(data, int) else data

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"states do not tell {metric}; they tell {', '.join(METRICS)}")
        return metric

    def steps(self, states: Iterable[TrainState]) -> set[int]:
        """The steps of those whole states that are kept.

        One of the hours is the first that was written at least so long after the one of the hours before it; the choice stays the same
        when the others are removed.
        """
        ordered = sorted(states, key=lambda state: state.step)
        kept = {state.step for state in ordered[-self.last :]}
        sign = -1 if self.higher_is_better else 1
        told = [state for state in ordered if self.metric in state.metrics]
        # Of equal ones the newest; but a held-out loss is that of the first state that tells it, which later ones repeat until the next.
        age = 1 if self.metric == EVAL_LOSS else -1
        told.sort(key=lambda state: (sign * state.metrics[self.metric], age * state.step))
        kept |= {state.step for state in told[: self.best]}
        if self.every_hours is not None:
            before = float("-inf")
            for state in ordered:
                if state.written_at - before >= self.every_hours * 3600:
                    before = state.written_at
                    kept.add(state.step)
        return kept


class Since:
    """The metrics of the steps since the last state."""

    def __init__(self) -> None:
        self._loss_sum, self._count = 0.0, 0

    def add(self, stats: StepStats) -> None:
        """A step is finished."""
        if stats.applied:
            self._loss_sum, self._count = self._loss_sum + stats.loss_sum, self._count + stats.count

    def take(self) -> dict[str, float]:
        """What the steps since this was last asked come to; without one that was applied there is nothing to tell."""
        told = {LOSS: self._loss_sum / self._count} if self._count else {}
        self._loss_sum, self._count = 0.0, 0
        return told
