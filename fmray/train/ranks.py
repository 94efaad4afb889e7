"""Where each worker's time goes, told by every worker in a small file of its own: no collective, and a few microseconds a step."""

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from fmray.core.artifact import write_json
from fmray.model.watched import RankTimes, Spread
from fmray.train.loop import Step

RANKS = "ranks"
KEPT_STEPS = 1000
EVERY_S = 10.0
SCHEDSTAT = "/proc/thread-self/schedstat"


class RankClock:
    """Measures this thread's steps. `others_s` of a step is the time from its batch to its end less what this thread computed (its
    processor time) and less what it waited for a processor (Linux' schedstat): it then stood still, for other ranks and what they exchange.

    On a GPU that cannot be told so, for the device waits and not the thread.
    """

    def __init__(self, path: Path, *, rank: int, waited_s: Callable[[], float], use_gpu: bool) -> None:
        """`waited_s` gives all time waited for data so far. It is to be made in the thread that trains."""
        self._path, self._rank, self._waited_s = path, rank, waited_s
        # One read of an open file is a microsecond or two; it stays that of the thread that opened it.
        self._stat = None if use_gpu or not os.path.exists(SCHEDSTAT) else os.open(SCHEDSTAT, os.O_RDONLY)
        self._steps: deque[tuple[float, float, float]] = deque(maxlen=KEPT_STEPS)
        self._begun = self._now()
        self._waited = waited_s()
        self._first = True
        self._written_at = time.monotonic()

    def timed(self, batches: Iterable[Step]) -> Iterator[Step]:
        """The same batches; what computes on them is told apart from what waits for them."""
        for item in batches:
            self._begun = self._now()
            yield item

    def finished(self) -> None:
        """A step is finished. The first of an attempt warms up and does not count."""
        wall, busy, queued = (now - then for now, then in zip(self._now(), self._begun, strict=True))
        waited, self._waited = self._waited_s() - self._waited, self._waited_s()
        if not self._first:
            self._steps.append((wall + waited, waited, max(0.0, wall - busy - queued)))
        self._first = False
        if time.monotonic() - self._written_at >= EVERY_S:
            self.write()

    def write(self) -> None:
        """Tells of the steps so far, in the file that is this worker's."""
        self._written_at = time.monotonic()
        if self._steps:
            step_s, data_s, others_s = zip(*self._steps, strict=True)
            told = RankTimes(
                rank=self._rank, host=socket.gethostname(), n_steps=len(self._steps), step_s=_spread(step_s), data_wait_s=_spread(data_s),
                others_s=None if self._stat is None else _spread(others_s),
            )  # fmt: skip
            # A storage that is full or away must not end training for the sake of this table.
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, told.model_dump(mode="json"))

    def close(self) -> None:
        """Tells the last of it."""
        self.write()
        if self._stat is not None:
            os.close(self._stat)
            self._stat = None

    def _now(self) -> tuple[float, float, float]:
        """Wall time, this thread's processor time and its time in the processor's queue, in seconds."""
        queued = 0.0 if self._stat is None else int(os.pread(self._stat, 128, 0).split()[1]) / 1e9
        return time.monotonic(), time.thread_time(), queued


def _spread(values: Iterable[float]) -> Spread:
    found = np.array(list(values))
    return Spread(median=round(float(np.median(found)), 6), p95=round(float(np.quantile(found, 0.95)), 6))


def rank_path(folder: Path, rank: int) -> Path:
    """Where a worker tells of its steps."""
    return folder / f"rank-{rank:04d}.json"


def read_ranks(folder: Path, world_size: int) -> tuple[RankTimes, ...]:
    """What the workers of the last attempt told."""
    paths = [rank_path(folder, rank) for rank in range(world_size)]
    return tuple(RankTimes.model_validate_json(path.read_bytes()) for path in paths if path.exists())
