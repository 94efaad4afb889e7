"""What a trial of a search does, in the process that Ray Tune gives it or on workers of its own, and what ends a search before its trials."""

import functools
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmray.core.artifact import write_json
from fmray.tasks import TaskData
from fmray.train import stopping
from fmray.train.search_config import SearchConfig
from fmray.train.tuning import Epochs, Tuned, TuningConfig, read_progress, tune_classifier
from fmray.train.tuning_group import GROUP, launch_group
from fmray.train.worker import Place

if TYPE_CHECKING:
    from ray.tune import Checkpoint as TuneCheckpoint
    from ray.tune import Stopper

SCORE = "score"
TUNE = "tune"
EPOCHS = "epochs"
TRAINED = "trained.json"
TAKEN = "taken.json"
WALL = "wall.json"
HEARD = "heard.json"
LOOK_EVERY_S = 0.05
Report = Callable[[float], None]


@dataclass(frozen=True)
class Trained:
    """What all attempts of a trial took, by the epochs that it finished itself: seconds and tokens. None of them counts twice,
    whether it was lost later or taken over by another trial.
    """

    seconds: float = 0.0
    n_tokens: int = 0

    @classmethod
    def read(cls, folder: Path) -> "Trained":
        """What the trial wrote into its folder; nothing before its first epoch ended."""
        path = folder / TRAINED
        return cls(**json.loads(path.read_text())) if path.exists() else cls()


class Kept:
    """What a trial keeps in its folder: its epochs, and what they took."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.epochs = folder, Epochs(folder / EPOCHS)
        self._clock = time.monotonic()

    def add(self, tuned: Tuned) -> None:
        """Keeps an epoch that has just ended."""
        before = Trained.read(self.folder)
        write_json(self.folder / TRAINED, vars(Trained(before.seconds + time.monotonic() - self._clock, before.n_tokens + tuned.progress.n_tokens[-1])))
        self.epochs.add(tuned)

    def go_on(self) -> None:
        """The next epoch begins: what went by since the last one was not spent on training."""
        self._clock = time.monotonic()


def trainable(config: SearchConfig, start: Path, data: Path, folder: Path) -> Callable[[dict[str, Any]], None]:
    """One trial as Ray Tune calls it, with the values of its hyperparameters; its epochs are kept below `folder`, by its id."""

    def trial(values: dict[str, Any]) -> None:
        from ray import tune

        kept = Kept(folder / tune.get_context().get_trial_id())
        kept.folder.mkdir(parents=True, exist_ok=True)

        def report(score: float) -> None:
            saved = tune.Checkpoint.from_directory(str(kept.epochs.latest())) if config.scheduler.exchanges else None
            tune.report({SCORE: score}, checkpoint=saved)

        if config.scheduler.exchanges:
            if go_to(kept.epochs, tune.get_checkpoint()):
                write_json(kept.folder / TAKEN, taken(kept.folder) + 1)
        else:
            # Taken up again: Tune, which counts epochs by reports, hears of the finished ones once more.
            for score in kept.epochs.history():
                tune.report({SCORE: score})
        (_on_workers if config.num_workers > 1 else _here)(config.trial(plain(values)), start, data, kept, report)

    return trial


def _here(config: TuningConfig, start: Path, data: Path, kept: Kept, report: Report) -> None:
    """Tunes in this process."""

    def on_epoch(tuned: Tuned) -> bool:
        kept.add(tuned)
        report(tuned.progress.history[-1])
        kept.go_on()
        return True

    tune_classifier(config, start, _read(data), resume=kept.epochs.latest(), on_epoch=on_epoch)


def _on_workers(config: TuningConfig, start: Path, data: Path, kept: Kept, report: Report) -> None:
    """Tunes on a group of workers. After each epoch they wait until Ray Tune, which only this process can tell, has heard of it.

    A worker that is lost ends the trial, which Ray Tune then takes up again.
    """
    epochs, group = kept.epochs, kept.folder / GROUP
    if config.ends_after(epochs.history()):
        return
    group.mkdir(exist_ok=True)
    heard = len(epochs.history())
    write_json(group / HEARD, heard)

    def watch() -> None:
        nonlocal heard
        try:
            history = epochs.history()
        except FileNotFoundError:
            # What was the latest epoch went at this very moment, for the next one is there.
            return
        if heard < len(history):
            report(history[heard])
            heard += 1
            write_json(group / HEARD, heard)

    work = functools.partial(_worker, config, start, data, kept.folder)
    try:
        launch_group(work, config, kept.folder, max_failures=0, watch=watch)
    except SystemExit:
        # Tune ends the trial, from within `report`; the workers need not wait for this process to be gone.
        write_json(group / stopping.STOP, {"reason": "Ray Tune ended the trial"})
        raise


def _worker(config: TuningConfig, start: Path, data: Path, folder: Path, place: Place) -> None:
    """What each worker of a trial does; the first one keeps the epochs."""
    kept = Kept(folder)

    def on_epoch(tuned: Tuned) -> bool:
        kept.add(tuned)
        # Asked to stop, all workers leave together in the next step.
        while not stopping.asked() and json.loads((folder / GROUP / HEARD).read_text()) < tuned.progress.epoch:
            time.sleep(LOOK_EVERY_S)
        kept.go_on()
        return True

    tune_classifier(config, start, _read(data), resume=kept.epochs.latest(), on_epoch=on_epoch, place=place)


def go_to(epochs: Epochs, given: "TuneCheckpoint | None") -> bool:
    """Brings the epochs of a trial to where Ray Tune has it go on: an epoch of its own, of another trial, or its beginning (None).

    Epochs that do not lie on the way there go.

    Returns:
        Whether the epoch is another trial's.
    """
    if given is None:
        shutil.rmtree(epochs.folder, ignore_errors=True)
        return False
    with given.as_directory() as source:
        there = read_progress(Path(source))
        for folder in epochs.folder.glob("epoch_*"):
            passed = read_progress(folder)
            if passed.losses != there.losses[: len(passed.losses)] or passed.history != there.history[: passed.epoch]:
                shutil.rmtree(folder)
        if len(epochs.history()) < there.epoch:
            epochs.copy(Path(source))
            return True
    return False


def taken(folder: Path) -> int:
    """How often a trial took over the training of another, by what it wrote into its folder."""
    path = folder / TAKEN
    return int(json.loads(path.read_text())) if path.exists() else 0


@lru_cache(maxsize=1)
def _read(data: Path) -> TaskData:
    """The splits that trials see; a process that runs one trial after the other reads them once."""
    return TaskData.read(data)


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Python's own numbers for those that numpy drew."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}


def stopper(config: SearchConfig, work: Path) -> "Stopper":
    """Ray Tune's stopper by the budget in time and money, for a search in `work`."""
    from ray.tune import Stopper

    class Spending(Stopper):
        """Counts from the first turn of Tune's loop, and goes on where a killed search was."""

        _began: float | None = None
        _before = _trained_s = 0.0

        def __getstate__(self) -> dict[str, Any]:
            # Ray Tune keeps a pickled stopper and restores it: what a restored search knows is in the files alone.
            return {}

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            self._trained_s = trained_s(work)
            write_json(work / WALL, self._wall_s())
            return False

        def stop_all(self) -> bool:
            ended = exhausted(config, self._wall_s(), self._trained_s)
            if ended:
                write_json(work / WALL, self._wall_s())
            return ended

        def _wall_s(self) -> float:
            if self._began is None:
                self._began, self._before, self._trained_s = time.monotonic(), wall_s(work), trained_s(work)
            return self._before + time.monotonic() - self._began

    return Spending()


def wall_s(work: Path) -> float:
    """Wall seconds of a search with a budget up to its last report, those before a kill included."""
    path = work / WALL
    return float(json.loads(path.read_text())) if path.exists() else 0.0


def trained_s(work: Path) -> float:
    """The seconds of all finished epochs of a search's trials."""
    return sum(Trained.read(path.parent).seconds for path in (work / TUNE).glob(f"*/{TRAINED}"))


def exhausted(config: SearchConfig, wall_s: float, trained_s: float) -> bool:
    """Whether a budget is used up, which it is not before an epoch was finished."""
    budget, hours = config.budget, trained_s * config.devices / 3600
    too_long = budget.hours is not None and wall_s / 3600 >= budget.hours
    too_dear = budget.price is not None and budget.price_per_hour is not None and hours * budget.price_per_hour >= budget.price
    return trained_s > 0 and (too_long or too_dear)
