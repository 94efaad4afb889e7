"""Peak memory of this process and all it started, as summed PSS (shared pages counted once between their sharers)."""

import contextlib
import threading
from types import TracebackType
from typing import Self

INTERVAL_S = 2.0


class PeakMemory:
    """Samples the process tree every two seconds while the block runs; `peak_gb` is None where PSS cannot be read."""

    def __init__(self) -> None:
        self.peak_gb: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="fmray-memory")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            now_gb = summed_pss_gb()
            if now_gb is not None:
                self.peak_gb = max(self.peak_gb or 0.0, now_gb)


def summed_pss_gb() -> float | None:
    """Summed PSS in GiB of this process and its descendants, or None where the system does not tell (not Linux)."""
    import psutil

    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            memory = process.memory_full_info()
            if not hasattr(memory, "pss"):
                return None
            total += memory.pss
    return total / 1024**3
