"""A run goes on on other workers than those that it began on, by hand and by itself: the same losses, and every row once."""

import json
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from fmray.core.errors import RunError
from fmray.train.pretrain import LEDGER
from fmray.train.state import latest_state
from tests.distributed.running import curve, kill_a_worker_after, pretrain
from tests.train.dataset import token_dataset

# Of losses of one layout against another, after forty steps in bf16 and after three hundred in float32.
BF16_APART, FP32_APART = 0.03, 0.01


def apart(a: Path, b: Path) -> float:
    """The largest difference of two runs' losses, which have the same steps."""
    return max(abs(x - y) for (_, x, _), (_, y, _) in zip(curve(a), curve(b), strict=True))


@pytest.mark.slow
def test_a_run_of_two_workers_goes_on_on_one_and_then_on_four(ray_session, tmp_path):
    dataset = token_dataset(tmp_path / "corpus")
    quiet, root = tmp_path / "quiet", tmp_path / "base"
    pretrain(quiet, dataset, zero={"stage": 2})
    for changes, at in (({"zero": {"stage": 2}}, 11), ({"num_workers": 1, "micro_batch_size": 2}, 22)):
        killed_at = kill_a_worker_after(root, at)
        with pytest.raises(RunError, match="worker was lost"):
            pretrain(root, dataset, ledger=True, max_failures=0, **changes)
        assert at <= killed_at() < 40
    assert latest_state(root / "work" / "train")[1].world_size == 1
    artifact = pretrain(root, dataset, ledger=True, num_workers=4, zero={"stage": 3})
    proof = json.loads((root / LEDGER).read_text())
    assert proof["proven"], proof
    assert (proof["n_read"], proof["world_sizes"]) == (320, [2, 1, 4])
    assert artifact.payload.step == 40
    assert apart(root, quiet) < BF16_APART


@pytest.mark.slow
def test_a_range_of_workers_follows_a_cluster_that_grows_and_shrinks(tmp_path):
    root = Path(__file__).parents[2]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-m", "tests.distributed.elastic", str(tmp_path)], cwd=root, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert [workers for workers, _ in groupby(seen)] == [1, 2, 1]
    proof = json.loads((tmp_path / "base" / LEDGER).read_text())
    assert proof["proven"], proof
    assert proof["n_read"] == 8 * len(seen)
    assert apart(tmp_path / "base", tmp_path / "quiet") < FP32_APART
