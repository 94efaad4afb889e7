"""The memory of a server's processes while it is under load, and how fast it grows."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import psutil

from benchmarks.serve.servers import Server

EVERY_S = 5.0
# What a server first touches while it is warming up is no growth: so much of the time is left out.
WARM_UP = 0.2


@dataclass
class Memory:
    """Samples over time of each process, in MB."""

    at_s: list[float] = field(default_factory=list)
    mb: list[dict[str, float]] = field(default_factory=list)

    def slope_mb_per_min(self, name: str) -> tuple[float, float]:
        """The slope by least squares behind the warm-up, and its standard error."""
        skipped = int(WARM_UP * len(self.at_s))
        minutes = np.array(self.at_s[skipped:]) / 60
        values = np.array([one[name] for one in self.mb[skipped:]])
        if len(values) < 4:
            return float("nan"), float("nan")
        (slope, _), covariance = np.polyfit(minutes, values, 1, cov=True)
        return float(slope), float(np.sqrt(covariance[0, 0]))

    def ends(self, name: str) -> tuple[float, float, float]:
        """The memory behind the warm-up, at the end, and the most."""
        skipped = int(WARM_UP * len(self.at_s))
        values = [one[name] for one in self.mb]
        return values[skipped], values[-1], max(values)


@contextlib.contextmanager
def watched(server: Server) -> Iterator[Memory]:
    """Samples the server's processes while the block runs; a process that has ended ends the sampling."""
    found, ended, began = Memory(), threading.Event(), time.monotonic()

    def watch() -> None:
        while True:
            try:
                sample = server.memory_mb()
            except psutil.Error:
                return
            found.at_s.append(time.monotonic() - began)
            found.mb.append(sample)
            if ended.wait(EVERY_S):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
