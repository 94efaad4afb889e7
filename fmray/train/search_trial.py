"""What a trial of a search does, in the process that Ray Tune gives it, and what ends a search before its trials."""

import json
import os
import shutil
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from fmray.core.artifact import write_json
from fmray.tasks import TaskData
from fmray.train.search_config import SearchConfig
from fmray.train.tuning import Epochs, Progress, Tuned, read_progress, tune_classifier

SCORE = "score"
EPOCHS = "epochs"
SPENT = "spent.json"


def trainable(config: SearchConfig, start: Path, data: Path, folder: Path) -> Callable[[dict[str, Any]], None]:
    """One trial as Ray Tune calls it, with the values of its hyperparameters; its epochs are kept below `folder`, by its id."""

    def trial(values: dict[str, Any]) -> None:
        from ray import tune

        def report(progress: Progress, epoch: int, saved: Path | None = None) -> None:
            tune.report({SCORE: progress.history[epoch - 1]}, checkpoint=None if saved is None else tune.Checkpoint.from_directory(str(saved)))

        def on_epoch(tuned: Tuned) -> bool:
            epochs.add(tuned)
            report(tuned.progress, tuned.progress.epoch, epochs.latest() if config.scheduler.exchanges else None)
            return True

        epochs = Epochs(folder / tune.get_context().get_trial_id() / EPOCHS)
        given = tune.get_checkpoint()
        if given is not None:
            with given.as_directory() as source:
                take_over(epochs, Path(source))
        latest = epochs.latest()
        if latest is not None and given is None:
            # Taken up again: Tune, which counts epochs by reports, hears of the finished ones once more.
            done = read_progress(latest)
            for epoch in range(1, done.epoch + 1):
                report(done, epoch, latest if config.scheduler.exchanges else None)
        tune_classifier(config.trial(plain(values)), start, _read(data), resume=latest, on_epoch=on_epoch)

    return trial


def take_over(epochs: Epochs, source: Path) -> None:
    """Makes an epoch of another trial this one's own, in place of all that it has; its own checkpoint, or an older one, changes nothing."""
    theirs = read_progress(source).history
    if list(epochs.history()[: len(theirs)]) == theirs:
        return
    shutil.rmtree(epochs.folder, ignore_errors=True)
    epochs.copy(source)


@lru_cache(maxsize=1)
def _read(data: Path) -> TaskData:
    """The splits that trials see; a process that runs one trial after the other reads them once."""
    return TaskData.read(data)


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Python's own numbers for those that numpy drew."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}


def stopper(config: SearchConfig, folder: Path) -> Any:
    """Ray Tune's stopper by the budget in time and money. What was spent is kept in a file, so that a restored search goes on counting."""
    from ray.tune import Stopper

    class Spending(Stopper):
        def __init__(self) -> None:
            self._began: float | None = None
            self._spent: dict[str, Any] = {}

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            # Ray Tune pickles the stopper at the start of a search: what a restored one knows is in the file alone.
            if self._began is None or self._pid != os.getpid():
                self._began, self._pid, self._spent = time.monotonic(), os.getpid(), read_spent(folder)
                self._before = self._spent["wall_s"]
            self._spent["trials"][f"{trial_id} {result['pid']} {result['hostname']}"] = result["time_total_s"]
            self._spent["wall_s"] = self._before + time.monotonic() - self._began
            write_json(folder / SPENT, self._spent)
            return False

        def stop_all(self) -> bool:
            return bool(self._spent) and exhausted(config, self._spent)

    return Spending()


def read_spent(folder: Path) -> dict[str, Any]:
    """Wall seconds of a search so far, and the seconds of each attempt of a trial."""
    path = folder / SPENT
    return dict(json.loads(path.read_text())) if path.exists() else {"wall_s": 0.0, "trials": {}}


def exhausted(config: SearchConfig, spent: dict[str, Any]) -> bool:
    """Whether a budget is used up."""
    budget, devices = config.budget, config.num_gpus or config.num_cpus
    hours = sum(spent["trials"].values()) * devices / 3600
    too_long = budget.hours is not None and spent["wall_s"] / 3600 >= budget.hours
    return too_long or (budget.price is not None and budget.price_per_hour is not None and hours * budget.price_per_hour >= budget.price)
