"""Shared by all tests: one real local Ray a session, private in its folders and environment."""

import os
import shutil
import tempfile

from fmray.cluster import ENVIRONMENT

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Ray's workers as fair as the others: at Ray's own 15 a second pytest beside them takes their processor, and replicas need minutes to start.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The rest as fmray sets it where it starts a Ray of its own, before anything imports Ray.
os.environ.update({**ENVIRONMENT, **os.environ})
os.environ.pop("RAY_ADDRESS", None)

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.s3 import s3_server  # noqa: F401  a fixture for all

# How long an example may take says nothing on a machine that does other work beside.
settings.register_profile("fmray", deadline=None)
settings.load_profile("fmray")


# Files whose tests take minutes begin first, so that no worker is still at one when the others have nothing left to do.
LONGEST = ("e2e/", "distributed/", "serve/test_operation.py", "serve/test_recovery.py", "train/test_tuning_group.py", "train/test_search", "train/test_finetune.py", "serve/test_api_slow.py", "parity/", "audit/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = item.nodeid.removeprefix("tests/")
        return next((i for i, begin in enumerate(LONGEST) if file.startswith(begin)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray with 8 logical CPUs (which are free), shared by the session's tests."""
    import ray

    folder = tempfile.mkdtemp(prefix="fmt", dir="/tmp")
    ray.init(address="local", num_cpus=8, include_dashboard=False, _temp_dir=folder, object_store_memory=200_000_000, log_to_driver=False)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
