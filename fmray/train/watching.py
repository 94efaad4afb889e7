"""What looks on while one worker trains: figures, evaluation, the ranks' clocks and a profile. None of it changes what is trained."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from typing import Any

from fmray.train.engine import Engine, StepStats
from fmray.train.evaluation import HeldOut
from fmray.train.loop import Step
from fmray.train.metrics import MetricsLog
from fmray.train.profiling import Profiler
from fmray.train.ranks import RankClock
from fmray.train.task_figures import TaskFigures


class Watching:
    """Of one worker. `log` is rank 0's and None elsewhere; `hold` keeps the watchdog off while something takes as long as it takes."""

    def __init__(
        self, engine: Engine, log: MetricsLog | None, clock: RankClock, held_out: HeldOut, profiler: Profiler, *, last_step: int, hold: Callable[[], AbstractContextManager[None]],
        tasks: TaskFigures | None = None,
    ) -> None:  # fmt: skip
        self._engine, self._log, self._clock, self._held_out, self._profiler, self._tasks = engine, log, clock, held_out, profiler, tasks
        self._last_step, self._hold = last_step, hold
        # The held-out loss that was measured last, where one was.
        self.eval_loss: float | None = None

    @contextlib.contextmanager
    def over(self, batches: Iterable[Step]) -> Iterator[Iterator[Step]]:
        """The same batches, watched while the block runs."""
        with closing(self._clock), closing(self._profiler):
            self._profiler.between(self._engine.step)
            yield self._clock.timed(batches)

    def finished(self, step: int, stats: StepStats) -> None:
        """An optimizer step is finished: every worker says so. One in which a stop was asked for is not evaluated, for its state must be saved."""
        ended = time.monotonic()
        also: dict[str, Any] = {}
        self._clock.finished()
        if self._profiler.due(step):
            with self._hold():
                also |= self._noted(self._profiler.between(step))
        else:
            also |= self._noted(self._profiler.between(step))
        if self._held_out.due(step, self._last_step) and (not stats.stop or step == self._last_step):
            with self._hold():
                also |= self._evaluated()
        if self._log is not None:
            self._log.write(step, stats, ended=ended, also=also)

    def saved(self) -> None:
        """A state was written since the step was finished."""
        if self._log is not None:
            self._log.pause()

    def _evaluated(self) -> dict[str, Any]:
        begun = time.monotonic()
        loss = self._held_out.loss(self._engine)
        # JSON knows no NaN.
        self.eval_loss = loss if math.isfinite(loss) else None
        figures = {} if self._tasks is None else self._tasks.figures(self._engine)
        return {"eval_loss": self.eval_loss, **figures, "eval_s": round(time.monotonic() - begun, 4)}

    @staticmethod
    def _noted(fault: str) -> dict[str, Any]:
        return {"note": fault} if fault else {}
