"""Only the workers of the latest start write: those that an earlier driver left behind end themselves.

A driver that is killed, or a head that is lost, may leave workers that train on until Ray misses something, up to a minute. Meanwhile the
same command may have started others, which write the same states and metrics.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from fmray.core.artifact import write_json
from fmray.core.beside import looking

LATEST = "latest_start.json"
LOOK_EVERY_S = 0.5


def begin(folder: Path) -> str:
    """Puts down a new start, and gives its name. Workers of earlier ones end within about `LOOK_EVERY_S`."""
    name = uuid.uuid4().hex
    write_json(folder / LATEST, {"start": name})
    return name


@contextlib.contextmanager
def inside(folder: Path, start: str) -> Iterator[None]:
    """While the block runs, this process ends when another start than this one is the latest. A storage that does not answer changes nothing."""

    def look() -> None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if json.loads((folder / LATEST).read_text())["start"] != start:
                os._exit(1)

    with looking(look, LOOK_EVERY_S, "fence"):
        yield
