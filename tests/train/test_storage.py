"""A storage that is full for a moment is waited for; one that stays full ends in one clear error, and older states stay whole."""

import contextlib
import resource
import threading
import time

import pytest
import torch

from fmray.core.artifact import sha256_file
from fmray.core.cursor import Cursor
from fmray.core.errors import RunError
from fmray.train import storage
from fmray.train.layout import rank_file
from fmray.train.state import TrainState, commit_state, last_good_state, state_folder
from tests.parity.workers import Case, engine

CASE = Case("torch", engine="torch")


@contextlib.contextmanager
def full():
    """No file of this process may grow beyond 100 kB: writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save(running, root, step):
    folder = state_folder(root, step)
    folder.mkdir(parents=True)
    # Steps that were all skipped leave an optimizer without moments.
    running.step = running.skipped = step
    running.save(folder)
    commit_state(folder, TrainState(step=step, cursor=Cursor(), engine="torch fp32", world_size=1, files={rank_file(0): sha256_file(folder / rank_file(0))}))
    return folder


def test_a_save_goes_through_once_there_is_room_again(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "WAITS_S", (0.1,) * 50)
    running = engine(CASE, 1)
    with full() as make_room:
        later = threading.Timer(0.4, make_room)
        later.start()
        began = time.monotonic()
        folder = save(running, tmp_path, 10)
        assert time.monotonic() - began > 0.3
        later.join()
    again = engine(CASE, 1)
    again.load(last_good_state(tmp_path)[0])
    assert again.step == 10
    assert all(torch.equal(a, b) for a, b in zip(again.module.parameters(), running.module.parameters(), strict=True))
    assert folder == last_good_state(tmp_path)[0]


def test_a_storage_that_stays_full_is_told_in_one_line_and_the_last_state_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "WAITS_S", (0.05, 0.05))
    running = engine(CASE, 1)
    good = save(running, tmp_path, 10)
    with full(), pytest.raises(RunError, match=r"step-000000020/rank-00000.safetensors: cannot be written, in 3 attempts over 0.1 s \(.*; make room") as error:
        save(running, tmp_path, 20)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 1
    folder, state = last_good_state(tmp_path)
    assert (folder, state.step) == (good, 10)


def test_what_is_no_fault_of_the_storage_is_not_tried_again(tmp_path):
    calls = []

    def write():
        calls.append(1)
        raise TypeError("cannot be pickled")

    with pytest.raises(TypeError):
        storage.persist(write, tmp_path)
    assert len(calls) == 1
