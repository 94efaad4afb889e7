"""What the tests of real workers share, for every start of workers costs seconds."""

import pytest

from tests.distributed.clusters import NODE, Driver, cluster_of
from tests.distributed.running import pretrain
from tests.train.dataset import token_dataset
from tests.train.tiny import Watcher


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return token_dataset(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture(scope="session")
def watched(ray_session, dataset, tmp_path_factory):
    """An undisturbed run of 40 steps on two workers, and what it told meanwhile."""
    watcher = Watcher()
    return pretrain(tmp_path_factory.mktemp("quiet") / "base", dataset, watcher=watcher), watcher


@pytest.fixture(scope="session")
def quiet(watched):
    """An undisturbed run of 40 steps on two workers."""
    return watched[0]


@pytest.fixture(scope="module")
def shared_cluster():
    with cluster_of(2) as cluster:
        yield cluster


@pytest.fixture
def nothing_left():
    """No driver outlives its test."""
    yield
    while Driver.started:
        Driver.started.pop().kill()


@pytest.fixture
def cluster(shared_cluster, nothing_left):
    """Two nodes of one processor, whatever the tests before took away."""
    while len(shared_cluster.worker_nodes) < 2:
        shared_cluster.add_node(**NODE)
    return shared_cluster
