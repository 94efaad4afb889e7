"""The loop: where it ends, what it tells, and that it stops on a loss that is no number."""

import inspect

import pytest
import torch

from fmray.core.cursor import Cursor
from fmray.core.errors import RunError
from fmray.train import loop
from fmray.train.engine import TorchEngine
from fmray.train.optim import Optim
from tests.parity.workers import OBJECTIVE, Case, batches, model
from tests.train.rows import packed_rows

CASE = Case("one", engine="torch", micro_batch_size=4)


def engine(lr=1e-3):
    return TorchEngine(model(), Optim(lr=lr), lambda step: lr, precision="fp32")


def test_the_loop_is_under_60_lines():
    assert len(inspect.getsource(loop.train).splitlines()) < 60


def test_it_ends_at_max_steps_and_tells_every_step_with_its_cursor():
    told = []
    loop.train(engine(), OBJECTIVE, batches(CASE, 0, 1, 0), max_steps=3, seed=0, on_step=lambda step, stats, cursor: told.append((step, cursor, stats)))
    assert [(step, cursor) for step, cursor, _ in told] == [(i, Cursor(epoch=0, row=8 * i)) for i in (1, 2, 3)]
    assert all(stats.count == OBJECTIVE.count(OBJECTIVE.collate(packed_rows(8, 32, seed=step - 1))) for step, _, stats in told)


def test_it_ends_when_the_batches_do():
    running = engine()
    given = [next(batches(CASE, 0, 1, 0)) for _ in range(2)]
    loop.train(running, OBJECTIVE, given, max_steps=10, seed=0, on_step=lambda *_: None)
    assert running.step == 2


def test_it_ends_behind_the_step_in_which_it_was_asked_to():
    running, told = engine(), []
    loop.train(
        running, OBJECTIVE, batches(CASE, 0, 1, 0), max_steps=10, seed=0, on_step=lambda step, stats, _: told.append((step, stats.stop)),
        stop_asked=lambda: running.step == 2,
    )  # fmt: skip
    assert told == [(1, False), (2, False), (3, True)]


def test_a_loss_that_is_no_number_stops_it():
    # Its first gradients are none, before any loss shows it.
    with pytest.raises(RunError, match=r"the gradient norm is nan at step 2; lower optim.lr"):
        loop.train(engine(lr=1e30), OBJECTIVE, batches(CASE, 0, 1, 0), max_steps=5, seed=0, on_step=lambda *_: None)


def test_a_batch_without_targets_stops_it():
    rows = packed_rows(2, 32)
    rows["segment_ids_BT"][:] = 0
    with pytest.raises(RunError, match="holds no target"):
        engine().train_batch([OBJECTIVE.collate(rows)], OBJECTIVE)


def drawn(seed, rank=0, world_size=1, micro_batch_size=4, steps=2):
    """What torch draws in the forward pass of each of this worker's micro-batches."""
    found = []

    class Watched:
        def count(self, batch):
            return OBJECTIVE.count(batch)

        def loss(self, model, batch):
            found.append(torch.rand(3).tolist())
            return OBJECTIVE.loss(model, batch)

    case = Case("one", engine="torch", micro_batch_size=micro_batch_size)
    loop.train(engine(), Watched(), batches(case, rank, world_size, 0), max_steps=steps, seed=seed, on_step=lambda *_: None, rank=rank, world_size=world_size)
    return found


def test_seeds_steps_and_micro_batches_draw_other_dropouts_and_the_same_seed_the_same():
    first = drawn(0)
    assert first == drawn(0)
    assert len({str(draw) for draw in first}) == len(first) == 4
    assert not [draw for draw in drawn(1) if draw in first]


def test_workers_draw_other_dropouts():
    of_each = [drawn(0, rank, 4, micro_batch_size=1) for rank in range(4)]
    assert len({str(draw) for draws in of_each for draw in draws}) == 4 * 2 * 2


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_row_alone_draws_the_same_on_any_number_of_workers(world_size):
    alone, of_each = drawn(0, micro_batch_size=1), [drawn(0, rank, world_size, micro_batch_size=1) for rank in range(world_size)]
    share = 8 // world_size
    dealt = [of_each[place % world_size][step * share + place // world_size] for step in range(2) for place in range(8)]
    assert dealt == alone
