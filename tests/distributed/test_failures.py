"""What a training survives on workers of several nodes, and how it ends where it cannot go on; the losses are those of an undisturbed run."""

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
from tests.distributed.clusters import Driver, trained_on
from tests.distributed.running import assert_clean, curve, pretrain, workers

# The run that is compared with: the session's own, of 40 steps.
SHORT = {"max_steps": 40, "checkpoint_every_steps": 10, "precision": "bf16"}


def assert_same(artifact, quiet, attempts=2):
    """The curve and the weights of the undisturbed run in so many attempts, and no row twice or left out."""
    assert curve(artifact.path) == curve(quiet.path)
    assert artifact.payload.digest == quiet.payload.digest
    assert_clean(artifact, 320, attempts * [2])


def began(driver, cluster, steps):
    """Starts it on workers of two nodes, and waits until so many steps are logged."""
    driver.start(cluster)
    driver.wait_until(lambda by_step: len(by_step) >= steps)
    assert len(trained_on(cluster)) == 2
    return driver


def failed(driver):
    """Waits for it to end with an error, and gives the line that it ends with."""
    assert driver.end() == 1, driver.said()
    (line,) = [line for line in driver.said().splitlines() if line.startswith("fmray: ")]
    return line


@pytest.mark.slow
def test_a_worker_asked_to_stop_one_killed_and_a_killed_driver_change_nothing(quiet, cluster, dataset, tmp_path):
    # One of the three counts as a fault, for Ray asks workers to stop when it takes their node away.
    driver = began(Driver(tmp_path, dataset, **SHORT, max_failures=1), cluster, 8)
    os.kill(workers()[-1].pid, signal.SIGTERM)
    driver.wait_until(lambda by_step: len(by_step) >= 14)
    os.kill(workers()[-1].pid, signal.SIGKILL)
    driver.wait_until(lambda by_step: len(by_step) >= 24)
    driver.process.kill()
    driver.process.wait()
    assert_same(driver.start(cluster).finished(), quiet, attempts=4)


@pytest.mark.slow
def test_a_frozen_worker_is_found_and_all_start_again(quiet, cluster, dataset, tmp_path):
    driver = began(Driver(tmp_path, dataset, **SHORT, max_failures=1, hang_after_s=3.0), cluster, 14)
    frozen = workers()[-1]
    os.kill(frozen.pid, signal.SIGSTOP)
    artifact = driver.finished()
    assert_same(artifact, quiet)
    hang = driver.root / "work" / "hangs" / "001"
    told = json.loads((hang / VERDICT).read_text())
    (stacks,) = hang.glob("rank-*.txt")
    assert "train_batch" in stacks.read_text()
    other = 1 - int(stacks.stem.removeprefix("rank-"))
    assert told["verdict"] == f"without a sign, so frozen or lost: rank {other}"
    (fault,) = read_faults(driver.root / "work")
    assert (fault.kind, fault.rank, fault.hang) == ("hung", other, "001")
    assert not frozen.is_running() or frozen.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_with_its_stacks_and_the_same_run_goes_on(quiet, cluster, dataset, tmp_path):
    driver = Driver(tmp_path, dataset, **SHORT, max_failures=0, hang_after_s=3.0, objective={"hang_once": str(tmp_path / "hung")}).start(cluster)
    driver.release()
    said = r"more than max_failures=0 times; last, training hung: waiting for no other rank: .*; stacks in \S+hangs/001; the same command"
    assert re.search(said, failed(driver))
    hang = driver.root / "work" / "hangs" / "001"
    assert sorted(path.name for path in hang.glob("rank-*.txt")) == ["rank-0.txt", "rank-1.txt"]
    verdict = json.loads((hang / VERDICT).read_text())["verdict"]
    assert verdict.startswith("waiting for no other rank: rank ")
    assert verdict.endswith("in loss")
    assert "faulty.py" in verdict
    assert_same(driver.start(cluster).finished(), quiet)


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_and_the_same_run_may_go_on_without_it(cluster, dataset, tmp_path):
    driver = Driver(tmp_path, dataset, **SHORT, zero={"stage": 3}, max_failures=0, objective={"nan": True}).start(cluster)
    driver.release()
    assert re.search(r"the loss is nan at step \d+; its batch is saved in \S+/nonfinite/step-\d{9};", failed(driver))
    (place,) = (driver.root / "work" / "nonfinite").iterdir()
    rows = [load_file(place / f"rank-{rank}.safetensors")["0.row_ids_B"].tolist() for rank in (0, 1)]
    assert 37 in rows[0] + rows[1]
    assert len(set(rows[0] + rows[1])) == 8
    (fault,) = read_faults(driver.root / "work")
    assert (fault.kind, fault.rank) == ("no_number", 0 if 37 in rows[0] else 1)
    assert re.fullmatch(r"the loss is nan at step \d+", fault.what)
    artifact = driver.start(cluster, "base.nonfinite={action: skip, max_skipped: 4}").finished()
    lines = read_metrics(driver.root / METRICS)
    skipped = [line["step"] for line in lines if "skipped" in line]
    # 40 steps of 8 rows read each of the 100 rows three times or four.
    assert len(skipped) in (3, 4)
    assert artifact.payload.figures["train/skipped_steps"] == len(skipped)
    assert [line["step"] for line in lines] == list(range(1, 41))
    losses = [line["loss"] for line in lines if "skipped" not in line]
    assert losses[-1] < 0.85 * losses[0]
    assert_clean(artifact, 320, [2, 2])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
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
def test_a_storage_that_stays_full_stops_with_the_last_state_whole(quiet, cluster, dataset, tmp_path):
    driver = began(Driver(tmp_path, dataset, **SHORT), cluster, 11)
    await_whole(driver.root, 10)
    for process in workers():
        limit_files(process, 100_000)
    driver.release()
    assert re.search(r"step-000000020\S+: cannot be written, in 6 attempts over 31 s .*the last whole state, which is untouched", failed(driver))
    assert last_good_state(driver.root / "work" / "train")[1].step == 10
    assert_same(driver.start(cluster).finished(), quiet)


@pytest.mark.slow
def test_a_store_that_goes_away_stops_and_the_same_run_goes_on_when_it_is_back(quiet, cluster, dataset, tmp_path):
    store, away = tmp_path / "mounted", tmp_path / "away"
    driver = began(Driver(tmp_path, dataset, **SHORT, states=f"file://{store}"), cluster, 11)
    deadline = time.monotonic() + 60
    while not list(store.glob(f"*/step-000000010/{STATE}")) and time.monotonic() < deadline:
        time.sleep(0.005)
    store.rename(away)
    store.touch()
    driver.release()
    assert re.search(r"mounted/\S+step-000000020\S+: cannot be written, in 6 attempts over 31 s", failed(driver))
    assert last_good_state(driver.root / "work" / "train")[1].step >= 10
    store.unlink()
    away.rename(store)
    assert_same(driver.start(cluster).finished(), quiet)
    assert list(store.glob(f"*/step-000000040/{STATE}"))


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_save_leaves_nothing_that_counts(quiet, cluster, dataset, tmp_path):
    driver = began(Driver(tmp_path, dataset, **SHORT), cluster, 15)
    torn = state_folder(driver.root / "work" / "train", 20)
    deadline = time.monotonic() + 60
    while not list(torn.glob("rank-*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(workers()[-1].pid, signal.SIGKILL)
    assert torn.exists()
    assert not (torn / STATE).exists()
    assert_same(driver.finished(), quiet)
