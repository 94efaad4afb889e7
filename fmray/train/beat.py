"""Live figures from a worker process to the terminal: a small file that the worker replaces and the driver reads."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fmray.core.beside import looking

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
    shown: dict[str, float] | None = None

    def look() -> None:
        nonlocal shown
        with contextlib.suppress(FileNotFoundError):
            if (figures := json.loads(path.read_text())) != shown:
                tell(figures)
                shown = figures

    with looking(look, INTERVAL_S, "beat"):
        yield
