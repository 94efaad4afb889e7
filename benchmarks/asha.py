"""What ASHA saves: `python -m benchmarks.asha --negative FILE --positive FILE` from the repository.

A random search over sentence polarity, every trial run to its end; then the same draws under ASHA, once for each reduction factor. A trial
that ASHA does not stop trains exactly as it did in the full search, so what is told is whether the best survived, or how near the best
survivor came, and which share of the epochs was trained.
"""

import argparse
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.polarity import add_files, encoder, task
from fmray import cluster
from fmray.core.config import load_config
from fmray.core.stage import Out
from fmray.train.search import run_trials
from fmray.train.search_config import SearchConfig
from fmray.train.search_trial import EPOCHS, Trained
from fmray.train.tuning import Epochs

SPACE = {
    "optim.lr": {"type": "loguniform", "low": 3e-6, "high": 1e-3},
    "optim.weight_decay": {"type": "choice", "values": [0.0, 0.01, 0.1]},
    "global_batch_size": {"type": "choice", "values": [16, 32]},
}


@dataclass(frozen=True)
class Searched:
    """What a search came to: the validation figures of each trial, seconds trained, and the wall."""

    histories: tuple[tuple[float, ...], ...]
    trained_s: float
    wall_s: float

    @property
    def best(self) -> float:
        """The best figure of all epochs."""
        return max(max(history) for history in self.histories)

    @property
    def epochs(self) -> int:
        """All epochs trained."""
        return sum(map(len, self.histories))


def search(config: SearchConfig, start: Path, folder: Path) -> Searched:
    """Runs the trials of a search in `folder`."""
    folder.mkdir(parents=True)
    config.task.load().save(folder / "data.json", ("train", "validation"))
    clock = time.perf_counter()
    results = run_trials(config, start, folder / "data.json", Out(folder, "", "search", folder / "log"))
    wall_s = time.perf_counter() - clock
    failed = [result.error for result in results if result.error is not None]
    if failed:
        raise SystemExit(f"{len(failed)} trials failed, the first: {failed[0]}")
    paths = [Path(result.path) for result in results]
    return Searched(tuple(Epochs(path / EPOCHS).history() for path in paths), sum(Trained.read(path).seconds for path in paths), wall_s)


def line(name: str, one: Searched, full: Searched) -> str:
    """A row of the table."""
    shares = [f"{100 * part / whole:.0f} %" for part, whole in ((one.epochs, full.epochs), (one.trained_s, full.trained_s), (one.wall_s, full.wall_s))]
    return f"| {name} | {one.best:.3f} | {one.epochs} | {' | '.join(shares)} |"


def main() -> None:
    """Prints what a result file holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_files(parser)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--examples", type=int, default=1000, help="so many sentences in all three splits")
    parser.add_argument("--reductions", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    fields: dict[str, Any] = {
        "task": task(asked.negative, asked.positive, asked.examples, (0.5, 0.4, 0.1)), "metric": "accuracy", "space": SPACE, "num_trials": asked.trials,
        "epochs": asked.epochs, "max_length": 48, "precision": "bf16", "max_concurrent_trials": 2, "seed": asked.seed,
    }  # fmt: skip
    start = encoder(asked.model)
    with tempfile.TemporaryDirectory(dir="/tmp") as temp:
        cluster.connect()
        full = search(load_config(SearchConfig, {**fields, "scheduler": {"type": "fifo"}}), start, Path(temp) / "full")
        print(f"{asked.trials} trials of {asked.epochs} epochs on {asked.examples // 2} sentences, judged by accuracy on {round(asked.examples * 0.4)}, seed {asked.seed}.")
        print("| search | best validation accuracy | epochs trained | of all | of the seconds | of the wall |\n|---|--:|--:|--:|--:|--:|")
        print(line("every trial to its end", full, full), flush=True)
        for reduction in asked.reductions:
            config = load_config(SearchConfig, {**fields, "scheduler": {"type": "asha", "reduction_factor": reduction}})
            print(line(f"ASHA, reduction {reduction}", search(config, start, Path(temp) / f"asha{reduction}"), full), flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "transformers"))
    print(f"\nMachine: {os.cpu_count()} virtual {platform.machine()} cores, no GPU. Python {platform.python_version()}, {packages}.")


if __name__ == "__main__":
    main()
