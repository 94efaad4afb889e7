"""Learning rates as a function of the step, decay groups, bad values."""

import itertools

import pytest
import torch

from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.train.optim import Optim, adamw
from fmray.train.schedules import Schedule
from fmray.train.schedules.constant import Constant
from fmray.train.schedules.cosine import Cosine
from fmray.train.schedules.linear import Linear
from fmray.train.schedules.wsd import Wsd


def test_warm_up_rises_evenly_and_the_first_step_moves():
    optim = Optim(lr=1.0, warmup_steps=4, schedule=Constant())
    assert [optim.lr_at(step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_and_linear_fall_from_the_peak_to_their_floor():
    for schedule, middle in ((Cosine(min_lr_ratio=0.2), 0.6), (Linear(min_lr_ratio=0.2), 0.6)):
        optim = Optim(lr=2.0, warmup_steps=10, schedule=schedule)
        assert optim.lr_at(10, 110) == 2.0
        assert optim.lr_at(60, 110) == pytest.approx(2.0 * middle)
        assert optim.lr_at(109, 110) == pytest.approx(2.0 * 0.2, rel=0.05)


def test_wsd_stays_at_the_peak_and_falls_at_the_end():
    optim = Optim(lr=2.0, warmup_steps=10, schedule=Wsd(decay_share=0.25, min_lr_ratio=0.1))
    assert {optim.lr_at(step, 110) for step in range(10, 86)} == {2.0}
    assert optim.lr_at(97, 110) == pytest.approx(2.0 * (1 - 0.9 * 12 / 25))
    assert Wsd(min_lr_ratio=0.1).factor(1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("cls", Schedule.members().values(), ids=lambda cls: cls.__name__)
def test_every_schedule_starts_at_the_peak_and_never_rises(cls):
    factors = [cls().factor(i / 100) for i in range(101)]
    assert factors[0] == 1.0
    assert all(0 <= b <= a for a, b in itertools.pairwise(factors))


def test_matrices_decay_and_vectors_do_not():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    decayed, plain = adamw(model, Optim(weight_decay=0.3)).param_groups
    assert [p.shape for p in decayed["params"]] == [(4, 4)]
    assert len(plain["params"]) == 3
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lr": 0.0}, "optim.lr"),
        ({"betas": [0.9, 1.0]}, "betas must lie in"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"schedule": {"type": "cosin"}}, "unknown schedule 'cosin', did you mean 'cosine'"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
    ],
)
def test_bad_values_are_named(fields, said):
    with pytest.raises(ConfigError, match=said):
        load_config(Optim, fields, "optim")
