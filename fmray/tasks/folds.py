"""Cross-validation of a task: its examples in folds, each of which is held out once, and what was said of all of them.

Shapes: N examples of all splits together.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmray.core.artifact import write_json
from fmray.core.errors import DataError
from fmray.data.near_duplicates import root
from fmray.data.split import near_duplicate_groups
from fmray.tasks import SPLITS, Predictions, Split, Task, TaskData
from fmray.tasks.sourced import Sourced, spread

FILE = "folds.json"
COLUMNS = ("confidence_N", "losses_N2")


@dataclass(frozen=True)
class Folds:
    """The data of a cross-validation.

    Attributes:
        whole: what the model that is kept is tuned on: every example is in `train` or, for choosing the epoch, in `validation`; and all of
            them are in `test`, where each is judged by what was said of it when it was held out.
        parts: the data of each fold's model: the fold is its `test`, the other folds its `train` and `validation`.
        fold_N: the fold of each example of `whole`'s test split.
    """

    whole: TaskData
    parts: tuple[TaskData, ...]
    fold_N: NDArray[np.int64]

    def pooled(self, said: Sequence[Predictions]) -> Predictions:
        """What was said of the test split of each fold, as predictions for `whole`'s: each example's is the one of its own fold."""
        place_N = np.argsort(np.argsort(self.fold_N, kind="stable"))
        values = [value for one in said for value in one.values]
        columns: dict[str, Any] = {}
        for name in COLUMNS:
            found = [column for one in said if (column := getattr(one, name)) is not None]
            columns[name] = np.concatenate(found)[place_N] if len(found) == len(said) else None
        return Predictions([values[place] for place in place_N], **columns)

    def of_fold(self, said: Predictions, fold: int) -> Predictions:
        """The part of pooled predictions that is about one fold's test split."""
        of_N = self.fold_N == fold
        columns = {name: None if (column := getattr(said, name)) is None else column[of_N] for name in COLUMNS}
        return Predictions([said.values[place] for place in np.flatnonzero(of_N).tolist()], **columns)

    def baselines(self, task: Task, seed: int) -> dict[str, tuple[Predictions, str]]:
        """The task's baselines, fitted without the fold that they are asked about, for `whole`'s test split."""
        found = [task.baselines(part, seed) for part in self.parts]
        return {name: (self.pooled([one[name][0] for one in found]), note) for name, (_, note) in found[0].items()}

    def scores(self, task: Task, said: Predictions) -> list[dict[str, float]]:
        """The task's figures on each fold, from pooled predictions."""
        each = (self.of_fold(said, fold) for fold in range(len(self.parts)))
        return [task.metrics(part.labels, part.splits["test"].targets, one) for part, one in zip(self.parts, each, strict=True)]


def cut(task: Task, data: TaskData, n_folds: int) -> Folds:
    """Folds of all examples of a task, of like size and with each label in like shares: the same for the same data and number.

    Near-duplicates and examples of one unit (questions about the same passage) stay in one fold, so that none is held out from a model
    that was tuned on its like. Of the other folds so large a share validates as in the task's own split of train and validation.

    Raises:
        DataError: the examples are too few, or too much alike, for so many folds.
    """
    everything = Split(*(tuple(one for name in SPLITS for one in getattr(data.splits[name], field)) for field in ("inputs", "targets")))
    groups_N = _groups(task, everything)
    n_groups = len(set(groups_N.tolist()))
    if n_groups < n_folds:
        raise DataError(f"{len(everything)} examples in {n_groups} groups that must not be parted are too few for {n_folds} folds", where=f"task {task.name}", todo="bring more rows, or fewer folds")
    fold_N = np.asarray(spread(groups_N, everything.targets, [1 / n_folds] * n_folds, len(data.labels)))
    validates = len(data.splits["validation"]) / (len(data.splits["train"]) + len(data.splits["validation"]))

    def part(tested_N: NDArray[np.bool_], tuned_N: NDArray[np.bool_], name: str) -> TaskData:
        places = np.flatnonzero(tuned_N)
        targets = [everything.targets[place] for place in places]
        judged_N = np.zeros_like(tuned_N)
        judged_N[places] = np.asarray(spread(groups_N[places], targets, (1 - validates, validates), len(data.labels))) == 1
        chosen = {"train": tuned_N & ~judged_N, "validation": judged_N, "test": tested_N}
        splits = {split: _taken(everything, of_N) for split, of_N in chosen.items()}
        found = TaskData(data.labels, splits, hashlib.sha256(f"{data.digest} {name} of {n_folds}".encode()).hexdigest(), data.removed)
        if isinstance(task, Sourced):
            task.require_enough(found)
        return found

    every_N = np.ones(len(everything), dtype=bool)
    parts = tuple(part(fold_N == fold, fold_N != fold, str(fold)) for fold in range(n_folds))
    return Folds(part(every_N, every_N, "whole"), parts, fold_N)


def _groups(task: Task, everything: Split) -> NDArray[np.int64]:
    """For each example the first one of its group: near-duplicates, and examples of one unit, and all that these tie together."""
    parent = near_duplicate_groups(everything.texts)
    first: dict[int, int] = {}
    for place, unit in enumerate(task.units(everything).tolist()):
        ours, theirs = root(parent, place), root(parent, first.setdefault(unit, place))
        parent[max(ours, theirs)] = min(ours, theirs)
    return np.array([root(parent, place) for place in range(len(everything))], np.int64)


def _taken(everything: Split, of_N: NDArray[np.bool_]) -> Split:
    places = np.flatnonzero(of_N)
    return Split(tuple(everything.inputs[place] for place in places), tuple(everything.targets[place] for place in places))


def plain(said: Predictions) -> dict[str, Any]:
    """Predictions as plain JSON values."""
    columns = {name: None if (column := getattr(said, name)) is None else column.tolist() for name in COLUMNS}
    return {"values": list(said.values), **columns}


def from_plain(held: Mapping[str, Any]) -> Predictions:
    """What `plain` gave."""
    return Predictions(held["values"], **{name: None if held[name] is None else np.asarray(held[name], np.float64) for name in COLUMNS})


@dataclass(frozen=True)
class Said:
    """What a cross-validated checkpoint keeps beside its model: the number of folds, and what each system said of every example."""

    n_folds: int
    systems: Mapping[str, Predictions]

    def save(self, folder: Path) -> None:
        """Writes it into the checkpoint's directory."""
        write_json(folder / FILE, {"folds": self.n_folds, "systems": {name: plain(said) for name, said in self.systems.items()}})

    @classmethod
    def read(cls, folder: Path) -> "Said | None":
        """What `save` wrote; None of a checkpoint that was not cross-validated."""
        if not (folder / FILE).exists():
            return None
        held = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls(held["folds"], {name: from_plain(said) for name, said in held["systems"].items()})
