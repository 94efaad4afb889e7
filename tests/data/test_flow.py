"""Work over parts: every item once, results as they finish, errors as themselves."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmray.core.errors import DataError, RunError
from fmray.data import flow
from fmray.data.flow import MOST_ITEMS, Kept, bundles, each


def _square(n: int) -> tuple[int, int]:
    return n, n * n


def _first_waits(item: tuple[int, Path]) -> tuple[int, bool]:
    """Item 0 returns when somebody has received the result of item 1; False when nobody did in a minute."""
    n, received = item
    deadline = time.monotonic() + 60
    while n == 0 and not received.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return n, received.exists()


def _second_waits(item: tuple[int, Path]) -> tuple[int, bool]:
    """The second item of a task returns when somebody has received the first one's result; False when nobody did in a minute."""
    n, received = item
    deadline = time.monotonic() + 60
    while n == 3 and not received.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return n, received.exists()


def _bad(n: int) -> int:
    if n == 2:
        raise DataError("cannot be read", where="file.txt", todo="mend it")
    return n


def _broken(n: int) -> float:
    return 1 / n


def _process(n: int) -> int:
    time.sleep(0.2)
    return os.getpid()


def test_every_item_once(ray_session: None, tmp_path: Path) -> None:
    assert sorted(each(_square, list(range(20)), Kept(tmp_path / "kept"))) == [(n, n * n) for n in range(20)]
    assert list(each(_square, [], Kept(tmp_path / "none"))) == []


def test_small_items_are_not_bundled_into_one_task(ray_session: None, tmp_path: Path) -> None:
    assert len(set(each(_process, list(range(8)), Kept(tmp_path / "kept")))) > 1


def test_results_come_as_they_finish(ray_session: None, tmp_path: Path) -> None:
    received = tmp_path / "received"
    seen = {}
    for n, others_arrived in each(_first_waits, [(n, received) for n in range(3)], Kept(tmp_path / "kept")):
        seen[n] = others_arrived
        if n == 1:
            received.touch()
    assert seen[0]


def test_results_leave_a_task_before_its_last_item(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "bundles", lambda n_items, n_cpus: [(0, 2), (2, 4)])
    received = tmp_path / "received"
    seen = {}
    for n, first_arrived in each(_second_waits, [(n, received) for n in range(4)], Kept(tmp_path / "kept")):
        seen[n] = first_arrived
        if n == 2:
            received.touch()
    assert seen[3]


@given(n_items=st.integers(0, 3000), n_cpus=st.integers(1, 200))
def test_bundles_hold_every_item_once_and_begin_and_end_small(n_items: int, n_cpus: int) -> None:
    found = bundles(n_items, n_cpus)
    assert [i for low, high in found for i in range(low, high)] == list(range(n_items))
    sizes = [high - low for low, high in found]
    assert set(sizes[:n_cpus]) | set(sizes[-n_cpus:]) <= {1}
    assert max(sizes, default=1) <= MOST_ITEMS


def test_an_error_of_ours_arrives_as_itself(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        list(each(_bad, [1, 2, 3], Kept(tmp_path / "kept")))
    assert (error.value.what, error.value.where, error.value.todo) == ("cannot be read", "file.txt", "mend it")


def test_any_other_error_is_named_in_one_line(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a task over the corpus failed: ZeroDivisionError: division by zero") as error:
        list(each(_broken, [1, 0], Kept(tmp_path / "kept")))
    assert "\n" not in str(error.value)


def test_what_finished_before_is_not_done_again(ray_session: None, tmp_path: Path) -> None:
    kept: Kept[int] = Kept(tmp_path / "kept")
    with pytest.raises(DataError):
        list(each(_bad, [1, 2, 3], kept))
    for index, result in ((0, 1), (2, 3)):
        kept.save(index, result * 10)
    assert sorted(each(_bad, [1, 5, 3], kept)) == [5, 10, 30], "items 0 and 2 come from what was kept"
    assert kept.load(7) is None
