"""What a training survives on real Ray Train workers, and how it ends where it cannot go on."""

import json
import os
import re
import resource
import signal
import time

import psutil
import pytest
from safetensors.torch import load_file

import tests.distributed.faulty  # noqa: F401  registers the objective
from fmray.core.errors import RunError
from fmray.train.faults import read_faults
from fmray.train.metrics import METRICS, read_metrics
from fmray.train.state import STATE, last_good_state, read_state, state_folder
from fmray.train.watchdog import VERDICT
from tests.distributed.running import after_steps, assert_clean, curve, pretrain, workers

pytestmark = pytest.mark.usefixtures("ray_session")


def assert_same(artifact, quiet):
    """The curve and the weights of the undisturbed run in two attempts, and no row twice or left out."""
    assert curve(artifact.path) == curve(quiet.path)
    assert artifact.payload.digest == quiet.payload.digest
    assert_clean(artifact, 320, [2, 2])


@pytest.mark.slow
def test_a_frozen_worker_is_found_and_all_start_again(quiet, dataset, tmp_path):
    root, frozen = tmp_path / "base", []

    def freeze():
        frozen.append(workers()[-1])
        os.kill(frozen[0].pid, signal.SIGSTOP)

    frozen_at = after_steps(root, 14, freeze)
    artifact = pretrain(root, dataset, max_failures=1, hang_after_s=3.0, ledger=True)
    assert 14 <= frozen_at() < 40
    assert_same(artifact, quiet)
    hang = root / "work" / "hangs" / "001"
    told = json.loads((hang / VERDICT).read_text())
    (stacks,) = hang.glob("rank-*.txt")
    assert "train_batch" in stacks.read_text()
    other = 1 - int(stacks.stem.removeprefix("rank-"))
    assert told["verdict"] == f"without a sign, so frozen or lost: rank {other}"
    (fault,) = read_faults(root / "work")
    assert (fault.kind, fault.rank, fault.hang) == ("hung", other, "001")
    assert not frozen[0].is_running() or frozen[0].status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_with_its_stacks_and_the_same_run_goes_on(quiet, dataset, tmp_path):
    root, changes = tmp_path / "base", {"ledger": True, "max_failures": 0, "hang_after_s": 3.0, "objective": {"type": "faulty", "hang_once": str(tmp_path / "hung")}}
    with pytest.raises(RunError, match=r"more than max_failures=0 times; last, training hung: waiting for no other rank: .*; stacks in \S+hangs/001; the same command"):
        pretrain(root, dataset, **changes)
    hang = root / "work" / "hangs" / "001"
    assert sorted(path.name for path in hang.glob("rank-*.txt")) == ["rank-0.txt", "rank-1.txt"]
    verdict = json.loads((hang / VERDICT).read_text())["verdict"]
    assert verdict.startswith("waiting for no other rank: rank ")
    assert verdict.endswith("in loss")
    assert "faulty.py" in verdict
    assert_same(pretrain(root, dataset, **changes), quiet)


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_and_the_same_run_may_go_on_without_it(dataset, tmp_path):
    root, objective = tmp_path / "base", {"type": "faulty", "nan": True}
    with pytest.raises(RunError, match=r"the loss is nan at step \d+; its batch is saved in \S+/nonfinite/step-\d{9};"):
        pretrain(root, dataset, objective=objective, zero={"stage": 3}, max_failures=0, ledger=True)
    (place,) = (root / "work" / "nonfinite").iterdir()
    rows = [load_file(place / f"rank-{rank}.safetensors")["0.row_ids_B"].tolist() for rank in (0, 1)]
    assert 37 in rows[0] + rows[1]
    assert len(set(rows[0] + rows[1])) == 8
    (fault,) = read_faults(root / "work")
    assert (fault.kind, fault.rank) == ("no_number", 0 if 37 in rows[0] else 1)
    assert re.fullmatch(r"the loss is nan at step \d+", fault.what)
    skipping = {"action": "skip", "max_skipped": 4}
    artifact = pretrain(root, dataset, objective=objective, zero={"stage": 3}, max_failures=0, nonfinite=skipping, ledger=True)
    lines = read_metrics(root / METRICS)
    skipped = [line["step"] for line in lines if "skipped" in line]
    # 40 steps of 8 rows read each of the 100 rows three times or four.
    assert len(skipped) in (3, 4)
    assert artifact.payload.figures["train/skipped_steps"] == len(skipped)
    assert [line["step"] for line in lines] == list(range(1, 41))
    losses = [line["loss"] for line in lines if "skipped" not in line]
    assert losses[-1] < 0.85 * losses[0]
    assert_clean(artifact, 320, [2, 2])


@pytest.mark.slow
def test_refused_input_that_shows_only_after_a_save_does_not_take_the_states_along(dataset, tmp_path):
    root = tmp_path / "base"
    with pytest.raises(RunError, match=r"part-00000.parquet: the row is damaged"):
        pretrain(root, dataset, objective={"type": "faulty", "damaged": True}, checkpoint_every_steps=1)
    assert last_good_state(root / "work" / "train") is not None


def limit_files(process, size):
    """No file of the process may grow beyond so many bytes: writing more fails as on a full disk. A state's files are larger."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def await_whole(root, step):
    """Returns once the state of that step counts, which is written while training goes on."""
    deadline = time.monotonic() + 60
    while read_state(state_folder(root / "work" / "train", step)) is None and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.mark.slow
def test_a_storage_that_stays_full_stops_with_the_last_state_whole(quiet, dataset, tmp_path):
    root = tmp_path / "base"

    def fill():
        await_whole(root, 10)
        for process in workers():
            limit_files(process, 100_000)

    after = after_steps(root, 11, fill)
    with pytest.raises(RunError, match=r"step-000000020\S+: cannot be written, in 6 attempts over 31 s .*the last whole state, which is untouched") as error:
        pretrain(root, dataset, ledger=True)
    assert "\n" not in str(error.value)
    after()
    assert last_good_state(root / "work" / "train")[1].step == 10
    assert_same(pretrain(root, dataset, ledger=True), quiet)


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_save_leaves_nothing_that_counts(quiet, dataset, tmp_path):
    root = tmp_path / "base"
    torn = state_folder(root / "work" / "train", 20)
    seen = []

    def kill():
        deadline = time.monotonic() + 60
        while not list(torn.glob("rank-*")) and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(workers()[-1].pid, signal.SIGKILL)
        seen.append((torn / STATE).exists())

    killed = after_steps(root, 15, kill)
    artifact = pretrain(root, dataset, ledger=True)
    killed()
    assert seen == [False]
    assert_same(artifact, quiet)
