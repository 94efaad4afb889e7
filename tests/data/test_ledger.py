"""The sample ledger proves that each row is read once an epoch, whatever was killed, and names what was not."""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmray.core.cursor import Cursor
from fmray.core.errors import ArtifactError
from fmray.data.ledger import LedgerReport, LedgerWriter, check_ledger, next_attempt, read_attempt
from fmray.data.reader import TokenReader
from tests.data import made

N_ROWS = 97


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.dataset(tmp_path_factory.mktemp("data") / "corpus", [("a", 50), ("b", 47)], block_rows=4).path


def train(path: Path, folder: Path, batch: int, world_size: int, from_step: int, reached: list[int]) -> None:
    """One attempt behind `from_step`: rank r gets as far as `reached[r]`, as ranks do when one of them is killed."""
    attempt = next_attempt(folder)
    for rank in range(world_size):
        reader, cursor = TokenReader(path, "train", 1, batch), Cursor()
        ledger = LedgerWriter(folder, attempt=attempt, rank=rank, world_size=world_size, from_step=from_step, n_rows=N_ROWS)
        for step in range(1, reached[rank % len(reached)] + 1):
            if step > from_step:
                ledger.add(step, cursor, reader.batch(cursor, rank, world_size)["row_ids_B"])
            cursor = reader.advance(cursor)
        ledger.sync()
        ledger.close()


def check(folder: Path, batch: int, last_step: int) -> LedgerReport:
    return check_ledger(folder, n_rows=N_ROWS, global_batch_size=batch, last_step=last_step)


@st.composite
def lives(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int, list[int]]]]:
    """Batch, last step, and attempts: workers, the step that each goes on from, and how far each worker came."""
    batch, last = draw(st.sampled_from([4, 8, 12])), draw(st.integers(1, 40))
    stops = sorted(draw(st.lists(st.integers(0, last), max_size=3)))
    worlds = st.sampled_from([w for w in (1, 2, 3, 4) if batch % w == 0])
    attempts, saved = list[tuple[int, int, list[int]]](), 0
    for stop in stops:
        reached = draw(st.lists(st.integers(stop, min(last, stop + 3)), min_size=1, max_size=4))
        attempts.append((draw(worlds), saved, reached))
        saved = draw(st.integers(saved, stop))
    return batch, last, [*attempts, (draw(worlds), saved, [last])]


@settings(deadline=None, max_examples=40)
@given(lives())
def test_any_life_of_stops_and_numbers_of_workers_is_proven(path: Path, life: tuple[int, int, list[tuple[int, int, list[int]]]]) -> None:
    batch, last, attempts = life
    with tempfile.TemporaryDirectory() as temporary:
        for world_size, from_step, reached in attempts:
            train(path, Path(temporary), batch, world_size, from_step, reached)
        report = check(Path(temporary), batch, last)
    assert report.proven, report
    assert report.n_read == batch * last
    assert report.world_sizes == tuple(world_size for world_size, _, _ in attempts)


def test_a_step_that_ran_twice_is_void_once(path: Path, tmp_path: Path) -> None:
    train(path, tmp_path, 8, 4, 0, [20, 19, 20, 18])
    train(path, tmp_path, 8, 2, 15, [30])
    report = check(tmp_path, 8, 30)
    assert report.proven
    assert report.n_void == 2 * (5 + 4 + 5 + 3)
    assert report.world_sizes == (4, 2)
    assert report.plain()["proven"] is True


def test_a_torn_tail_is_cut_wherever_it_tears(path: Path, tmp_path: Path) -> None:
    train(path, tmp_path, 4, 1, 0, [3])
    (file,) = tmp_path.glob("attempt-*")
    whole = file.read_bytes()
    found = read_attempt(file)
    assert found is not None
    assert [entry.step for entry in found.entries] == [1, 2, 3]
    size = (len(whole) - 40) // 3
    for cut in range(len(whole) - 2 * size + 1, len(whole)):
        file.write_bytes(whole[:cut])
        torn = read_attempt(file)
        assert torn is not None
        steps = [entry.step for entry in torn.entries]
        assert steps == [1, 2][: (cut - 40) // size]
        assert torn.torn_bytes == cut - 40 - len(steps) * size
    file.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    assert check(tmp_path, 4, 2).proven
    assert not check(tmp_path, 4, 3).proven
    file.write_bytes(whole[:10])
    assert read_attempt(file) is None


def test_what_a_killed_worker_did_not_put_down_is_named(path: Path, tmp_path: Path) -> None:
    train(path, tmp_path, 12, 3, 0, [30])
    (tmp_path / "attempt-00000-rank-00001").write_bytes(b"")
    report = check(tmp_path, 12, 30)
    assert not report.proven
    assert (report.n_read, report.n_missing, report.n_repeated) == (240, 120, 0)
    assert report.strange_steps == tuple(range(1, 11))
    reader = TokenReader(path, "train", 1, 12)
    lost = {int(row) for epoch, row in report.missing if epoch == 0}
    read_by_others = {int(row) for rank in (0, 2) for row in reader.order(0)[rank::3]}
    assert lost
    assert not lost & read_by_others


def test_rows_that_are_read_twice_are_named(path: Path, tmp_path: Path) -> None:
    ledger = LedgerWriter(tmp_path, attempt=0, rank=0, world_size=1, from_step=0, n_rows=6)
    for step, ids in enumerate([[0, 1, 2], [3, 3, 5], [4, 0, 1]], start=1):
        ledger.add(step, Cursor(epoch=(step - 1) // 2, row=3 * (step - 1) % 6), np.array(ids))
    report = check_ledger(tmp_path, n_rows=6, global_batch_size=3, last_step=3)
    assert (report.repeated, report.missing) == (((0, 3),), ((0, 4),))
    assert (report.n_repeated, report.n_missing, report.strange_steps) == (1, 1, ())


def test_a_round_that_goes_on_is_proven_from_where_it_began(path: Path, tmp_path: Path) -> None:
    train(path, tmp_path, 8, 2, 20, [50])
    begun = Cursor(epoch=160 // N_ROWS, row=160 % N_ROWS)
    assert check_ledger(tmp_path, n_rows=N_ROWS, global_batch_size=8, first_step=20, last_step=50, start=begun).proven
    assert not check(tmp_path, 8, 50).proven


def test_it_is_compact(path: Path, tmp_path: Path) -> None:
    train(path, tmp_path, 12, 1, 0, [100])
    (file,) = tmp_path.glob("*")
    assert file.stat().st_size == 40 + 100 * (28 + 8 * 12)


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no ledger"):
        check_ledger(tmp_path, n_rows=1, global_batch_size=1, last_step=1)
    (tmp_path / "attempt-00000-rank-00000").write_bytes(b"something else entirely, and long enough")
    with pytest.raises(ArtifactError, match="is no ledger of samples"):
        check_ledger(tmp_path, n_rows=1, global_batch_size=1, last_step=1)
    assert next_attempt(tmp_path) == 1


def test_attempts_are_numbered_on() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        for n, rank in itertools.product(range(3), range(2)):
            assert next_attempt(Path(temporary)) == (n if rank == 0 else n + 1)
            LedgerWriter(Path(temporary), attempt=n, rank=rank, world_size=2, from_step=0, n_rows=1).close()
