"""Reading ahead: the same items in the same order, bounded, faults in their turn, and no thread left behind."""

import threading
import time
from collections.abc import Iterator

import pytest

from fmray.data.prefetch import Prefetched


def numbers(n: int, made: list[int]) -> Iterator[int]:
    for i in range(n):
        made.append(i)
        yield i


def threads() -> int:
    return sum(thread.name == "fmray-prefetch" for thread in threading.enumerate())


def test_it_gives_every_item_in_order_and_then_ends_for_good() -> None:
    ahead = Prefetched(numbers(100, []))
    assert list(ahead) == list(range(100))
    assert list(ahead) == []
    ahead.close()
    assert threads() == 0


def test_it_works_ahead_and_no_further_than_its_depth() -> None:
    made: list[int] = []
    with Prefetched(numbers(100, made), depth=3) as ahead:
        assert next(ahead) == 0
        deadline = time.monotonic() + 10
        while len(made) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        # One was taken, three lie ready, and the thread holds one for which there is no place.
        assert made == list(range(5))
    assert threads() == 0


def test_a_fault_comes_behind_the_items_before_it_and_stays() -> None:
    def faulty() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("the third is broken")

    with Prefetched(faulty()) as ahead:
        assert [next(ahead), next(ahead)] == [1, 2]
        for _ in range(2):
            with pytest.raises(ValueError, match="the third is broken"):
                next(ahead)
    assert threads() == 0


def test_after_closing_it_gives_nothing() -> None:
    ahead = Prefetched(numbers(100, []))
    assert next(ahead) == 0
    ahead.close()
    ahead.close()
    assert list(ahead) == []
    assert threads() == 0
