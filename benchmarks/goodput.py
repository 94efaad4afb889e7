"""How much of a run's time counts when a worker is killed every minute: `python -m benchmarks.goodput` from the repository.

Two workers train a decoder by DeepSpeed, ZeRO stage 1, under Ray Train; a state is written every few seconds. First undisturbed, which
gives the time of a step; then as many steps as take about `--minutes`, while a worker is killed (SIGKILL) every 60 s. Goodput is the time
of the steps that counted, each at the undisturbed median, by the time that went by between the first step's beginning and the last
one's end. What is lost is told apart: steps that were taken again, and waiting until the workers are there again and the first step
is done.
"""

import argparse
import json
import multiprocessing
import os
import platform
import signal
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fmray import cluster
from fmray.core.artifact import Artifact
from fmray.data.ledger import read_attempt
from fmray.train.metrics import METRICS, read_metrics
from fmray.train.pretrain import LEDGER
from tests.distributed.running import SHAPE, pretrain, workers
from tests.train.dataset import token_dataset

EVERY_S = 60.0
# Steps of a tenth of a second or more, so that those lost between two states weigh what they would in earnest.
CHANGES: dict[str, Any] = {
    "model": SHAPE | {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 768},
    "global_batch_size": 32, "optim": {"lr": 1e-3, "warmup_steps": 5}, "max_failures": 1000, "max_faults_per_node": 1000,
}  # fmt: skip


@dataclass(frozen=True)
class Told:
    """One run: how many seconds between its first and last step, what its steps took, and how many were taken that did not count."""

    steps: int
    seconds: float
    step_s: float
    again: int
    kills: int


def killing(stop: threading.Event, root: Path, kills: list[float]) -> None:
    """Kills a worker every EVERY_S, the first time so long after the first step."""
    while not read_metrics(root / METRICS) and not stop.wait(0.1):
        pass
    due = time.monotonic() + EVERY_S
    while not stop.wait(max(0.0, due - time.monotonic())):
        due += EVERY_S
        if running := workers():
            os.kill(running[-1].pid, signal.SIGKILL)
            kills.append(time.time())


def run(root: Path, dataset: Artifact[Any], steps: int, every: int, *, kill: bool) -> Told:
    """Trains so many steps; `every` so many of them a state is written."""
    stop, kills = threading.Event(), list[float]()
    thread = threading.Thread(target=killing, args=(stop, root, kills), daemon=True)
    if kill:
        thread.start()
    try:
        pretrain(root, dataset, ledger=True, max_steps=steps, checkpoint_every_steps=every, **CHANGES)
    finally:
        stop.set()
    lines = read_metrics(root / METRICS)
    each = [CHANGES["global_batch_size"] * dataset.payload.seq_len / line["tokens_per_s"] for line in lines]
    attempts = [read_attempt(path) for path in (root / "work" / "ledger").glob("attempt-*-rank-00000")]
    taken = sum(len(attempt.entries) for attempt in attempts if attempt is not None)
    assert json.loads((root / LEDGER).read_text())["proven"]
    return Told(steps, lines[-1]["time"] - lines[0]["time"] + each[0], statistics.median(each), taken - steps, len(kills))


def report(minutes: float, folder: Path) -> dict[str, Any]:
    """Runs both and gives the figures."""
    dataset = token_dataset(folder / "corpus", n_rows=2000, seq_len=64)
    # As many states as the second run writes: one about every five seconds.
    quiet = run(folder / "quiet", dataset, 300, 30, kill=False)
    steps, every = int(60 * minutes / quiet.step_s), max(1, round(5 / quiet.step_s))
    disturbed = run(folder / "disturbed", dataset, steps, every, kill=True)
    again_s = disturbed.again * quiet.step_s
    counted_s = disturbed.steps * quiet.step_s
    return {
        "step_ms": 1000 * quiet.step_s, "quiet_goodput": quiet.steps * quiet.step_s / quiet.seconds, "steps": disturbed.steps, "every_steps": every,
        "kills": disturbed.kills, "seconds": disturbed.seconds, "goodput": counted_s / disturbed.seconds, "again_steps": disturbed.again, "again_share": again_s / disturbed.seconds,
        "disturbed_step_ms": 1000 * disturbed.step_s, "lost_a_kill_s": (disturbed.seconds - counted_s * quiet.seconds / (quiet.steps * quiet.step_s)) / max(1, disturbed.kills),
        "back_s": (disturbed.seconds - counted_s - again_s) / max(1, disturbed.kills),
    }  # fmt: skip


def markdown(figures: dict[str, Any]) -> str:
    """The figures as a page."""
    lines = [
        "# Goodput with one kill a minute", "",
        (__doc__ or "").split("\n\n", 1)[1].strip(), "",
        f"Machine: {multiprocessing.cpu_count()} virtual {platform.machine()} cores, no GPU. Python {platform.python_version()}, ray {version('ray')}, "
        f"deepspeed {version('deepspeed')}, torch {version('torch')}. The dead worker's peers share its two cores with its successors' start.", "",
        "| | undisturbed | one kill a minute |", "|---|--:|--:|",
        f"| steps that counted | 300 | {figures['steps']:,} |",
        f"| time of a step, median, ms | {figures['step_ms']:.0f} | {figures['disturbed_step_ms']:.0f} |",
        f"| kills | 0 | {figures['kills']} |",
        f"| seconds from the first step to the last | {300 * figures['step_ms'] / 1000 / figures['quiet_goodput']:.0f} | {figures['seconds']:.0f} |",
        f"| goodput | {figures['quiet_goodput']:.3f} | {figures['goodput']:.3f} |",
        f"| steps taken again (a state every {figures['every_steps']} steps) | 0 | {figures['again_steps']} |",
        f"| share of time for steps taken again | 0 | {figures['again_share']:.3f} |",
        f"| seconds a kill until training goes on, states written meanwhile included | | {figures['back_s']:.1f} |", "",
        f"Each kill cost {figures['lost_a_kill_s']:.1f} s. At that price one an hour leaves {1 - figures['lost_a_kill_s'] / 3600:.4f} of the undisturbed goodput, and one a day "
        f"{1 - figures['lost_a_kill_s'] / 86400:.5f}. Every row was read once an epoch in both runs, by the ledger.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the result file that is named (and its figures as JSON beside it), or prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="of steps that count, in the disturbed run")
    parser.add_argument("--out", type=Path, help="the result file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fmg", dir="/tmp") as folder:
        cluster.connect()
        figures = report(arguments.minutes, Path(folder))
        cluster.close()
    if arguments.out:
        arguments.out.write_text(markdown(figures), encoding="utf-8")
        arguments.out.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    else:
        print(markdown(figures))


if __name__ == "__main__":
    main()
