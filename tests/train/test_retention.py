"""Which states stay: the last, the best, and some for ever; the choice is the same whatever was removed before."""

import pytest

from fmray.core.config import load_config
from fmray.core.cursor import Cursor
from fmray.core.errors import ConfigError
from fmray.train.config import PretrainConfig
from fmray.train.engine import StepStats
from fmray.train.retention import EVAL_LOSS, LOSS, Keep, Since
from fmray.train.state import TrainState

BASE = {"model": {"type": "decoder"}, "global_batch_size": 8, "max_steps": 10}


def states(*losses, every_s=600):
    """One a ten steps, written ten minutes apart."""
    return [
        TrainState(step=10 * i, cursor=Cursor(), engine="torch fp32", world_size=1, metrics={LOSS: loss} if loss is not None else {}, written_at=1e9 + every_s * i)
        for i, loss in enumerate(losses, start=1)
    ]


def keep(value):
    return load_config(PretrainConfig, BASE | {"keep_checkpoints": value}, "base").keep_checkpoints


def test_a_number_is_that_many_last_ones():
    assert keep(3) == Keep(last=3)
    assert keep(3).steps(states(1, 2, 3, 4)) == {20, 30, 40}
    assert keep({"best": 1}).last == 2


def test_the_best_stay_besides_the_last():
    found = states(3.0, 1.0, None, 2.0, 4.0, 5.0)
    assert keep({"last": 1, "best": 2}).steps(found) == {20, 40, 60}
    assert keep({"last": 1, "best": 1, "higher_is_better": True}).steps(found) == {60}
    assert keep({"last": 1, "best": 1}).steps(states(1.0, 1.0, 2.0)) == {20, 30}


def test_one_every_so_many_hours_stays_for_ever():
    policy = keep({"last": 1, "every_hours": 0.5})
    assert policy.steps(states(*[1.0] * 8)) == {10, 40, 70, 80}
    # As it comes about in a run, which removes the others after each save.
    there = []
    for state in states(*[1.0] * 8):
        there.append(state)
        kept = policy.steps(there)
        there = [s for s in there if s.step in kept]
    assert [s.step for s in there] == [10, 40, 70, 80]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "base.keep_checkpoints.last"),
        (True, "must be a number or"),
        ("all", "must be a number or"),
        ({"last": 2, "metric": "eval/bleu"}, "states do not tell eval/bleu; they tell train/loss"),
        ({"every_hours": 0}, "base.keep_checkpoints.every_hours"),
        ({"worst": 1}, "unknown key 'worst'"),
    ],
)
def test_bad_policies_are_one_line(value, message):
    with pytest.raises(ConfigError, match=message):
        keep(value)


def test_a_state_tells_the_mean_loss_of_the_steps_since_the_one_before():
    since = Since()
    assert since.take() == {}
    since.add(StepStats(10.0, 4, 1.0, 0.1))
    since.add(StepStats(float("nan"), 4, 1.0, 0.1))
    since.add(StepStats(2.0, 2, 1.0, 0.1))
    assert since.take() == {LOSS: 2.0}
    assert since.take() == {}


def test_a_held_out_loss_is_that_of_the_first_state_that_tells_it():
    told = [TrainState(step=10 * i, cursor=Cursor(), engine="torch fp32", world_size=1, metrics={EVAL_LOSS: loss}) for i, loss in enumerate([3.0, 2.0, 2.0, 2.0, 2.5], start=1)]
    assert Keep(last=1, best=1, metric=EVAL_LOSS).steps(told) == {20, 50}
