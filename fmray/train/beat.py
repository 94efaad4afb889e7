"""Live figures from a worker process to the terminal: a small file that the worker replaces and the driver reads."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

INTERVAL_S = 0.3


class Beat:
    """Worker side: keeps the latest figures in a file, replaced at most every `INTERVAL_S` seconds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written_at = float("-inf")

    def __call__(self, **figures: float) -> None:
        """Tells the figures, unless the last ones are that new."""
        if time.monotonic() - self._written_at >= INTERVAL_S:
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(figures))
            os.replace(temporary, self.path)
            self._written_at = time.monotonic()


@contextlib.contextmanager
def following(path: Path, tell: Callable[[dict[str, float]], None]) -> Iterator[None]:
    """Driver side: while the block runs, `tell` gets the figures that a `Beat` writes to `path`, from another thread."""
    path.unlink(missing_ok=True)
    ended = threading.Event()

    def watch() -> None:
        shown = None
        while not ended.wait(INTERVAL_S):
            with contextlib.suppress(FileNotFoundError):
                figures = json.loads(path.read_text())
                if figures != shown:
                    tell(figures)
                    shown = figures

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
