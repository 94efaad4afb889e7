"""States that are written beside training: what they hold, when they count, and what is told when they cannot be written."""

import shutil
import threading
import time

import pytest
import torch

from fmray.core.cursor import Cursor
from fmray.core.errors import RunError
from fmray.train import saving, storage
from fmray.train.layout import part_of, read_held
from fmray.train.retention import Keep
from fmray.train.saving import StateWriter
from fmray.train.state import TrainState, last_good_state, read_state, state_folder
from tests.parity.workers import Case, engine
from tests.train.test_layout import COUNTS, held
from tests.train.test_storage import full


def writer(root, *, rank=0, world_size=1, attempt="a", last=2, **options):
    return StateWriter(root, rank=rank, world_size=world_size, attempt=attempt, keep=Keep(last=last), **options)


def state(step, world_size=1):
    return TrainState(step=step, cursor=Cursor(), engine="torch fp32", world_size=world_size)


class Share:
    """One of several workers' share of two parameters."""

    def __init__(self, world_size, rank):
        self.held = held(world_size, rank)

    def part(self):
        return part_of(self.held, COUNTS)


@pytest.fixture
def running():
    made = engine(Case("torch", engine="torch"), 1)
    # Steps that were all skipped leave an optimizer without moments.
    made.step = made.skipped = 10
    return made


def weights(root):
    """The weights of the newest whole state."""
    again = engine(Case("torch", engine="torch"), 1)
    again.load(last_good_state(root)[0])
    return [parameter.detach().clone() for parameter in again.module.parameters()]


def test_training_goes_on_meanwhile_and_the_state_is_that_of_its_step(running, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "WAITS_S", (0.05,) * 100)
    before = [parameter.detach().clone() for parameter in running.module.parameters()]
    with writer(tmp_path) as saves, full() as make_room:
        saves.save(running, state(10))
        # The storage takes nothing yet, and the weights are already others.
        with torch.no_grad():
            for parameter in running.module.parameters():
                parameter.add_(1.0)
        time.sleep(0.1)
        saves.check()
        assert last_good_state(tmp_path) is None
        make_room()
        saves.wait()
    assert all(torch.equal(a, b) for a, b in zip(weights(tmp_path), before, strict=True))
    assert sorted(path.name for path in state_folder(tmp_path, 10).iterdir()) == ["rank-00000.safetensors", "state.json"]
    assert last_good_state(tmp_path)[1].written_at == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_one_state_is_written_at_a_time_and_the_last_is_waited_for(running, tmp_path, monkeypatch, asynchronous):
    monkeypatch.setattr(storage, "WAITS_S", (0.05,) * 100)
    with writer(tmp_path, asynchronous=asynchronous) as saves, full() as make_room:
        later = threading.Timer(0.5, make_room)
        later.start()
        begun = time.monotonic()
        saves.save(running, state(10))
        assert (time.monotonic() - begun < 0.4) == asynchronous
        saves.save(running, state(20), wait=True)
        assert time.monotonic() - begun > 0.4
        assert last_good_state(tmp_path)[1].step == 20
    assert read_state(state_folder(tmp_path, 10)) is not None


def test_a_write_that_fails_is_told_where_training_looks_next(running, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "WAITS_S", (0.05, 0.05))
    saves = writer(tmp_path)
    saves.save(running, state(10), wait=True)
    with full():
        saves.save(running, state(20))
        saves._thread.join()
        with pytest.raises(RunError, match=r"step-000000020/rank-00000.safetensors: cannot be written, in 3 attempts over 0.1 s \(.*; make room"):
            saves.check()
    saves.check()
    assert last_good_state(tmp_path)[1].step == 10


def test_a_state_counts_once_every_worker_has_written(tmp_path):
    first, second = writer(tmp_path, rank=0, world_size=2), writer(tmp_path, rank=1, world_size=2)
    for step in (10, 20):
        first.save(Share(2, 0), state(step, 2))
        time.sleep(0.2)
        assert read_state(state_folder(tmp_path, step)) is None
        second.save(Share(2, 1), state(step, 2))
        first.wait()
        second.wait()
        folder, found = last_good_state(tmp_path)
        assert (found.step, sorted(found.files)) == (step, ["rank-00000.safetensors", "rank-00001.safetensors"])
        mine = held(1, 0, fill=False)
        assert read_held(folder, mine) == COUNTS
        assert torch.equal(mine.tensors[0][:13], torch.arange(13.0))


def test_what_another_attempt_left_does_not_count_as_written(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "PEERS_WITHIN_S", 0.3)
    writer(tmp_path, rank=1, world_size=2, attempt="before").save(Share(2, 1), state(10, 2), wait=True)
    with pytest.raises(TimeoutError, match=r"step-000000010 is not whole: workers \[1\] did not write their parts"):
        writer(tmp_path, rank=0, world_size=2).save(Share(2, 0), state(10, 2), wait=True)
    assert last_good_state(tmp_path) is None


def test_what_is_being_written_is_finished_when_training_ends_in_an_error(running, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "WAITS_S", (0.05,) * 100)

    def go_wrong():
        # `full` ends first, and there is room again.
        with writer(tmp_path) as saves, full():
            saves.save(running, state(10))
            raise KeyError("the loss is nan")

    with pytest.raises(KeyError):
        go_wrong()
    assert last_good_state(tmp_path)[1].step == 10


def test_older_states_go_and_what_a_dead_attempt_left(running, tmp_path):
    torn = state_folder(tmp_path, 15)
    with writer(tmp_path, last=1) as saves:
        saves.save(running, state(10))
        saves.wait()
        shutil.copytree(state_folder(tmp_path, 10), torn)
        (torn / "state.json").unlink()
        later = state_folder(tmp_path, 30)
        later.mkdir()
        saves.save(running, state(20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000020", "step-000000030"]
