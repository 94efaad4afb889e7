"""The rule for a loss that is no number: the batch is kept, and the run stops, or goes on within its bound."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fmray.core.config import load_config
from fmray.core.errors import ConfigError, RunError
from fmray.train.loop import train
from fmray.train.metrics import MetricsLog, loss_points, read_metrics
from fmray.train.nonfinite import BATCH, Nonfinite, NonfiniteGuard
from tests.parity.test_nonfinite import Poisoned, given
from tests.parity.workers import Case, engine

CASE = Case("torch", engine="torch", micro_batch_size=4)


def run(folder, order, **rule):
    running, log = engine(CASE, 1), MetricsLog(folder / "metrics.jsonl", from_step=0, tokens_per_step=1)
    guard = NonfiniteGuard(Nonfinite(**rule), running, folder / "work" / "nonfinite", rank=0)
    train(running, Poisoned(), given(CASE, 0, 1, order), max_steps=len(order), seed=0, on_step=lambda step, stats, _: log.write(step, stats), on_nonfinite=guard)
    return running


def test_it_stops_and_the_batch_can_be_looked_at(tmp_path):
    with pytest.raises(RunError, match=r"the loss is nan at step 2; its batch is saved in \S+step-000000002; look at the data, lower optim.lr .*nonfinite.action=skip") as error:
        run(tmp_path, [0, "nan", 1])
    assert "\n" not in str(error.value)
    place = tmp_path / "work" / "nonfinite" / "step-000000002"
    kept = load_file(place / "rank-0.safetensors")
    ((expected, _),) = given(CASE, 0, 1, ["nan"])
    assert {"0.row_ids_B", "1.row_ids_B"} <= kept.keys()
    for index, batch in enumerate(expected):
        assert all(torch.equal(kept[f"{index}.{name}"], value) for name, value in batch.items())
    told = json.loads((place / BATCH).read_text())
    assert (told["step"], told["loss"], told["cursor_behind"]) == (2, "nan", {"epoch": 0, "row": 0})


def test_it_skips_within_its_bound_and_says_so(tmp_path):
    order = [0, "nan", 1, "infinite_loss", 2]
    running = run(tmp_path, order, action="skip", max_skipped=2)
    assert (running.step, running.skipped) == (5, 2)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["loss"] is None for line in lines] == [False, True, False, True, False]
    assert [line.get("skipped") for line in lines] == [None, "the loss is nan", None, "the loss is inf", None]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert [point.step for point in loss_points(lines)] == [1, 3, 5]
    assert len(list((tmp_path / "work" / "nonfinite").glob("step-*/rank-0.safetensors"))) == 2


def test_one_too_many_stops_it(tmp_path):
    with pytest.raises(RunError, match="the gradient norm is nan at step 3, after 1 updates that were skipped"):
        run(tmp_path, ["nan", 0, "nan_gradient"], action="skip", max_skipped=1)


def test_where_the_batch_cannot_be_kept_the_fault_is_still_told(tmp_path):
    (tmp_path / "work").write_text("a file where the folder should be")
    with pytest.raises(RunError, match=r"the loss is nan at step 1; its batch could not be saved \(.*Not a directory"):
        run(tmp_path, ["nan"])


def test_a_rule_that_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match=r"nonfinite\.action"):
        load_config(Nonfinite, {"action": "ignore"}, "base.nonfinite")
    with pytest.raises(ConfigError, match="max_skipped"):
        load_config(Nonfinite, {"max_skipped": 0}, "base.nonfinite")
