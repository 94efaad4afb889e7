"""A cluster whose nodes come, go and fail: each training on it ends with the losses of the undisturbed run, and every row once."""

import json
import re
from itertools import groupby

import pytest

from fmray.train.faults import LEFT_OUT, read_faults
from tests.distributed.clusters import NODE, SAVED_EVERY, STEPS, Driver, cluster_of, trained_on
from tests.distributed.running import assert_clean, curve

# Of losses of one layout against another in float32.
APART = 1e-3


@pytest.fixture(scope="module")
def quiet(shared_cluster, dataset, tmp_path_factory):
    """An undisturbed run."""
    return Driver(tmp_path_factory.mktemp("quiet"), dataset).start(shared_cluster).finished()


def assert_same(artifact, quiet):
    assert curve(artifact.path) == curve(quiet.path)
    assert artifact.payload.digest == quiet.payload.digest


def assert_near(artifact, quiet):
    assert max(abs(x - y) for (_, x, _), (_, y, _) in zip(curve(artifact.path), curve(quiet.path), strict=True)) < APART


@pytest.mark.slow
def test_a_node_that_is_lost_is_replaced_by_another(quiet, cluster, dataset, tmp_path):
    driver = Driver(tmp_path, dataset).start(cluster)
    driver.wait_until(lambda by_step: len(by_step) >= 25)
    other = cluster.add_node(**NODE)
    lost = trained_on(cluster)[0]
    cluster.remove_node(lost, allow_graceful=False)
    driver.wait_until(lambda by_step: other in trained_on(cluster))
    artifact = driver.finished()
    assert_same(artifact, quiet)
    assert_clean(artifact, 8 * STEPS, [2, 2])


@pytest.mark.slow
def test_a_node_that_faults_come_from_is_not_used_again(quiet, cluster, dataset, tmp_path):
    bad_node = tmp_path / "bad"
    driver = Driver(tmp_path, dataset, objective={"die_on": str(bad_node)}, max_faults_per_node=1, max_failures=1).start(cluster)
    driver.wait_until(lambda by_step: len(by_step) >= 25)
    cluster.add_node(**NODE)
    bad = trained_on(cluster)[0]
    written = tmp_path / "written"
    written.write_text(bad.node_id)
    written.rename(bad_node)
    artifact = driver.finished()
    assert_same(artifact, quiet)
    assert_clean(artifact, 8 * STEPS, [2, 2])
    (fault,) = read_faults(artifact.path / "work")
    assert (fault.node, fault.kind) == (bad.node_id, "lost")
    assert json.loads((artifact.path / "work" / LEFT_OUT).read_text())["nodes"] == [bad.node_id]
    assert (artifact.payload.figures["train/faults"], artifact.payload.figures["train/nodes_left_out"]) == (1.0, 1.0)
    cluster.remove_node(bad, allow_graceful=False)


@pytest.mark.slow
def test_a_range_of_workers_follows_a_cluster_that_grows_and_shrinks(quiet, cluster, dataset, tmp_path):
    cluster.remove_node(next(iter(cluster.worker_nodes)))
    driver = Driver(tmp_path, dataset, pace_s=0.6, num_workers={"min": 1, "max": 2, "resize_every_s": 1.0}).start(cluster)
    # Behind a state: what one worker took since the last one is taken again by two.
    driver.wait_until(lambda by_step: len(by_step) > SAVED_EVERY + 4)
    node = cluster.add_node(**NODE)
    # So many that a state is written by two: what was not, is taken again by one.
    driver.wait_until(lambda by_step: by_step.count(2) > SAVED_EVERY)
    cluster.remove_node(node, allow_graceful=False)
    driver.wait_until(lambda by_step: 2 in by_step and by_step[-1] == 1)
    artifact = driver.finished()
    assert [workers for workers, _ in groupby(driver.workers_by_step())] == [1, 2, 1]
    assert_near(artifact, quiet)
    assert_clean(artifact, 8 * STEPS, [1, 2, 1])


@pytest.mark.slow
def test_a_head_that_is_lost_ends_the_run_in_one_line_and_the_same_command_goes_on_elsewhere(quiet, nothing_left, dataset, tmp_path):
    driver = Driver(tmp_path, dataset)
    with cluster_of(2) as doomed:
        driver.start(doomed)
        driver.wait_until(lambda by_step: len(by_step) >= 25)
        doomed.remove_node(doomed.head_node, allow_graceful=False)
        assert driver.end() == 1
        (line,) = [line for line in driver.said().splitlines() if line.startswith("fmray: ")]
        assert re.match(r"fmray: the head of the Ray cluster is gone: \S+:\d+ does not answer; the same command goes on from the last state", line)
        # The nodes that lost their head are still there, and may train on for a while.
        with cluster_of(2) as another:
            artifact = driver.start(another).finished()
    assert_same(artifact, quiet)
    assert_clean(artifact, 8 * STEPS, [2, 2])
