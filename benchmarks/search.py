"""What a search costs beside its trials: `python -m benchmarks.search` from the repository.

The same fine-tunings of a tiny decoder, once one after the other in a plain loop in one process, once as trials of a search with one trial
at a time (random search, every trial run to its end, actors reused). Short trials take about a second in many small epochs, long ones
`--long-seconds` in `--long-epochs` epochs of as many more texts. Both ways save every epoch, and the loop runs half before and half after
the search, for the machine's speed drifts. The overhead is the difference of the walls over the trials: over all of them, with the start of
the search and of the process that trains (which a loop in a warm process has behind it), and over those behind the first. Ray's own start
is told apart.
"""

import argparse
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fmray import cluster
from fmray.core.config import load_config
from fmray.core.stage import Out
from fmray.tasks import TaskData
from fmray.train.search import run_trials
from fmray.train.search_config import SearchConfig
from fmray.train.search_trial import TRAINED
from fmray.train.tuning import Epochs, Tuned, TuningConfig, tune_classifier
from tests.train import tiny

# Of each label.
TEXTS = 60
LR = {"optim.lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}}


def looped(config: TuningConfig, start: Path, data: TaskData, folder: Path) -> float:
    """The seconds of one fine-tuning in this process."""
    clock, epochs = time.perf_counter(), Epochs(folder)

    def on_epoch(tuned: Tuned) -> bool:
        epochs.add(tuned)
        return True

    tune_classifier(config, start, data, on_epoch=on_epoch)
    return time.perf_counter() - clock


@dataclass(frozen=True)
class Compared:
    """Seconds of a trial: in a loop, in a search, and in that search behind its first trial; and those before the first trial."""

    alone: float
    searched: float
    later: float
    first: float


def compared(root: Path, n_trials: int, epochs: int, path: Path) -> Compared:
    """The same trials in a loop and in a search over the texts of `path`."""
    config = load_config(SearchConfig, {"task": tiny.task(path), "epochs": epochs, "space": LR, "num_trials": n_trials, "scheduler": {"type": "fifo"}, "max_concurrent_trials": 1})
    data, held = config.task.load(), root / path.stem
    held.mkdir()
    data.save(held / "data.json", ("train", "validation"))
    n_alone = min(n_trials, 20)
    alone = [looped(config, root / "model", data, held / f"loop{number}") for number in range(n_alone // 2)]
    began, clock = time.time(), time.perf_counter()
    results = run_trials(config, root / "model", held / "data.json", Out(held, "", "search", held / "log"))
    ended, seconds = time.time(), time.perf_counter() - clock
    alone += [looped(config, root / "model", data, held / f"loop{number}") for number in range(n_alone // 2, n_alone)]
    first = min(float(result.metrics["timestamp"]) - float(result.metrics["time_total_s"]) for result in results if result.metrics) - began
    trained = min((Path(result.path) / TRAINED).stat().st_mtime for result in results)
    return Compared(sum(alone) / len(alone), seconds / n_trials, (ended - trained) / (n_trials - 1), first)


def main() -> None:
    """Prints what a result file holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", type=int, default=40, help="so many trials of about a second, two at least")
    parser.add_argument("--long", type=int, default=3, help="so many of over a minute, two at least")
    parser.add_argument("--long-seconds", type=float, default=65.0)
    parser.add_argument("--long-epochs", type=int, default=10)
    asked = parser.parse_args()
    if min(asked.short, asked.long) < 2:
        parser.error("give at least two trials of each kind: what lies behind the first is told apart")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        root = Path(folder)
        tiny.save_decoder(root / "model")
        tiny.write_csv(root / "t.csv", tiny.labelled(TEXTS))
        probe = load_config(TuningConfig, {"task": tiny.task(root / "t.csv"), "epochs": 4})
        data = probe.task.load()
        looped(probe, root / "model", data, root / "warm")
        an_epoch = looped(probe, root / "model", data, root / "probe") / probe.epochs
        clock = time.perf_counter()
        cluster.connect()
        print(f"Ray was up in {time.perf_counter() - clock:.1f} s; an epoch takes {an_epoch:.3f} s.")
        print("| trials | epochs each | a trial alone, s | in a search, s | overhead a trial, s | share | behind the first trial, s | share | before the first trial, s |")
        print(f"|{9 * '--:|'}")
        more = round(TEXTS * asked.long_seconds / asked.long_epochs / an_epoch)
        tiny.write_csv(root / "long.csv", tiny.labelled(more))
        for n_trials, epochs, name in ((asked.short, max(1, round(1.0 / an_epoch)), "t.csv"), (asked.long, asked.long_epochs, "long.csv")):
            found = compared(root, n_trials, epochs, root / name)
            row = [n_trials, epochs, f"{found.alone:.2f}", f"{found.searched:.2f}"]
            for each in (found.searched, found.later):
                row += [f"{each - found.alone:.2f}", f"{100 * (each / found.alone - 1):.1f} %"]
            print(f"| {' | '.join(map(str, row))} | {found.first:.1f} |", flush=True)
        packages = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "transformers"))
        print(f"\nMachine: {os.cpu_count()} virtual {platform.machine()} cores, no GPU. Python {platform.python_version()}, {packages}.")


if __name__ == "__main__":
    main()
