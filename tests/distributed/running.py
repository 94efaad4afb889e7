"""Runs the stage pretrain as the core does, on the session's Ray, and kills workers."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from fmray.core.artifact import Artifact
from fmray.core.config import load_config
from fmray.core.stage import STAGES, Job, produce
from fmray.model.checkpoint import Checkpoint
from fmray.train.config import PretrainConfig
from fmray.train.metrics import METRICS, read_metrics
from fmray.train.pretrain import LEDGER
from tests.train.tiny import Watcher

SHAPE = {"type": "decoder", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
BASE: dict[str, Any] = {
    "model": SHAPE, "optim": {"lr": 3e-3, "warmup_steps": 5}, "global_batch_size": 8, "max_steps": 40, "checkpoint_every_steps": 10, "wait_s": 5.0,
}  # fmt: skip


def pretrain(root: Path, dataset: Artifact[Any], *, watcher: Watcher | None = None, previous: Any = None, init: Any = None, **changes: Any) -> Artifact[Checkpoint]:
    """Produces `root` with the base config and the changes."""
    config = load_config(PretrainConfig, BASE | changes, root.name)
    arguments = {"dataset": dataset, "init": init, "previous": previous}
    inputs = {name: artifact.fingerprint for name, artifact in arguments.items() if artifact is not None}
    job = Job(name=root.name, round=1, spec=STAGES["pretrain"], config=config, arguments=arguments, inputs=inputs, plugins={}, root=root)
    return produce(job, redo=False, watcher=watcher)[0]


def curve(root: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of every line."""
    return [(line["step"], line["loss"], line["grad_norm"]) for line in read_metrics(root / METRICS)]


def assert_clean(artifact: Artifact[Checkpoint], n_read: int, world_sizes: list[int]) -> None:
    """The ledger proves that every row was read as often as it was to be, by so many workers in each attempt."""
    proof = json.loads((artifact.path / LEDGER).read_text())
    assert proof["proven"], proof
    assert (proof["n_read"], proof["world_sizes"]) == (n_read, world_sizes)


def workers() -> list[psutil.Process]:
    """The training workers of this process's Ray."""
    return [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::RayTrainWo")]


def kill_a_worker_after(root: Path, steps: int, number: int = signal.SIGKILL) -> Callable[[], int]:
    """Sends one training worker a signal once so many steps are logged. The returned function waits and gives the step then reached."""
    reached: list[int] = []

    def watch() -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            lines = read_metrics(root / METRICS)
            if lines and lines[-1]["step"] >= steps:
                os.kill(workers()[-1].pid, number)
                reached.append(lines[-1]["step"])
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()

    def wait() -> int:
        thread.join()
        return reached[0]

    return wait
