"""What a trial of a search does, in the process that Ray Tune gives it, and what ends a search before its trials."""

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
from fmray.train.search_config import SearchConfig
from fmray.train.tuning import Epochs, Tuned, read_progress, tune_classifier

if TYPE_CHECKING:
    from ray.tune import Checkpoint as TuneCheckpoint
    from ray.tune import Stopper

SCORE = "score"
TUNE = "tune"
EPOCHS = "epochs"
TRAINED = "trained.json"
WALL = "wall.json"


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


def trainable(config: SearchConfig, start: Path, data: Path, folder: Path) -> Callable[[dict[str, Any]], None]:
    """One trial as Ray Tune calls it, with the values of its hyperparameters; its epochs are kept below `folder`, by its id."""

    def trial(values: dict[str, Any]) -> None:
        from ray import tune

        own = folder / tune.get_context().get_trial_id()
        own.mkdir(parents=True, exist_ok=True)
        epochs, clock = Epochs(own / EPOCHS), time.monotonic()

        def on_epoch(tuned: Tuned) -> bool:
            nonlocal clock
            before = Trained.read(own)
            write_json(own / TRAINED, vars(Trained(before.seconds + time.monotonic() - clock, before.n_tokens + tuned.progress.n_tokens[-1])))
            epochs.add(tuned)
            saved = tune.Checkpoint.from_directory(str(epochs.latest())) if config.scheduler.exchanges else None
            tune.report({SCORE: tuned.progress.history[-1]}, checkpoint=saved)
            clock = time.monotonic()
            return True

        if config.scheduler.exchanges:
            go_to(epochs, tune.get_checkpoint())
        else:
            # Taken up again: Tune, which counts epochs by reports, hears of the finished ones once more.
            for score in epochs.history():
                tune.report({SCORE: score})
        tune_classifier(config.trial(plain(values)), start, _read(data), resume=epochs.latest(), on_epoch=on_epoch)

    return trial


def go_to(epochs: Epochs, given: "TuneCheckpoint | None") -> None:
    """Brings the epochs of a trial to where Ray Tune has it go on: an epoch of its own, of another trial, or its beginning (None).

    Epochs that do not lie on the way there go.
    """
    if given is None:
        shutil.rmtree(epochs.folder, ignore_errors=True)
        return
    with given.as_directory() as source:
        there = read_progress(Path(source))
        for folder in epochs.folder.glob("epoch_*"):
            passed = read_progress(folder)
            if passed.losses != there.losses[: len(passed.losses)] or passed.history != there.history[: passed.epoch]:
                shutil.rmtree(folder)
        if len(epochs.history()) < there.epoch:
            epochs.copy(Path(source))


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
    budget, hours = config.budget, trained_s * (config.num_gpus or config.num_cpus) / 3600
    too_long = budget.hours is not None and wall_s / 3600 >= budget.hours
    too_dear = budget.price is not None and budget.price_per_hour is not None and hours * budget.price_per_hour >= budget.price
    return trained_s > 0 and (too_long or too_dear)
