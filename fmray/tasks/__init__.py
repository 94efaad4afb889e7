"""What a downstream task is: examples in three splits, a head, how both become rows and a loss, and the figures that judge it.

Shapes: N examples, B rows (a long example may take several), T positions, K labels, R weightings of the examples.
"""

import abc
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fmray.core.artifact import fingerprint, write_json
from fmray.core.config import Component, Config, load_config
from fmray.core.errors import DataError
from fmray.model.checkpoint import Head
from fmray.tasks.classifier import Classifier, Outputs, Rows, inputs_of, logits_of

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "validation", "test")
REMEMBERED = 2
CHUNK, UNCUT = 256, 1_000_000

Weights = NDArray[np.float64]
"""How often each example counts in each of R resamples: [R, N]."""


@dataclass(frozen=True)
class Split:
    """The examples of one split, as JSON holds them.

    `inputs` is what the model reads: a text, a pair of texts, a list of words, a mapping of texts. `targets` is what it should say:
    the index of a label, a list of such indices, a list of answers.
    """

    inputs: tuple[Any, ...]
    targets: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def texts(self) -> tuple[str, ...]:
        """Each input as one text."""
        return tuple(_as_text(one) for one in self.inputs)

    @property
    def labels_N(self) -> NDArray[np.int64]:
        """The targets of a task with one label an example."""
        return np.asarray(self.targets, dtype=np.int64)


def _as_text(one: Any) -> str:
    if isinstance(one, str):
        return one
    # Of a turn of a conversation its words, and not who speaks.
    parts = [value for name, value in one.items() if name != "role"] if isinstance(one, Mapping) else one
    return " ".join(_as_text(part) for part in parts)


@dataclass(frozen=True)
class TaskData:
    """The data of a task.

    `labels` is empty where a task has none. `digest` is a sha256 over every example with its target and split, so that an evaluation
    can tell whether its test rows are the ones that training never saw. `removed` counts rows that were left out, by reason.
    """

    labels: tuple[str, ...]
    splits: Mapping[str, Split]
    digest: str
    removed: Mapping[str, int] = field(default_factory=dict)

    def counts(self) -> dict[str, dict[str, int]]:
        """How often each label stands in each split; without labels, the examples."""
        if not self.labels:
            return {name: {"examples": len(split)} for name, split in self.splits.items()}
        return {name: dict(zip(self.labels, self.occurrences(name).tolist(), strict=True)) for name, split in self.splits.items()}

    def occurrences(self, split: str) -> NDArray[np.int64]:
        """How often each label stands in a split: [K]."""
        targets = self.splits[split].targets
        flat = [label for target in targets for label in (target if isinstance(target, Sequence) else (target,))]
        return np.bincount(np.asarray(flat, dtype=np.int64), minlength=len(self.labels))

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
                "splits": {name: {"inputs": s.inputs, "targets": s.targets} for name, s in chosen.items()},
            },
        )

    @classmethod
    def read(cls, path: Path) -> "TaskData":
        """What `save` wrote."""
        saved = json.loads(path.read_text(encoding="utf-8"))
        splits = {name: Split(tuple(split["inputs"]), tuple(split["targets"])) for name, split in saved["splits"].items()}
        return cls(tuple(saved["labels"]), splits, saved["digest"])


@dataclass(frozen=True)
class Predictions:
    """What a system says of each example, in the form of the targets, and how sure it is of it where it can tell: [N] in 0 to 1.

    `losses_N2` is, of a model of text, the summed loss (nats) of each example's target and the number of its tokens.
    """

    values: Sequence[Any]
    confidence_N: NDArray[np.float64] | None = None
    losses_N2: NDArray[np.float64] | None = None

    def alone(self, at: int) -> "Predictions":
        """What it says of one example."""
        confidence, losses = (None if column is None else column[at : at + 1] for column in (self.confidence_N, self.losses_N2))
        return Predictions([self.values[at]], confidence, losses)


class Task(Component, package="fmray.tasks"):
    """A downstream task. `name` is the middle part of its metric keys: `eval/<name>/macro_f1`.

    Attributes:
        head: what a checkpoint for it bears, and so the Auto class of its model.
        problem: the `problem_type` that the model's config.json keeps.
        metric_names: the figures that an epoch or a trial may be chosen by, all better when higher; `main_metric` is the default.
        lower_is_better: the other figures.
        per_example: those of `metric_names` that one example has on its own, so that two models can be compared example by example.
    """

    head: ClassVar[Head]
    problem: ClassVar[str | None] = None
    metric_names: ClassVar[tuple[str, ...]]
    main_metric: ClassVar[str]
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    per_example: ClassVar[tuple[str, ...]] = ()
    name: str

    def load(self) -> TaskData:
        """The task's data: the same for the same config, on any machine.

        It is remembered by the identity, which holds the digest of the source: reading takes seconds, and stages ask in turn.

        Raises:
            DataError: the source does not hold what the task needs.
        """
        key = fingerprint({"task": type(self).__name__, **self.identity()})
        if key not in _LOADED:
            for old in list(_LOADED)[: 1 - REMEMBERED]:
                del _LOADED[old]
            _LOADED[key] = self.read_data()
        return _LOADED[key]

    @abc.abstractmethod
    def read_data(self) -> TaskData:
        """Reads the sources and splits them (see `load`)."""

    @abc.abstractmethod
    def encode(self, tokenizer: Any, split: Split, max_length: int, n_labels: int) -> Rows:
        """Rows of a split for the model: `input_ids_BT` and `attention_mask_BT` (and `token_type_ids_BT`) padded on the right, all int64;
        the targets in columns of the task's own; `example_B`, the number of the example that each row comes from.
        """

    def truncated(self, tokenizer: Any, split: Split, max_length: int, n_labels: int) -> NDArray[np.bool_]:
        """Of which examples `max_length` cuts something off: [N]."""
        found = [np.zeros(0, dtype=bool)]
        for start in range(0, len(split), CHUNK):
            part = Split(split.inputs[start : start + CHUNK], split.targets[start : start + CHUNK])
            kept_N, whole_N = (_n_read(self.encode(tokenizer, part, limit, n_labels), len(part)) for limit in (max_length, UNCUT))
            found.append(kept_N < whole_N)
        return np.concatenate(found)

    def of_epoch(self, rows: Rows, seed: int, epoch: int) -> Rows:
        """The rows as an epoch of training reads them; a task that draws something anew in each epoch draws it here, from both numbers."""
        return rows

    def forward(self, model: Callable[..., Any], batch: Mapping[str, "Tensor"], hf_config: Any) -> "tuple[Tensor, ...]":
        """What `loss_sum` reads of the model for a batch: by default its logits.

        Args:
            hf_config: the model's Hugging Face config.
        """
        return logits_of(model(**inputs_of(batch)), self.head)

    def require_room(self, opened: Classifier, rows: Rows) -> None:
        """Refuses rows that the model has no positions to answer; rows that are only read are cut to fit."""

    def outputs(self, opened: Classifier, rows: Rows, batch_size: int = 64) -> Outputs:
        """What `predict` reads of a model for rows: arrays [B, ...], by default its logits."""
        return opened.outputs(rows, batch_size)

    @abc.abstractmethod
    def n_targets(self, batch: Mapping[str, "Tensor"]) -> int:
        """How many targets the loss of a batch is a sum over."""

    @abc.abstractmethod
    def loss_sum(self, outputs: "tuple[Tensor, ...]", batch: Mapping[str, "Tensor"], weights_K: "Tensor | None") -> "Tensor":
        """The summed loss over the targets of a batch, in float32, from what `forward` gave; `weights_K` weighs each label's targets."""

    @abc.abstractmethod
    def predict(self, outputs: Outputs, rows: Rows, split: Split) -> Predictions:
        """What `outputs` of the rows of `split` say of its examples."""

    @abc.abstractmethod
    def figures(self, labels: Sequence[str], targets: Sequence[Any], predictions: Predictions, weights_RN: Weights) -> dict[str, NDArray[np.float64]]:
        """Each figure of `metric_names` and `lower_is_better` under R weightings of the examples: [R].

        A figure that these predictions cannot have (calibration without a confidence) is left out.
        """

    def metrics(self, labels: Sequence[str], targets: Sequence[Any], predictions: Predictions) -> dict[str, float]:
        """The figures themselves, every example counted once."""
        return {name: float(values[0]) for name, values in self.figures(labels, targets, predictions, np.ones((1, len(targets)))).items()}

    def units(self, split: Split) -> NDArray[np.int64]:
        """To which independent unit each example belongs, from 0 [N]: intervals resample units. By default each example is one."""
        return np.arange(len(split), dtype=np.int64)

    def baselines(self, data: TaskData, seed: int) -> dict[str, tuple[Predictions, str]]:
        """Test predictions of systems that need no model, by name, each with a word on what it is."""
        return {}

    def shown(self, labels: Sequence[str], value: Any) -> Any:
        """A target or predicted value as people read it: labels by name."""
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [self.shown(labels, one) for one in value]
        return labels[value] if labels else value


def _n_read(rows: Rows, n_examples: int) -> NDArray[np.int64]:
    """How many tokens of each example a model is given: [N]."""
    read_N = np.zeros(n_examples, dtype=np.int64)
    for mask in ("attention_mask_BT", "mask_BU"):
        if mask in rows:
            np.add.at(read_N, rows["example_B"], rows[mask].sum(axis=1))
    return read_N


_LOADED: dict[str, TaskData] = {}


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
