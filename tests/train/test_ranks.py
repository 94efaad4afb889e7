"""A rank's clock tells standing still from computing and from waiting for data."""

import time

from fmray.train.metrics import Waited
from fmray.train.ranks import RankClock, rank_path, read_ranks


def computing(seconds):
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_computing_waiting_for_data_and_for_others_are_told_apart(tmp_path):
    def slowly():
        for _ in range(6):
            time.sleep(0.02)
            yield [], None

    waited = Waited(slowly())
    clock = RankClock(rank_path(tmp_path / "ranks", 1), rank=1, waited_s=lambda: waited.total_s, use_gpu=False)
    for _ in clock.timed(waited):
        computing(0.01)
        time.sleep(0.04)
        clock.finished()
        # What comes behind a step is no part of it.
        time.sleep(0.01)
    clock.close()
    (told,) = read_ranks(tmp_path / "ranks", 2)
    assert (told.rank, told.n_steps) == (1, 5)
    assert 0.02 <= told.data_wait_s.median < 0.04
    # A processor that others use as well prolongs neither: its queue is taken off.
    assert 0.04 <= told.others_s.median < 0.055
    assert told.step_s.median >= told.data_wait_s.median + told.others_s.median + 0.0099
    assert told.step_s.p95 >= told.step_s.median


def test_on_a_gpu_the_wait_for_others_is_unknown(tmp_path):
    waited = Waited([([], None)] * 3)
    clock = RankClock(rank_path(tmp_path, 0), rank=0, waited_s=lambda: waited.total_s, use_gpu=True)
    for _ in clock.timed(waited):
        clock.finished()
    clock.close()
    assert read_ranks(tmp_path, 1)[0].others_s is None


def test_ranks_of_an_earlier_larger_attempt_are_not_told(tmp_path):
    for rank in range(3):
        waited = Waited([([], None)] * 3)
        clock = RankClock(rank_path(tmp_path, rank), rank=rank, waited_s=lambda waited=waited: waited.total_s, use_gpu=False)
        for _ in clock.timed(waited):
            clock.finished()
        clock.close()
    assert [told.rank for told in read_ranks(tmp_path, 2)] == [0, 1]
    assert read_ranks(tmp_path / "none", 2) == ()
