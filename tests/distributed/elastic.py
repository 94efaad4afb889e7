"""A cluster that grows and shrinks under a training run: `python -m tests.distributed.elastic FOLDER`, in a process of its own.

Leaves the run in FOLDER/base, an undisturbed one by plain torch in FOLDER/quiet, and in FOLDER/seen.json how many workers took each step.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from fmray.train.metrics import METRICS, read_metrics
from tests.distributed.running import SHAPE, pretrain
from tests.train.dataset import token_dataset

STEPS = 300
CHANGES = {
    # Steps of about a tenth of a second: some hundred of them outlast what Ray takes to see a change.
    "model": SHAPE | {"num_hidden_layers": 4, "hidden_size": 320, "num_attention_heads": 5, "intermediate_size": 1024},
    "precision": "fp32", "max_steps": STEPS, "checkpoint_every_steps": 20, "optim": {"lr": 5e-4, "warmup_steps": 20},
}  # fmt: skip


def workers_by_step(root: Path) -> list[int]:
    """How many workers took each step that is logged."""
    return [line["num_workers"] for line in read_metrics(root / METRICS)]


def wait_for(root: Path, workers: int, steps: int) -> None:
    """Until so many workers have logged so many steps."""
    while workers_by_step(root).count(workers) < steps:
        time.sleep(0.1)


def main(folder: Path) -> None:
    """Grows the cluster from one node to two, and takes the second away again."""
    # Ray waits so long for workers on a node that is gone but not yet missed.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "10"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000})
    ray.init(address=cluster.address, log_to_driver=False)
    dataset = token_dataset(folder / "corpus")
    root = folder / "base"

    def change() -> None:
        wait_for(root, 1, 10)
        node = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
        wait_for(root, 2, 30)
        cluster.remove_node(node, allow_graceful=False)

    threading.Thread(target=change, daemon=True).start()
    pretrain(root, dataset, ledger=True, zero={"stage": 2}, num_workers={"min": 1, "max": 2, "resize_every_s": 1.0}, **CHANGES)
    (folder / "seen.json").write_text(json.dumps(workers_by_step(root)))
    pretrain(folder / "quiet", dataset, engine="torch", num_workers=1, **CHANGES)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
