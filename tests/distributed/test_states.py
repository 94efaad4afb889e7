"""States of real Ray Train workers: written beside training or not, kept by the policy, and found again where only the store has them."""

import json
import shutil

import pytest

from fmray.core.errors import RunError
from fmray.train.pretrain import LEDGER
from fmray.train.retention import LOSS
from fmray.train.state import latest_state, whole_states
from tests.distributed.running import curve, kill_a_worker_after, pretrain

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.slow
def test_a_run_whose_folder_was_lost_goes_on_from_the_store(quiet, dataset, tmp_path):
    root, store = tmp_path / "base", tmp_path / "mounted"
    options = {"states": f"file://{store}", "keep_checkpoints": {"last": 1, "best": 1, "every_hours": 24}, "ledger": True}
    killed_at = kill_a_worker_after(root, 34)
    with pytest.raises(RunError, match="worker was lost"):
        pretrain(root, dataset, max_failures=0, **options)
    assert killed_at() < 40
    assert latest_state(root / "work" / "train") is not None
    # As on a machine that has never seen it: the figures of its first steps and the ledger of their rows come back as well.
    shutil.rmtree(root)
    artifact = pretrain(root, dataset, **options)
    assert curve(root) == curve(quiet.path)
    assert json.loads((root / LEDGER).read_text())["proven"]
    assert artifact.payload.digest == quiet.payload.digest
    (run,) = store.iterdir()
    assert run.name.startswith("base-")
    states = {state.step: state for state in whole_states(run).values()}
    # The loss falls, so the last is the best; the first stays for a day's sake.
    assert sorted(states) == [10, 40]
    lines = curve(root)
    assert states[10].metrics[LOSS] == pytest.approx(sum(loss for _, loss, _ in lines[:10]) / 10, rel=0.02)
    assert [path.name for path in (root / "work" / "train").glob("step-*")] == ["step-000000040"]
