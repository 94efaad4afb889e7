"""Shows the lines of metrics.jsonl in trackers, from threads of the driver: no tracker can slow a step or end a training."""

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmray.train.metrics import read_metrics
from fmray.train.trackers import NAMES, Point, Sink, TrackedRun, Tracker

logger = logging.getLogger(__name__)

EVERY_S = 1.0
TASK = "eval/"
END_WITHIN_S = 60.0
# Whoever stopped a run waits for its end.
FAILED_WITHIN_S = 10.0


class Tracking:
    """Follows a run's lines while the block runs; a thread a tracker, so that one that hangs holds up no other.

    The driver outlives workers that are started again, so a run stays one run. What a tracker already shows it is not told again: steps
    that are trained once more after a failure are shown as they were the first time, and what an attempt did not get to tell is told by
    the next one. `notes` says what failed, once a tracker.
    """

    def __init__(self, trackers: Sequence[Tracker], run: TrackedRun, metrics: Path) -> None:
        self.notes: list[str] = []
        self._ended = threading.Event()
        self._threads = {
            tracker.type: threading.Thread(target=self._follow, args=(tracker, run, metrics), daemon=True, name=f"fmray-{tracker.type}")  # type: ignore[attr-defined]
            for tracker in trackers
        }

    def __enter__(self) -> "Tracking":
        for thread in self._threads.values():
            thread.start()
        return self

    def __exit__(self, fault: object, *_: object) -> None:
        self._ended.set()
        within_s = END_WITHIN_S if fault is None else FAILED_WITHIN_S
        deadline = time.monotonic() + within_s
        for kind, thread in self._threads.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._note(f"tracker {kind} did not end within {within_s:g} s and was left")

    def _follow(self, tracker: Tracker, run: TrackedRun, metrics: Path) -> None:
        sink: Sink | None = None
        try:
            # Before the library is imported: a run that is refused leaves nothing behind.
            while not metrics.exists() and not self._ended.wait(EVERY_S):
                pass
            if metrics.exists():
                sink = tracker.open(run)
                self._show(sink, metrics)
                sink.close()
        except BaseException as error:
            shown = f" after step {sink.last_step}" if sink is not None else ""
            what = (str(error).strip().splitlines() or [""])[0][:200]
            self._note(f"tracker {tracker.type} failed{shown} and shows no more: {type(error).__name__}: {what}")  # type: ignore[attr-defined]

    def _show(self, sink: Sink, metrics: Path) -> None:
        last = False
        while True:
            lines = read_metrics(metrics, tail=True)
            if lines and lines[0]["step"] > sink.last_step + 1:
                lines = read_metrics(metrics)
            points = [point(line) for line in lines if line["step"] > sink.last_step]
            if points:
                sink.log(points)
                sink.last_step = points[-1].step
            if last:
                return
            # What was written before the end is read once more behind it.
            last = self._ended.wait(EVERY_S)

    def _note(self, text: str) -> None:
        logger.warning("%s", text)
        self.notes.append(text)


def point(line: Mapping[str, Any]) -> Point:
    """What trackers show of a line: its finite figures, those of tasks by their own names."""
    names = NAMES | {name: name for name in line if name.startswith(TASK)}
    found = {shown: float(line[name]) for name, shown in names.items() if isinstance(line.get(name), (int, float))}
    return Point(line["step"], line["time"], {name: value for name, value in found.items() if math.isfinite(value)})
