"""Learning rates as a function of the step, decay groups, bad values."""

import itertools

import pytest
import torch

from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.train.engine import TorchEngine
from fmray.train.optim import Optim, adamw
from fmray.train.schedules import Schedule
from fmray.train.schedules.constant import Constant
from fmray.train.schedules.cosine import Cosine
from fmray.train.schedules.linear import Linear
from fmray.train.schedules.wsd import Wsd
from tests.parity.workers import OBJECTIVE, Case, batches
from tests.parity.workers import model as small_model


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


IMPLEMENTATIONS = ("auto", "fused", "foreach", "single")


def test_each_implementation_is_the_one_that_torch_steps_with():
    kinds = {name: adamw(torch.nn.Linear(2, 2), Optim(implementation=name)).defaults for name in IMPLEMENTATIONS}
    assert {name: (told["fused"], told["foreach"]) for name, told in kinds.items()} == {
        "auto": (True, False), "fused": (True, False), "foreach": (False, True), "single": (False, False),
    }  # fmt: skip
    assert Optim(implementation="foreach").identity() == Optim().identity()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_each_implementation_is_adamw(name):
    """Against the paper's formula (algorithm 2, decay decoupled and times the learning rate) in float64."""
    optim = Optim(lr=0.1, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6, implementation=name)
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3)
    stepping = adamw(layer, optim)
    expected = {key: (value.detach().double(), torch.zeros(value.shape).double(), torch.zeros(value.shape).double()) for key, value in layer.named_parameters()}
    for t in range(1, 6):
        for key, value in layer.named_parameters():
            value.grad = torch.randn(value.shape)
            w, m, v = expected[key]
            g, decay = value.grad.double(), optim.weight_decay if value.ndim > 1 else 0.0
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            w = w - optim.lr * decay * w - optim.lr * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + optim.eps)
            expected[key] = w, m, v
        stepping.step()
    for key, value in layer.named_parameters():
        torch.testing.assert_close(value.detach().double(), expected[key][0], rtol=1e-5, atol=1e-6)


def test_every_implementation_trains_alike_and_goes_on_from_any_others_state(tmp_path):
    def engine(name):
        return TorchEngine(small_model(), Optim(lr=3e-3, implementation=name), lambda step: 3e-3, precision="fp32")

    given = [micro_batches for micro_batches, _ in itertools.islice(batches(Case("one", engine="torch", micro_batch_size=8), 0, 1, 0), 12)]
    curves = {}
    for name in ("fused", "foreach", "single"):
        running = engine(name)
        curves[name] = [running.train_batch(parts, OBJECTIVE).loss for parts in given[:8]]
        (tmp_path / name).mkdir()
        running.save(tmp_path / name)
        curves[name] += [running.train_batch(parts, OBJECTIVE).loss for parts in given[8:]]
    assert curves["fused"][-1] < 0.95 * curves["fused"][0]
    for name in ("foreach", "single"):
        assert curves[name] == pytest.approx(curves["fused"], rel=1e-4)
    for wrote, goes_on in (("fused", "foreach"), ("foreach", "single"), ("single", "fused")):
        running = engine(goes_on)
        running.load(tmp_path / wrote)
        assert [running.train_batch(parts, OBJECTIVE).loss for parts in given[8:]] == pytest.approx(curves["fused"][8:], rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"implementation": "apex"}, "optim.implementation"),
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
