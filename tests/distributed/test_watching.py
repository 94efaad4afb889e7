"""A run that is watched, on real Ray Train workers, with a worker killed in its midst."""

import pytest

from fmray.train.metrics import METRICS, read_metrics
from fmray.train.profiling import PROFILE
from fmray.train.trackers.tensorboard import events
from tests.distributed.running import kill_a_worker_after, pretrain
from tests.train.tiny import Watcher

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow]


def test_a_killed_worker_leaves_no_step_twice_and_no_evaluation_out(dataset, tmp_path):
    root, watcher = tmp_path / "base", Watcher()
    wait = kill_a_worker_after(root, 25)
    artifact = pretrain(root, dataset, watcher=watcher, eval_every_steps=8, profile={"from_step": 30, "steps": 2, "ranks": [1]}, device={"power_w": 65.0})
    assert wait() >= 25
    lines, watched = read_metrics(root / METRICS), artifact.payload.watched
    assert [line["step"] for line in lines] == list(range(1, 41))
    evaluated = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    assert list(evaluated) == [8, 16, 24, 32, 40]
    assert evaluated[40] < 0.9 * evaluated[8]
    assert dict(watched.curves["eval_loss"]) == pytest.approx(evaluated, rel=1e-5)
    assert artifact.payload.figures["train/eval_loss"] == evaluated[40]
    assert any("eval_loss" in figures for _, _, _, figures in watcher.told)
    shown = [event.step for event in events(root / "work" / "tensorboard") for value in event.summary.value if value.tag == "train/loss"]
    assert shown == list(range(1, 41))
    assert [(rank.rank, rank.others_s is not None) for rank in watched.ranks] == [(0, True), (1, True)]
    assert (root / "work" / PROFILE / "rank-1.trace.json.gz").stat().st_size > 1000
    assert watched.operators
    assert watched.notes == ()
    assert 0 < artifact.payload.figures["cost/energy_kwh"] < 0.1
    assert "cost/price_usd" not in artifact.payload.figures
