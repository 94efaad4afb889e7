"""Reads ahead: a background thread works while the consumer does."""

import queue
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

DEPTH = 2
"""Items kept ready: one hides the reading, the second evens out a block that has to be fetched."""
POLL_S = 0.1


class Prefetched(Generic[T]):
    """An iterator whose items are made by a thread, at most `depth` ahead; what the making raises is raised here, in its turn.

    Close it, or use it in a `with` block: the thread ends at once, behind the item that it is at.
    """

    def __init__(self, items: Iterator[T], depth: int = DEPTH) -> None:
        self._items = items
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._ended: BaseException | None = None
        self._thread = threading.Thread(target=self._make, daemon=True, name="fmray-prefetch")
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._ended is None and not self._closed.is_set():
            item, self._ended = self._ready.get()
            if self._ended is None:
                return item  # type: ignore[return-value]
        raise self._ended or StopIteration

    def close(self) -> None:
        """Ends the thread and waits for it; what was made ahead is dropped."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _make(self) -> None:
        try:
            for item in self._items:
                if not self._put(item, None):
                    return
            self._put(None, StopIteration())
        except BaseException as error:
            self._put(None, error)

    def _put(self, item: T | None, error: BaseException | None) -> bool:
        """Waits for a free place; False when the consumer closed meanwhile."""
        while not self._closed.is_set():
            try:
                self._ready.put((item, error), timeout=POLL_S)
            except queue.Full:
                continue
            return True
        return False
