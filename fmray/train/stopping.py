"""Stopping in order: who gets SIGTERM ends training behind the current step, with a state written just in time.

A worker process that gets SIGTERM (its machine is about to be taken away) sets a flag. The flag is added up over the workers together
with the loss, so all of them leave behind the same step, at the latest one step after the one that was being computed. They write a state,
and the driver starts them again: no step is lost, and it counts as no failure. A driver that gets SIGTERM asks its workers through a file,
and then ends itself. What this takes is the time of two steps and of a save, and Ray's own processes alive meanwhile: a signal that
goes to them as well leaves the last state that was written in time.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from fmray.core.beside import looking

STOP = "stop.json"
STOPPED = "stopped.json"
LOOK_EVERY_S = 0.5
SAME_S = 1.0

_asked = threading.Event()
_training = threading.Event()


class Stopped(Exception):
    """Training ended before its last step because a worker was asked to stop; the state after `step` is written."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(step)


def asked() -> bool:
    """Whether this worker was asked to stop."""
    return _asked.is_set()


def install() -> None:
    """Lets SIGTERM ask for a stop while this process trains; at other times Ray's handler, which ends the process, stands.

    Must run in the main thread, which training itself does not: Ray Train calls it there when the workers have started.
    """
    before = signal.getsignal(signal.SIGTERM)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        if _training.is_set():
            _asked.set()
        elif callable(before):
            before(number, frame)
        else:
            raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, on_sigterm)


@contextlib.contextmanager
def listening(folder: Path) -> Iterator[None]:
    """While the block runs, SIGTERM or a file `STOP` in `folder` asks this worker to stop."""
    _asked.clear()
    _training.set()

    def look() -> None:
        if (folder / STOP).exists():
            _asked.set()

    try:
        with looking(look, LOOK_EVERY_S, "stop"):
            yield
    finally:
        _training.clear()


class Termination:
    """The driver's side: whether this process got SIGTERM while the block ran. Another one ends it at once.

    What follows within `SAME_S` is the same signal: `timeout` sends it to the process and then to its group.

    In a thread other than the main one, where Python takes no signals, it never is.
    """

    def __init__(self) -> None:
        self._got_at: float | None = None

    def __enter__(self) -> "Termination":
        self._listens = threading.current_thread() is threading.main_thread()
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._on_sigterm)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def __bool__(self) -> bool:
        return self._got_at is not None

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._got_at is not None and now - self._got_at > SAME_S:
            raise SystemExit(128 + number)
        self._got_at = self._got_at or now
