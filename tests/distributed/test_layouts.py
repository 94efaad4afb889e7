"""A run goes on on other workers than those that it began on: the same losses, and every row once."""

import json

import pytest

from fmray.core.artifact import write_json
from fmray.core.errors import ConfigError, RunError
from fmray.train.pretrain import LEDGER
from fmray.train.state import STATE, latest_state, state_folder
from tests.distributed.running import curve, kill_a_worker_after, pretrain

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.slow]

# Of losses of one layout against another, after forty steps in bf16.
BF16_APART = 0.03


def apart(artifact, quiet):
    """The largest difference of two runs' losses, which have the same steps."""
    return max(abs(x - y) for (_, x, _), (_, y, _) in zip(curve(artifact.path), curve(quiet.path), strict=True))


def test_a_run_of_two_workers_goes_on_on_one_and_then_on_four(quiet, dataset, tmp_path):
    root = tmp_path / "base"
    states = root / "work" / "train"
    lost = r"worker was lost more than max_failures=0 times.*goes on from the last checkpoint"
    # Saving is waited for, so that the state before each kill is whole.
    changes = {"ledger": True, "checkpoint_async": False, "max_failures": 0}
    killed_at = kill_a_worker_after(root, 11)
    with pytest.raises(RunError, match=lost) as error:
        pretrain(root, dataset, zero={"stage": 2}, **changes)
    assert "\n" not in str(error.value)
    assert 11 <= killed_at() < 40
    folder, whole = latest_state(states)
    assert (whole.step % 10, whole.world_size) == (0, 2)
    # What a kill in the middle of a save leaves: a folder without its state.json.
    torn = state_folder(states, whole.step + 10)
    torn.mkdir(exist_ok=True)
    (torn / "half").write_bytes(b"x")
    assert latest_state(states)[0] == folder
    mine = (folder / STATE).read_text()
    write_json(folder / STATE, {**json.loads(mine), "files": {"deepspeed/mp_rank_00_model_states.pt": ""}})
    with pytest.raises(ConfigError, match="was written by 2 workers with deepspeed zero 2 bf16 in that engine's own form; finish it with"):
        pretrain(root, dataset, **changes)
    (folder / STATE).write_text(mine)
    killed_at = kill_a_worker_after(root, 31)
    with pytest.raises(RunError, match=lost):
        pretrain(root, dataset, num_workers=1, micro_batch_size=2, **changes)
    assert 31 <= killed_at() < 40
    assert latest_state(states)[1].world_size == 1
    artifact = pretrain(root, dataset, num_workers=4, zero={"stage": 3}, **changes)
    proof = json.loads((root / LEDGER).read_text())
    assert proof["proven"], proof
    assert (proof["n_read"], proof["world_sizes"]) == (320, [2, 1, 4])
    assert artifact.payload.step == 40
    assert apart(artifact, quiet) < BF16_APART


def test_where_it_runs_does_not_change_what_comes_out(quiet, dataset, tmp_path):
    artifact = pretrain(tmp_path / "base", dataset, engine="torch", num_workers=1, micro_batch_size=2)
    assert artifact.fingerprint == quiet.fingerprint
    assert apart(artifact, quiet) < BF16_APART


def test_it_continues_from_a_checkpoint_with_fresh_optimizer_and_schedule(quiet, dataset, tmp_path):
    artifact = pretrain(tmp_path / "more", dataset, model=None, init=quiet, max_steps=10, engine="torch", num_workers=1)
    assert artifact.payload.parent == quiet.fingerprint
    assert artifact.payload.step == 10
    assert abs(curve(artifact.path)[0][1] - curve(quiet.path)[-1][1]) < 0.6
    assert artifact.payload.vocab_size == quiet.payload.vocab_size
