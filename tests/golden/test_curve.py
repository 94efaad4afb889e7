"""A loss curve is a fixture: 100 steps of the plain engine in fp32 on one thread, as first recorded.

A change that moves it changes what training computes. If that is meant, record it anew with `python -m tests.golden.test_curve`
and say in the commit why it moved.
"""

import json
from pathlib import Path

import torch

from fmray.train.engine import TorchEngine
from fmray.train.loop import train
from fmray.train.optim import Optim
from tests.parity.workers import OBJECTIVE, Case, batches, model

GOLDEN = Path(__file__).with_name("curve.json")
STEPS = 100


def curve() -> list[float]:
    """The losses."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    optim, losses = Optim(lr=3e-3, warmup_steps=10), []
    engine = TorchEngine(model(), optim, lambda step: optim.lr_at(step, STEPS), precision="fp32")
    case = Case("golden", engine="torch", micro_batch_size=8)
    train(engine, OBJECTIVE, batches(case, 0, 1, 0), max_steps=STEPS, seed=0, on_step=lambda step, stats, cursor: losses.append(stats.loss))
    torch.set_num_threads(threads)
    return losses


def test_the_curve_is_the_golden_one():
    golden, now = json.loads(GOLDEN.read_text()), curve()
    assert len(golden) == len(now) == STEPS
    # Other processors round otherwise, which grows along the way.
    assert max(abs(a - b) for a, b in zip(golden[:20], now, strict=False)) < 1e-3
    assert max(abs(a - b) for a, b in zip(golden, now, strict=True)) < 2e-2
    assert now[-1] < 0.4 * now[0]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps([round(loss, 6) for loss in curve()]) + "\n")
