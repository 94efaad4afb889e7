"""Tasks whose examples are the documents of a source: reading them by columns, and cutting them into splits that leak nothing."""

import abc
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fmray.core.config import did_you_mean
from fmray.core.errors import DataError
from fmray.data.sources import Document, Source
from fmray.data.split import near_duplicate_groups
from fmray.tasks import SPLITS, Split, Task, TaskData


@dataclass(frozen=True)
class Example:
    """An example: its input, its target (first as the source spells it, then by label indices), and the text that it is known by."""

    input: Any
    target: Any
    text: str


class Sourced(Task):
    """A task over the documents of sources.

    Attributes:
        source: the examples; all splits are cut from it but those that have a source of their own.
        validation, test: sources of these splits; examples of `source` that stand in them too, or are nearly the same, are left out, and
            so are those of `validation` that stand in `test`.
        split: the shares of train, validation and test (those with a source of their own take none).
        max_examples: so many are drawn from `source`; None keeps all.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    source: Source
    validation: Source | None = None
    test: Source | None = None
    split: tuple[float, float, float] = (0.6, 0.2, 0.2)
    max_examples: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _shares_add_up(self) -> Self:
        if min(self.split) <= 0 or abs(sum(self.split) - 1) > 1e-6:
            raise ValueError(f"split: three positive shares that add up to 1, got {list(self.split)}")
        return self

    @abc.abstractmethod
    def examples(self, source: Source) -> list[Example]:
        """The examples of a source, their targets as it spells them.

        Raises:
            DataError: a column is missing (those present are named), or a row holds nothing to learn from.
        """

    @abc.abstractmethod
    def label_names(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The labels by index, from the examples of `source`; none for a task without labels."""

    @abc.abstractmethod
    def indexed(self, target: Any, index: Mapping[str, int]) -> Any:
        """A target by label indices; None leaves the example out."""

    @abc.abstractmethod
    def labels_in(self, target: Any) -> Iterable[str]:
        """The labels that a target, as the source spells it, holds."""

    def capped(self, examples: list[Example], removed: Counter[str]) -> list[Example]:
        """At most `max_examples` of examples that come in the task's random order."""
        kept = examples[: self.max_examples]
        if len(kept) < len(examples):
            removed["over_max_examples"] = len(examples) - len(kept)
        return kept

    def needs_every_label(self, split: str) -> bool:
        """Whether a split that lacks a label is refused: without one to learn from, none can be learnt."""
        return split == "train"

    def read_data(self) -> TaskData:
        """Distinct examples in three splits that hold each label in like shares; near-duplicates stay in one.

        Raises:
            DataError: see `examples`; also labels of `validation` or `test` that `source` lacks, or too few examples of a label.
        """
        removed: Counter[str] = Counter()
        read = self.examples(self.source)
        labels = self.label_names(read)
        own = {name: source for name, source in (("validation", self.validation), ("test", self.test)) if source is not None}
        seen = {label for example in read for label in self.labels_in(example.target)}
        given = {name: self._by_index(self._seen_before(self.examples(source), seen, name), labels, removed) for name, source in own.items()}
        examples = distinct(self._by_index(read, labels, removed), removed)
        if len(given) == 2:
            kept = apart(given["validation"], given["test"])
            removed["validation_in_test"], given["validation"] = len(given["validation"]) - len(kept), kept
        if given:
            kept = apart(examples, [example for part in given.values() for example in part])
            removed["in_validation_or_test"], examples = len(examples) - len(kept), kept
        examples = self.capped(sorted(examples, key=lambda example: self._order(example.text)), removed)
        shares = tuple(0.0 if name in own else share for name, share in zip(SPLITS, self.split, strict=True))
        split_of = assign(examples, shares, len(labels))
        parts = {name: given.get(name, [e for e, s in zip(examples, split_of, strict=True) if s == i]) for i, name in enumerate(SPLITS)}
        splits = {name: Split(tuple(e.input for e in part), tuple(e.target for e in part)) for name, part in parts.items()}
        content = json.dumps([labels, {name: [split.inputs, split.targets] for name, split in splits.items()}])
        data = TaskData(labels, splits, hashlib.sha256(content.encode()).hexdigest(), dict(removed))
        self.require_enough(data)
        return data

    @property
    def where(self) -> str:
        """How errors name the task."""
        return f"task {self.name}"

    def _order(self, text: str) -> bytes:
        """A place in a random order that depends on the seed and the text alone, not on the rows around it."""
        return hashlib.sha256(f"{self.seed}\0{text}".encode()).digest()

    def _by_index(self, examples: list[Example], labels: tuple[str, ...], removed: Counter[str]) -> list[Example]:
        index = {label: i for i, label in enumerate(labels)}
        found = (replace(example, target=self.indexed(example.target, index)) for example in examples)
        kept = [example for example in found if example.target is not None]
        if len(kept) < len(examples):
            removed["of_other_classes"] += len(examples) - len(kept)
        return kept

    def _seen_before(self, examples: list[Example], seen: set[str], split: str) -> list[Example]:
        """The examples of a split's own source, whose labels must all stand in `source`: nothing else can be learnt."""
        new = sorted({label for example in examples for label in self.labels_in(example.target)} - seen)
        if new:
            known = ", ".join(sorted(seen)[:20])
            raise DataError(
                f"the {split} rows bear the label '{new[0]}'{did_you_mean(new[0], seen)}, which no training row does; labels: {known}",
                where=self.where, todo="give sources that share their labels",
            )  # fmt: skip
        return examples

    def require_enough(self, data: TaskData) -> None:
        """Refuses a split without examples, or without those of a label that it needs.

        Raises:
            DataError: it is one.
        """
        for name, split in data.splits.items():
            if not len(split):
                raise DataError(f"the {name} split is empty", where=self.where, todo="bring more rows, or a larger share of them")
            if not data.labels or not self.needs_every_label(name):
                continue
            empty = [label for label, n in zip(data.labels, data.occurrences(name), strict=True) if n == 0]
            if empty:
                raise DataError(
                    f"the {name} split has no row of '{empty[0]}': too few distinct rows bear it", where=self.where,
                    todo="bring more rows, or keep fewer classes",
                )  # fmt: skip

    def columns(self, document: Document, names: Sequence[str]) -> list[Any]:
        """The values of the named columns of a document.

        Raises:
            DataError: one is missing; those present are named.
        """
        for name in names:
            if name not in document:
                hint = did_you_mean(name, document)
                raise DataError(f"the source has no column '{name}'{hint}; it has: {', '.join(document)}", where=self.where)
        return [document[name] for name in names]

    def refuse_blanks(self, n_rows: int, blank: Counter[str]) -> None:
        """Refuses rows without a text or a label, counted by column.

        Raises:
            DataError: there are some, or no row at all.
        """
        if not n_rows:
            raise DataError("the source holds no rows", where=self.where)
        if blank:
            named = ", ".join(f"{n} without '{column}'" for column, n in blank.items())
            raise DataError(f"of {n_rows} rows {named}", where=self.where, todo="drop them from the source: an empty text has no label to learn")


class Unlabelled(Sourced):
    """A task without labels: targets are what the source says."""

    def label_names(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """None."""
        return ()

    def labels_in(self, target: Any) -> Iterable[str]:
        """None."""
        return ()

    def indexed(self, target: Any, index: Mapping[str, int]) -> Any:
        """The target as it is."""
        return target


def is_blank(value: Any) -> bool:
    """Whether a value is no text, or one of white space alone."""
    return value is None or not str(value).strip()


def distinct(examples: Sequence[Example], removed: Counter[str]) -> list[Example]:
    """Each text once; texts that stand under several targets are left out, for no model could tell which is meant."""
    targets: dict[str, dict[str, Example]] = {}
    for example in examples:
        targets.setdefault(example.text, {}).setdefault(json.dumps(example.target), example)
    kept = [next(iter(found.values())) for found in targets.values() if len(found) == 1]
    removed["under_several_labels"] = sum(len(targets[example.text]) > 1 for example in examples)
    removed["duplicate"] = len(examples) - removed["under_several_labels"] - len(kept)
    return kept


def apart(examples: Sequence[Example], others: Sequence[Example]) -> list[Example]:
    """The examples that no other one equals, nearly equals, or is tied to by a chain of near-duplicates."""
    elsewhere = sorted({example.text for example in others})
    groups_N = near_duplicate_groups([*(example.text for example in examples), *elsewhere])
    taken = set(groups_N[len(examples) :].tolist())
    return [example for example, group in zip(examples, groups_N.tolist(), strict=False) if group not in taken]


def assign(examples: Sequence[Example], shares: Sequence[float], n_labels: int) -> list[int]:
    """The split of each example, near-duplicates together (see `spread`)."""
    return spread(near_duplicate_groups([example.text for example in examples]), [example.target for example in examples], shares, n_labels)


def spread(groups_N: NDArray[np.int64], targets: Sequence[Any], shares: Sequence[float], n_labels: int) -> list[int]:
    """The part of each example: group by group, largest first, to the part that lacks its labels most."""
    groups: dict[int, list[int]] = {}
    for place, group in enumerate(groups_N.tolist()):
        groups.setdefault(group, []).append(place)
    open_S = np.flatnonzero(shares)
    counts_NK = _occurrences(targets, n_labels)
    wanted_SK = np.outer(np.asarray(shares)[open_S], counts_NK.sum(axis=0)) / sum(shares)
    filled_SK = np.zeros_like(wanted_SK)
    part_of = [0] * len(targets)
    for places in sorted(groups.values(), key=len, reverse=True):
        counts_K = counts_NK[places].sum(axis=0)
        lack_S = np.divide(wanted_SK - filled_SK, wanted_SK, out=np.zeros_like(wanted_SK), where=wanted_SK > 0) @ counts_K
        chosen = int(lack_S.argmax())
        filled_SK[chosen] += counts_K
        for place in places:
            part_of[place] = int(open_S[chosen])
    return part_of


def _occurrences(targets: Sequence[Any], n_labels: int) -> NDArray[np.float64]:
    """How often each label stands in each target: [N, K]; one column of ones without labels."""
    if not n_labels:
        return np.ones((len(targets), 1))
    counts_NK = np.zeros((len(targets), n_labels))
    for row, target in enumerate(targets):
        np.add.at(counts_NK[row], target, 1.0)
    return counts_NK
