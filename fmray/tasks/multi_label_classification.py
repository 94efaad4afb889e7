"""Multi-label classification: any number of labels a text."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmray.core.errors import DataError
from fmray.data.sources import Source
from fmray.data.text import normalise
from fmray.model.checkpoint import Head
from fmray.tasks import Predictions, Split, TaskData, Weights
from fmray.tasks.classifier import Outputs, Rows, encode
from fmray.tasks.scores import averages
from fmray.tasks.sourced import Example, Sourced, is_blank

if TYPE_CHECKING:
    from torch import Tensor

TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")


class MultiLabelClassification(Sourced):
    """Which labels a text bears: none, one or several.

    Attributes:
        text: the field of a document that holds the text.
        label: the field that holds the list of a text's labels (a list, JSON, or text parted by `separator`), or several fields, each of
            which is a label that holds 0 or 1.
    """

    type: Literal["multi_label_classification"] = "multi_label_classification"
    head: ClassVar[Head] = "sequence_classification"
    problem: ClassVar[str | None] = "multi_label_classification"
    metric_names: ClassVar[tuple[str, ...]] = (
        "micro_f1", "macro_f1", "weighted_f1", "micro_precision", "micro_recall", "macro_precision", "macro_recall", "accuracy",
    )  # fmt: skip
    main_metric: ClassVar[str] = "micro_f1"
    per_example: ClassVar[tuple[str, ...]] = ("accuracy",)
    name: str = Field("labels", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    text: str = "text"
    label: str | tuple[str, ...] = "labels"
    separator: str = Field(",", min_length=1)

    def examples(self, source: Source) -> list[Example]:
        """See `Sourced`."""
        found: list[Example] = []
        blank: Counter[str] = Counter()
        several = () if isinstance(self.label, str) else self.label
        for document in source.iter_documents():
            text, *held = self.columns(document, (self.text, *(several or (str(self.label),))))
            if is_blank(text):
                blank[self.text] += 1
            labels = [name for name, value in zip(several, held, strict=True) if self._is_set(name, value)] if several else self._listed(held[0])
            found.append(Example(normalise(str(text)), sorted(set(labels)), normalise(str(text))))
        self.refuse_blanks(len(found), blank)
        return found

    def _is_set(self, column: str, value: Any) -> bool:
        spelled = str(value).strip().lower()
        if spelled not in (*TRUE, *FALSE):
            raise DataError(f"the column '{column}' holds {value!r}, which is neither 0 nor 1", where=self.where, todo="name the columns of 0 and 1 in label")
        return spelled in TRUE

    def _listed(self, value: Any) -> list[str]:
        if isinstance(value, str) and value.strip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                raise DataError(f"the column '{self.label}' holds {value[:60]!r}, which is no JSON list", where=self.where) from None
        if isinstance(value, str):
            value = value.split(self.separator)
        if not isinstance(value, list | tuple):
            raise DataError(f"the column '{self.label}' holds {value!r}, which is no list of labels", where=self.where)
        return [str(one).strip() for one in value if not is_blank(one)]

    def label_names(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The columns of 0 and 1, or all labels by name."""
        labels = self.label if not isinstance(self.label, str) else tuple(sorted({one for example in examples for one in example.target}))
        if len(labels) < 2:
            raise DataError(f"the rows bear {len(labels)} labels: {', '.join(labels) or 'none'}", where=self.where, todo="two or more are needed")
        return labels

    def indexed(self, target: Any, index: Mapping[str, int]) -> Any:
        """The labels' indices."""
        return sorted(index[label] for label in target)

    def labels_in(self, target: Any) -> Iterable[str]:
        """All of them; a column of 0 and 1 is known even where no row bears it."""
        return (*target, *(self.label if not isinstance(self.label, str) else ()))

    def encode(self, tokenizer: Any, split: Split, max_length: int, n_labels: int) -> Rows:
        """See `Task`; the targets are `labels_BK`, 0 or 1."""
        rows = encode(tokenizer, split.inputs, max_length)
        return {**rows, "labels_BK": indicators(split.targets, n_labels).astype(np.int64), "example_B": np.arange(len(split), dtype=np.int64)}

    def n_targets(self, batch: "Mapping[str, Tensor]") -> int:
        """Rows times labels."""
        return int(batch["labels_BK"].numel())

    def loss_sum(self, outputs: "tuple[Tensor, ...]", batch: "Mapping[str, Tensor]", weights_K: "Tensor | None") -> "Tensor":
        """Binary cross-entropy of each label; its weight holds for the rows that bear it."""
        import torch.nn.functional as F

        return F.binary_cross_entropy_with_logits(outputs[0].float(), batch["labels_BK"].float(), pos_weight=weights_K, reduction="sum")

    def predict(self, outputs: Outputs, rows: Rows, split: Split) -> Predictions:
        """Every label that is more probable than not."""
        return Predictions([np.flatnonzero(row).tolist() for row in outputs[0] > 0])

    def figures(self, labels: Sequence[str], targets: Sequence[Any], predictions: Predictions, weights_RN: Weights) -> dict[str, NDArray[np.float64]]:
        """Averages over the labels; accuracy is that of the whole set."""
        truth_NK, predicted_NK = indicators(targets, len(labels)), indicators(predictions.values, len(labels))
        found = averages(truth_NK, predicted_NK, weights_RN, present_only=False)
        found["accuracy"] = weights_RN @ (truth_NK == predicted_NK).all(axis=1) / weights_RN.sum(axis=1)
        return {name: found[name] for name in self.metric_names}

    def baselines(self, data: TaskData, seed: int) -> dict[str, tuple[Predictions, str]]:
        """The most frequent label alone, for every example."""
        most = int(data.occurrences("train").argmax())
        return {"majority": (Predictions([[most]] * len(data.splits["test"])), "the most frequent training label for every example")}


def indicators(targets: Sequence[Any], n_labels: int) -> NDArray[np.float64]:
    """Lists of label indices as zeros and ones: [N, K]."""
    found_NK = np.zeros((len(targets), n_labels))
    for row, target in enumerate(targets):
        found_NK[row, list(target)] = 1.0
    return found_NK
