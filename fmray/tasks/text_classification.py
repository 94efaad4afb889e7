"""Text classification: one label a text, from any source whose documents bear a label column."""

import functools
import hashlib
import json
from collections import Counter
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fmray.core.artifact import fingerprint
from fmray.core.config import did_you_mean
from fmray.core.errors import DataError
from fmray.data.sources import Source
from fmray.data.split import near_duplicate_groups
from fmray.data.text import normalise
from fmray.tasks import SPLITS, Split, Task, TaskData
from fmray.tasks.scores import macro_f1_R


class TextClassification(Task):
    """Which label a text bears. The defaults ask which package of the standard library a docstring comes from.

    Attributes:
        text, label: the fields of a document that hold the text and its label.
        classes: the labels to keep: the most frequent ones, so many, or these by name.
        max_examples_per_class: so many are drawn of each label; None keeps all.
        split: the shares of train, validation and test.
    """

    type: Literal["text_classification"] = "text_classification"
    head: ClassVar[str] = "sequence_classification"
    metric_names: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")
    name: str = Field("package", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    source: Source
    text: str = "text"
    label: str = "package"
    classes: int | tuple[str, ...] = 8
    max_examples_per_class: int | None = Field(None, ge=1)
    split: tuple[float, float, float] = (0.6, 0.2, 0.2)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Self:
        n = self.classes if isinstance(self.classes, int) else len(set(self.classes))
        if n < 2:
            raise ValueError("classes: at least 2 different labels are needed to tell them apart")
        if isinstance(self.classes, tuple) and n < len(self.classes):
            raise ValueError("classes: a label stands twice")
        if min(self.split) <= 0 or abs(sum(self.split) - 1) > 1e-6:
            raise ValueError(f"split: three positive shares that add up to 1, got {list(self.split)}")
        return self

    def load(self) -> TaskData:
        """Distinct texts of the chosen labels in three splits that hold each label in like shares; near-duplicates stay in one.

        Raises:
            DataError: a column is missing (those present are named), rows without text or label, fewer than two labels,
                a label without rows, or too few distinct rows of a label to put one into each split.
        """
        return _load(self, fingerprint(self.identity()))

    def metrics(self, truth_N: NDArray[np.int64], predicted_N: NDArray[np.int64], n_labels: int) -> dict[str, float]:
        """Accuracy, and the mean of each label's F1, in which rare labels count as much as frequent ones."""
        weights = np.ones((1, len(truth_N)))
        return {"accuracy": float((truth_N == predicted_N).mean()), "macro_f1": float(macro_f1_R(truth_N, predicted_N, n_labels, weights)[0])}


@functools.lru_cache(maxsize=2)
def _load(task: TextClassification, identity: str) -> TaskData:
    """Remembers the data by the task's identity, which holds the digest of the source: reading takes seconds, and stages ask in turn."""
    rows, removed = _read(task)
    labels = _labels(task, Counter(label for _, label in rows))
    index = {label: i for i, label in enumerate(labels)}
    examples = _distinct([(text, index[label]) for text, label in rows if label in index], removed)
    examples = _capped(task, examples, removed)
    split_of = _assign(task, examples, len(labels))
    splits: dict[str, Split] = {}
    for number, name in enumerate(SPLITS):
        chosen = [e for e, s in zip(examples, split_of, strict=True) if s == number]
        splits[name] = Split(tuple(text for text, _ in chosen), np.array([label for _, label in chosen], dtype=np.int64))
    _require_all_labels(task, labels, splits)
    content = json.dumps([labels, {name: [split.texts, split.labels_N.tolist()] for name, split in splits.items()}])
    return TaskData(labels, splits, hashlib.sha256(content.encode()).hexdigest(), dict(removed))


def _read(task: TextClassification) -> tuple[list[tuple[str, str]], Counter[str]]:
    rows: list[tuple[str, str]] = []
    blank: Counter[str] = Counter()
    for document in task.source.iter_documents():
        for column in (task.text, task.label):
            if column not in document:
                hint = did_you_mean(column, document)
                raise DataError(f"the source has no column '{column}'{hint}; it has: {', '.join(document)}", where=_where(task))
        text, label = document[task.text], document[task.label]
        for column, value in ((task.text, text), (task.label, label)):
            if value is None or not str(value).strip():
                blank[column] += 1
        rows.append((normalise(str(text)), str(label).strip()))
    if not rows:
        raise DataError("the source holds no rows", where=_where(task))
    if blank:
        named = ", ".join(f"{n} without '{column}'" for column, n in blank.items())
        raise DataError(f"of {len(rows)} rows {named}", where=_where(task), todo="drop them from the source: an empty text has no label to learn")
    return rows, Counter()


def _where(task: TextClassification) -> str:
    return f"task {task.name}"


def _labels(task: TextClassification, counts: Counter[str]) -> tuple[str, ...]:
    """The chosen labels: the most frequent (equals by name), or those that the config names."""
    if len(counts) < 2:
        raise DataError(f"all rows bear one label, '{next(iter(counts))}'", where=_where(task), todo=f"look at the column '{task.label}'")
    by_count = sorted(counts, key=lambda label: (-counts[label], label))
    if isinstance(task.classes, tuple):
        for label in task.classes:
            if label not in counts:
                known = ", ".join(by_count[:20]) + (" ..." if len(by_count) > 20 else "")
                raise DataError(f"no row bears the label '{label}'{did_you_mean(label, counts)}; labels: {known}", where=_where(task))
        return task.classes
    if len(counts) < task.classes:
        raise DataError(f"{task.classes} classes are asked for and the source has {len(counts)}: {', '.join(by_count)}", where=_where(task), todo="lower classes")
    return tuple(by_count[: task.classes])


def _distinct(examples: list[tuple[str, int]], removed: Counter[str]) -> list[tuple[str, int]]:
    """Each text once; texts that stand under several labels are left out, for no model could tell which is meant."""
    labels: dict[str, set[int]] = {}
    for text, label in examples:
        labels.setdefault(text, set()).add(label)
    kept = [(text, min(found)) for text, found in labels.items() if len(found) == 1]
    removed["under_several_labels"] = sum(len(labels[text]) > 1 for text, _ in examples)
    removed["duplicate"] = len(examples) - removed["under_several_labels"] - len(kept)
    return kept


def _order(task: TextClassification, text: str) -> bytes:
    """A place in a random order that depends on the seed and the text alone, not on the rows around it."""
    return hashlib.sha256(f"{task.seed}\0{text}".encode()).digest()


def _capped(task: TextClassification, examples: list[tuple[str, int]], removed: Counter[str]) -> list[tuple[str, int]]:
    """At most `max_examples_per_class` of each label, in the task's random order."""
    ordered = sorted(examples, key=lambda example: _order(task, example[0]))
    if task.max_examples_per_class is None:
        return ordered
    seen: Counter[int] = Counter()
    kept = []
    for text, label in ordered:
        seen[label] += 1
        if seen[label] <= task.max_examples_per_class:
            kept.append((text, label))
    removed["over_max_examples_per_class"] = len(examples) - len(kept)
    return kept


def _assign(task: TextClassification, examples: list[tuple[str, int]], n_labels: int) -> list[int]:
    """The split of each example: group by group of near-duplicates, largest first, to the split that lacks its labels most."""
    groups: dict[int, list[int]] = {}
    for place, group in enumerate(near_duplicate_groups([text for text, _ in examples])):
        groups.setdefault(int(group), []).append(place)
    labels_N = np.array([label for _, label in examples])
    wanted_SK = np.outer(task.split, np.bincount(labels_N, minlength=n_labels))
    filled_SK = np.zeros_like(wanted_SK)
    split_of = [0] * len(examples)
    for places in sorted(groups.values(), key=len, reverse=True):
        counts_K = np.bincount(labels_N[places], minlength=n_labels)
        lack_S = ((wanted_SK - filled_SK) / wanted_SK) @ counts_K
        chosen = int(lack_S.argmax())
        filled_SK[chosen] += counts_K
        for place in places:
            split_of[place] = chosen
    return split_of


def _require_all_labels(task: TextClassification, labels: tuple[str, ...], splits: dict[str, Split]) -> None:
    for name, split in splits.items():
        empty = [label for label, n in zip(labels, np.bincount(split.labels_N, minlength=len(labels)), strict=True) if n == 0]
        if empty:
            raise DataError(
                f"the {name} split has no row of '{empty[0]}': too few distinct rows bear it", where=_where(task),
                todo="bring more rows, or keep fewer classes",
            )  # fmt: skip
