"""Text classification: one label a text, from any source whose documents bear a label column."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fmray.core.config import did_you_mean
from fmray.core.errors import DataError
from fmray.data.sources import Source
from fmray.data.text import normalise
from fmray.data.words import UNSPACED
from fmray.model.checkpoint import Head
from fmray.tasks import Predictions, Split, TaskData, Weights
from fmray.tasks.classifier import Outputs, Rows, encode
from fmray.tasks.scores import averages, calibration_error, matthews
from fmray.tasks.sourced import Example, Sourced, is_blank

if TYPE_CHECKING:
    from torch import Tensor

TFIDF_FEATURES = 20_000
TFIDF = "logistic regression on TF-IDF of words and word pairs"
# scikit-learn's own words, of two letters or more; and of scripts without spaces each character, where its own would take a whole clause for a word.
WORD = rf"[{UNSPACED}]|[^\W{UNSPACED}]{{2,}}"


class TextClassification(Sourced):
    """Which label a text bears. The default columns ask which package of the standard library a docstring comes from.

    Attributes:
        text, label: the fields of a document that hold the text and its label.
        classes: the labels to keep: the most frequent ones, so many, or these by name; None keeps all. Rows of other labels are counted.
        max_examples_per_class: so many are drawn of each label; None keeps all.
    """

    type: Literal["text_classification"] = "text_classification"
    head: ClassVar[Head] = "sequence_classification"
    problem: ClassVar[str | None] = "single_label_classification"
    # Micro averages are left out: with one label an example they are the accuracy.
    metric_names: ClassVar[tuple[str, ...]] = (
        "accuracy", "macro_f1", "macro_precision", "macro_recall", "weighted_f1", "weighted_precision", "weighted_recall", "mcc",
    )  # fmt: skip
    main_metric: ClassVar[str] = "macro_f1"
    per_example: ClassVar[tuple[str, ...]] = ("accuracy",)
    lower_is_better: ClassVar[tuple[str, ...]] = ("ece",)
    name: str = Field("package", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    text: str = "text"
    label: str = "package"
    classes: int | tuple[str, ...] | None = None
    max_examples_per_class: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Self:
        n = len(set(self.classes)) if isinstance(self.classes, tuple) else self.classes
        if n is not None and n < 2:
            raise ValueError("classes: at least 2 different labels are needed to tell them apart")
        if isinstance(self.classes, tuple) and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: a label stands twice")
        return self

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that the model reads."""
        return (self.text,)

    def examples(self, source: Source) -> list[Example]:
        """See `Sourced`: the texts in normal form, the labels as text."""
        found: list[Example] = []
        blank: Counter[str] = Counter()
        columns = (*self.text_columns, self.label)
        for document in source.iter_documents():
            values = self.columns(document, columns)
            blank.update(column for column, value in zip(columns, values, strict=True) if is_blank(value))
            texts = [normalise(str(value)) for value in values[:-1]]
            found.append(Example(texts[0] if len(texts) == 1 else texts, str(values[-1]).strip(), "\n".join(texts)))
        self.refuse_blanks(len(found), blank)
        return found

    def label_names(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """The chosen labels: the most frequent (equals by name), or those that the config names."""
        counts = Counter(example.target for example in examples)
        if len(counts) < 2:
            raise DataError(f"all rows bear one label, '{next(iter(counts))}'", where=self.where, todo=f"look at the column '{self.label}'")
        by_count = sorted(counts, key=lambda label: (-counts[label], label))
        if isinstance(self.classes, tuple):
            for label in self.classes:
                if label not in counts:
                    known = ", ".join(by_count[:20]) + (" ..." if len(by_count) > 20 else "")
                    raise DataError(f"no row bears the label '{label}'{did_you_mean(label, counts)}; labels: {known}", where=self.where)
            return self.classes
        if self.classes is None:
            return tuple(sorted(counts))
        if len(counts) < self.classes:
            raise DataError(f"{self.classes} classes are asked for and the source has {len(counts)}: {', '.join(by_count)}", where=self.where, todo="lower classes")
        return tuple(by_count[: self.classes])

    def indexed(self, target: Any, index: Mapping[str, int]) -> Any:
        """The label's index; rows of classes that are not kept are left out."""
        return index.get(target)

    def labels_in(self, target: Any) -> Iterable[str]:
        """The one label."""
        return (target,)

    def capped(self, examples: list[Example], removed: Counter[str]) -> list[Example]:
        """At most `max_examples`, and at most `max_examples_per_class` of each label."""
        kept = super().capped(examples, removed)
        if self.max_examples_per_class is None:
            return kept
        seen: Counter[int] = Counter()
        few = []
        for example in kept:
            seen[example.target] += 1
            if seen[example.target] <= self.max_examples_per_class:
                few.append(example)
        removed["over_max_examples_per_class"] = len(kept) - len(few)
        return few

    def needs_every_label(self, split: str) -> bool:
        """Every split that is cut from the source: a class without a test row could not be judged."""
        return split == "train" or getattr(self, split) is None

    def encode(self, tokenizer: Any, split: Split, max_length: int, n_labels: int) -> Rows:
        """See `Task`; the targets are `labels_B`."""
        pairs = len(self.text_columns) == 2
        texts = [one[0] for one in split.inputs] if pairs else split.inputs
        rows = encode(tokenizer, texts, max_length, pairs=[one[1] for one in split.inputs] if pairs else None)
        return {**rows, "labels_B": split.labels_N, "example_B": np.arange(len(split), dtype=np.int64)}

    def n_targets(self, batch: "Mapping[str, Tensor]") -> int:
        """The number of rows."""
        return int(batch["labels_B"].numel())

    def loss_sum(self, outputs: "tuple[Tensor, ...]", batch: "Mapping[str, Tensor]", weights_K: "Tensor | None") -> "Tensor":
        """Cross-entropy in nats."""
        import torch.nn.functional as F

        return F.cross_entropy(outputs[0].float(), batch["labels_B"], weight=weights_K, reduction="sum")

    def predict(self, outputs: Outputs, rows: Rows, split: Split) -> Predictions:
        """The most probable label, and its probability."""
        probabilities_NK = softmax(outputs[0])
        return Predictions(probabilities_NK.argmax(axis=1).tolist(), probabilities_NK.max(axis=1))

    def figures(self, labels: Sequence[str], targets: Sequence[Any], predictions: Predictions, weights_RN: Weights) -> dict[str, NDArray[np.float64]]:
        """Accuracy; macro and weighted precision, recall and F1 (in macro figures rare labels count as much as frequent ones); Matthews;
        the calibration error where there is a confidence.
        """
        truth_N, predicted_N = np.asarray(targets, np.int64), np.asarray(predictions.values, np.int64)
        truth_NK, predicted_NK = np.eye(len(labels))[truth_N], np.eye(len(labels))[predicted_N]
        correct_N = truth_N == predicted_N
        found = {
            "accuracy": weights_RN @ correct_N / weights_RN.sum(axis=1),
            "mcc": matthews(truth_NK, predicted_NK, weights_RN),
            **averages(truth_NK, predicted_NK, weights_RN, present_only=True),
        }
        found = {name: found[name] for name in TextClassification.metric_names}
        if predictions.confidence_N is not None:
            found["ece"] = calibration_error(correct_N, predictions.confidence_N, weights_RN)
        return found

    def baselines(self, data: TaskData, seed: int) -> dict[str, tuple[Predictions, str]]:
        """The most frequent label of the training split, and logistic regression on TF-IDF fitted on that split."""
        train, test = data.splits["train"], data.splits["test"]
        most = int(data.occurrences("train").argmax())
        return {
            "majority": (Predictions([most] * len(test)), "the most frequent training label for every example"),
            "tfidf": (Predictions(tfidf(seed).fit(train.texts, train.labels_N).predict(test.texts).tolist()), TFIDF),
        }


def tfidf(seed: int) -> Any:
    """scikit-learn's logistic regression on TF-IDF of words and word pairs, to be fitted on texts and label indices."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(
        TfidfVectorizer(token_pattern=WORD, ngram_range=(1, 2), sublinear_tf=True, max_features=TFIDF_FEATURES),
        LogisticRegression(max_iter=1000, C=10.0, random_state=seed),
    )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities over the last axis, in float64."""
    wide = logits.astype(np.float64)
    exponents = np.exp(wide - wide.max(axis=-1, keepdims=True))
    found: NDArray[np.float64] = exponents / exponents.sum(axis=-1, keepdims=True)
    return found
