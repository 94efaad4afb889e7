"""What a downstream task is: labelled examples in three splits, a head, and the metrics that judge it."""

import abc
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fmray.core.artifact import write_json
from fmray.core.config import Component, Config, load_config
from fmray.core.errors import DataError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """The examples of one split: `texts` of length N and `labels_N`, the index of each one's label."""

    texts: tuple[str, ...]
    labels_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class TaskData:
    """The data of a task.

    `digest` is a sha256 over every example with its label and split, so that an evaluation can tell whether its test rows
    are the ones that training never saw. `removed` counts rows that were left out, by reason.
    """

    labels: tuple[str, ...]
    splits: Mapping[str, Split]
    digest: str
    removed: Mapping[str, int] = field(default_factory=dict)

    def counts(self) -> dict[str, dict[str, int]]:
        """Examples by split and label."""
        n = len(self.labels)
        return {
            name: dict(zip(self.labels, np.bincount(split.labels_N, minlength=n).tolist(), strict=True))
            for name, split in self.splits.items()
        }

    def summary(self) -> dict[str, Any]:
        """What a model artifact keeps of its task: labels, digest, counts; no text."""
        return {"labels": list(self.labels), "digest": self.digest, "counts": self.counts(), "removed": dict(self.removed)}

    def save(self, path: Path, splits: Iterable[str]) -> None:
        """Writes the named splits alone, so that a process that must not see the test rows cannot."""
        chosen = {name: self.splits[name] for name in splits}
        write_json(
            path,
            {
                "labels": self.labels,
                "digest": self.digest,
                "splits": {name: {"texts": s.texts, "labels": s.labels_N.tolist()} for name, s in chosen.items()},
            },
        )

    @classmethod
    def read(cls, path: Path) -> "TaskData":
        """What `save` wrote."""
        saved = json.loads(path.read_text(encoding="utf-8"))
        splits = {
            name: Split(tuple(split["texts"]), np.asarray(split["labels"], dtype=np.int64)) for name, split in saved["splits"].items()
        }
        return cls(tuple(saved["labels"]), splits, saved["digest"])


class Task(Component, package="fmray.tasks"):
    """A downstream task. `name` is the middle part of its metric keys: `eval/<name>/macro_f1`.

    `head` is what a checkpoint for it bears, `metric_names` what `metrics` gives; all are better when higher.
    """

    head: ClassVar[str]
    metric_names: ClassVar[tuple[str, ...]]
    name: str

    @abc.abstractmethod
    def load(self) -> TaskData:
        """Reads the source and splits it: the same data for the same config, on any machine.

        Raises:
            DataError: the source does not hold what the task needs.
        """

    @abc.abstractmethod
    def metrics(self, truth_N: NDArray[np.int64], predicted_N: NDArray[np.int64], n_labels: int) -> dict[str, float]:
        """The figures of `metric_names` for predictions."""


class _Holder(Config):
    task: Task


def task_from(dumped: Mapping[str, Any] | None, where: str) -> Task:
    """The task that a checkpoint was tuned for, from the dump in its payload.

    Raises:
        DataError: the checkpoint names no task.
    """
    if dumped is None:
        raise DataError("names no task, so there is nothing to judge it on", where=where, todo="evaluate a checkpoint that finetune or search made")
    return load_config(_Holder, {"task": dumped}, where).task
