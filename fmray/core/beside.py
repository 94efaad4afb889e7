"""A look that is taken again and again beside what a process does."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def looking(look: Callable[[], object], every_s: float, name: str) -> Iterator[None]:
    """While the block runs, `look` is called from another thread: at once, and then every `every_s` seconds. It must not raise."""
    ended = threading.Event()

    def run() -> None:
        while True:
            look()
            if ended.wait(every_s):
                return

    thread = threading.Thread(target=run, daemon=True, name=f"fmray-{name}")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
