"""A Ray cluster of several nodes on this machine, and `fmray run` as a process of its own on it."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import psutil
import ray
import yaml
from ray._common.utils import get_ray_address_file
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import _initialize_internal_kv

from fmray.core.artifact import Artifact, load
from fmray.model.checkpoint import Checkpoint
from fmray.train.metrics import METRICS, read_metrics
from tests.distributed import faulty
from tests.distributed.running import BASE

ROOT = Path(__file__).parents[2]
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
STEPS, SAVED_EVERY = 120, 20


@contextmanager
def cluster_of(nodes: int) -> Iterator[Cluster]:
    """A head without processors, where the driver runs, and so many nodes of one processor each."""
    folder = tempfile.mkdtemp(prefix="fmc", dir="/tmp")
    head = {"num_cpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False, "temp_dir": folder}
    # Where `Cluster` writes its address; only a Ray that was started in its own default place makes the folder.
    Path(get_ray_address_file(None)).parent.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(**NODE)
        yield cluster
    finally:
        # Not `cluster.shutdown()`: a test may have taken the head away.
        for node in cluster.list_all_nodes():
            cluster.remove_node(node, allow_graceful=False)
        # A cluster's nodes leave their own store of keys behind for this whole process, where the session's Ray may be in use.
        if ray.is_initialized():
            _initialize_internal_kv(ray._private.worker.global_worker.gcs_client)
        shutil.rmtree(folder, ignore_errors=True)


def trained_on(cluster: Cluster) -> list[Any]:
    """The nodes on which training workers run now."""
    return [node for node in cluster.worker_nodes if _has_worker(node)]


def _has_worker(node: Any) -> bool:
    raylet = psutil.Process(node.all_processes[ray._private.ray_constants.PROCESS_TYPE_RAYLET][0].process.pid)
    return any(child.name().startswith("ray::RayTrainWo") for child in raylet.children(recursive=True))


class Driver:
    """`fmray run` of an experiment with the one step `base`: a short pretraining that goes slowly until it is `released`."""

    started: ClassVar[list["subprocess.Popen[bytes]"]] = []

    def __init__(self, folder: Path, dataset: Artifact[Any], *, pace_s: float = 0.25, objective: dict[str, Any] | None = None, **changes: Any) -> None:
        self.folder, self.root, self._slow = folder, folder / "runs" / "chaos" / "base", folder / "slow"
        self._slow.write_text(str(pace_s))
        step = BASE | {"precision": "fp32", "max_steps": STEPS, "checkpoint_every_steps": SAVED_EVERY, "num_workers": 2, "ledger": True} | changes
        step |= {"stage": "pretrain", "dataset": {"artifact": str(dataset.path)}, "objective": {"type": "faulty", "slow_while": str(self._slow)} | (objective or {})}
        (folder / "chaos.yaml").write_text(yaml.safe_dump({"name": "chaos", "plugins": [faulty.__file__], "steps": {"base": step}}))

    def start(self, cluster: Cluster, *arguments: str) -> "Driver":
        """Starts it, or starts it again."""
        env = os.environ | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT), "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
        with (self.folder / "out.txt").open("w") as out, (self.folder / "err.txt").open("w") as err:
            self.process = subprocess.Popen([sys.executable, "-m", "fmray", "run", "chaos.yaml", *arguments], cwd=self.folder, env=env, stdout=out, stderr=err)
        self.started.append(self.process)
        return self

    def release(self) -> None:
        """Lets steps take as little time as they need."""
        self._slow.unlink(missing_ok=True)

    def workers_by_step(self) -> list[int]:
        """How many workers took each step that is logged."""
        return [line["num_workers"] for line in read_metrics(self.root / METRICS)]

    def wait_until(self, condition: Callable[[list[int]], bool], within_s: float = 300.0) -> None:
        """Until the workers by step are as wanted.

        Raises:
            AssertionError: they are not in time, or it ended before.
        """
        deadline = time.monotonic() + within_s
        while not condition(self.workers_by_step()):
            assert self.process.poll() is None, f"it ended: {self.said()}"
            assert time.monotonic() < deadline, f"not in time; steps by workers: {self.workers_by_step()}"
            time.sleep(0.05)

    def end(self, within_s: float = 600.0) -> int:
        """Waits for its end; the exit code."""
        return self.process.wait(within_s)

    def said(self) -> str:
        """What it wrote to standard error."""
        return (self.folder / "err.txt").read_text()

    def finished(self) -> Artifact[Checkpoint]:
        """Releases it, waits for its end, and gives what it made."""
        self.release()
        assert self.end() == 0, self.said()
        return load(self.root)
