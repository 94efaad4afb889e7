"""A run goes on on other workers than those that it began on: the same losses, and every row once."""

import json
from pathlib import Path

import pytest

from fmray.core.errors import RunError
from fmray.train.pretrain import LEDGER
from fmray.train.state import latest_state
from tests.distributed.running import curve, kill_a_worker_after, pretrain
from tests.train.dataset import token_dataset

# Of losses of one layout against another, after forty steps in bf16.
BF16_APART = 0.03


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
            # So that the state before the kill is whole.
            pretrain(root, dataset, ledger=True, max_failures=0, checkpoint_async=False, **changes)
        assert at <= killed_at() < 40
    assert latest_state(root / "work" / "train")[1].world_size == 1
    artifact = pretrain(root, dataset, ledger=True, num_workers=4, zero={"stage": 3})
    proof = json.loads((root / LEDGER).read_text())
    assert proof["proven"], proof
    assert (proof["n_read"], proof["world_sizes"]) == (320, [2, 1, 4])
    assert artifact.payload.step == 40
    assert apart(root, quiet) < BF16_APART
