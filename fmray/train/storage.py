"""Writing to a storage that may be full or away for a moment: tried again for a bounded time, then one clear error."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from fmray.core.errors import RunError

logger = logging.getLogger(__name__)

# Before each further attempt: 31 s in all, about what a shared file system takes to come back from a fail-over.
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)


def persist(write: Callable[[], object], where: Path | str) -> None:
    """Calls `write` until it succeeds. It must begin anew each time, as opening a file for writing does.

    torch tells a full disk as a RuntimeError without a code, so within a write that counts as a fault of the storage too.

    Raises:
        RunError: it still failed after the last wait. What `where` holds by then is torn and must not count.
    """
    for attempt, wait_s in enumerate((*WAITS_S, None), start=1):
        try:
            write()
            return
        except (OSError, RuntimeError) as error:
            told = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if wait_s is None:
                raise RunError(
                    f"cannot be written, in {attempt} attempts over {sum(WAITS_S):g} s ({told})",
                    where=str(where), todo="make room or bring the storage back; the same command goes on from the last whole state, which is untouched",
                ) from error
            logger.warning("%s cannot be written (%s); tried again in %g s", where, told, wait_s)
            time.sleep(wait_s)
