"""Token classification: a tag for every word, as in named entity recognition."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmray.core.errors import ArtifactError, DataError
from fmray.data.sources import Source
from fmray.model.checkpoint import Head
from fmray.tasks import Predictions, Split, TaskData, Weights
from fmray.tasks.classifier import Outputs, Rows, model_inputs
from fmray.tasks.scores import ratio
from fmray.tasks.sourced import Example, Sourced

if TYPE_CHECKING:
    from torch import Tensor

OUTSIDE = "O"
IGNORED = -100

Span = tuple[str, int, int]


class TokenClassification(Sourced):
    """Which spans of words are of which type, tagged by IOB2: `B-` begins a span, `I-` goes on with it, `O` is outside.

    The first piece of each word learns and says its tag. Words behind `max_length` and words without a piece are said to be `O`.

    Attributes:
        words, tags: the fields of a document that hold the lists of words and of their tags.
        joiner: what stands between words in the text that the tokenizer reads: nothing for Chinese.
    """

    type: Literal["token_classification"] = "token_classification"
    head: ClassVar[Head] = "token_classification"
    metric_names: ClassVar[tuple[str, ...]] = ("span_f1", "span_precision", "span_recall", "span_macro_f1", "token_accuracy")
    main_metric: ClassVar[str] = "span_f1"
    per_example: ClassVar[tuple[str, ...]] = ("token_accuracy",)
    name: str = Field("entities", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    words: str = "words"
    tags: str = "tags"
    joiner: str = " "

    def examples(self, source: Source) -> list[Example]:
        """See `Sourced`: tags must be sound IOB2, as many as words."""
        found: list[Example] = []
        blank: Counter[str] = Counter()
        for document in source.iter_documents():
            words, tags = self.columns(document, (self.words, self.tags))
            for column, value in ((self.words, words), (self.tags, tags)):
                if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                    raise DataError(f"the column '{column}' holds no list of texts", where=f"{self.where}, {document['id']}", todo="a source of type conll gives such lists")
            if not words:
                blank[self.words] += 1
            self._require_sound(words, tags, str(document["id"]))
            found.append(Example(words, tags, " ".join(words)))
        self.refuse_blanks(len(found), blank)
        return found

    def _require_sound(self, words: Sequence[str], tags: Sequence[str], place: str) -> None:
        where = f"{self.where}, {place}"
        if len(words) != len(tags):
            raise DataError(f"has {len(words)} words and {len(tags)} tags", where=where)
        for number, (before, tag) in enumerate(itertools.pairwise([OUTSIDE, *tags])):
            kind, dash, of = tag.partition("-")
            if tag != OUTSIDE and (kind not in ("B", "I") or not dash or not of):
                raise DataError(f"word {number + 1}, '{words[number]}', has the tag '{tag}', which is not O, B-type or I-type", where=where, todo="check the column of the tags")
            if kind == "I" and before not in (f"B-{of}", f"I-{of}"):
                raise DataError(f"word {number + 1}, '{words[number]}', goes on with a span by '{tag}' behind '{before}'", where=where, todo="mend the tags: IOB2 begins each span with B-")

    def read_data(self) -> TaskData:
        """See `Sourced`.

        Raises:
            DataError: also types of spans that stand in the validation or test split alone.
        """
        data = super().read_data()
        learnt_K = data.occurrences("train")
        for name in ("validation", "test"):
            new = [label for label, n, known in zip(data.labels, data.occurrences(name), learnt_K, strict=True) if label.startswith("B-") and n and not known]
            if new:
                raise DataError(
                    f"the {name} split has spans of type '{new[0][2:]}', and the train split has none to learn it from", where=self.where,
                    todo="bring more rows of that type, raise the share of train, or try another task.seed",
                )  # fmt: skip
        return data

    def label_names(self, examples: Sequence[Example]) -> tuple[str, ...]:
        """`O`, then `B-` and `I-` of each type by name."""
        kinds = sorted({tag[2:] for example in examples for tag in example.target if tag != OUTSIDE})
        if not kinds:
            raise DataError("all words bear one tag, 'O'", where=self.where, todo="check the column of the tags")
        return (OUTSIDE, *(f"{part}-{kind}" for kind in kinds for part in "BI"))

    def labels_in(self, target: Any) -> Iterable[str]:
        """The beginnings of spans, which stand for their types."""
        return {f"B-{tag[2:]}" for tag in target if tag != OUTSIDE}

    def needs_every_label(self, split: str) -> bool:
        """None does: of a type whose spans are single words no word bears `I-`, and rare types need not stand in each split."""
        return False

    def indexed(self, target: Any, index: Mapping[str, int]) -> Any:
        """The tags' indices."""
        return [index[tag] for tag in target]

    def encode(self, tokenizer: Any, split: Split, max_length: int, n_labels: int) -> Rows:
        """See `Task`; `words_BT` is the number of the word whose first piece stands at a position, else -1, and `labels_BT` its tag,
        else -100, which no loss counts.

        Raises:
            ArtifactError: the tokenizer cannot say where its tokens stand in a text.
        """
        if not tokenizer.is_fast:
            raise ArtifactError("its tokenizer tells no offsets, so tags cannot be put on its tokens", where=self.where, todo="give a model with a tokenizer.json")
        texts = [self.joiner.join(words) for words in split.inputs]
        encoded = tokenizer(
            texts, truncation=True, max_length=max_length, padding=True, padding_side="right", return_offsets_mapping=True, return_tensors="np"
        )
        rows = model_inputs(encoded, pairs=False)
        words_BT = np.full(rows["input_ids_BT"].shape, -1, dtype=np.int64)
        for row, (words, offsets) in enumerate(zip(split.inputs, encoded["offset_mapping"], strict=True)):
            first_pieces(words_BT[row], words, len(self.joiner), offsets)
        labels_BT = np.full_like(words_BT, IGNORED)
        for row, tags in enumerate(split.targets):
            at = np.flatnonzero(words_BT[row] >= 0)
            labels_BT[row, at] = np.asarray(tags, dtype=np.int64)[words_BT[row, at]]
        return {**rows, "words_BT": words_BT, "labels_BT": labels_BT, "example_B": np.arange(len(split), dtype=np.int64)}

    def n_targets(self, batch: "Mapping[str, Tensor]") -> int:
        """The number of words that have a piece."""
        return int((batch["labels_BT"] != IGNORED).sum())

    def loss_sum(self, outputs: "tuple[Tensor, ...]", batch: "Mapping[str, Tensor]", weights_K: "Tensor | None") -> "Tensor":
        """Cross-entropy at the first piece of each word."""
        import torch.nn.functional as F

        return F.cross_entropy(outputs[0].float().flatten(0, 1), batch["labels_BT"].flatten(), weight=weights_K, ignore_index=IGNORED, reduction="sum")

    def predict(self, outputs: Outputs, rows: Rows, split: Split) -> Predictions:
        """The most probable tag at the first piece of each word."""
        said_BT = outputs[0].argmax(axis=-1)
        values = [[0] * len(words) for words in split.inputs]
        for row, position in zip(*np.nonzero(rows["words_BT"] >= 0), strict=True):
            values[rows["example_B"][row]][rows["words_BT"][row, position]] = int(said_BT[row, position])
        return Predictions(values)

    def figures(self, labels: Sequence[str], targets: Sequence[Any], predictions: Predictions, weights_RN: Weights) -> dict[str, NDArray[np.float64]]:
        """Precision, recall and F1 of whole spans, over all of them and as the mean over types, with the spans that seqeval reads from
        the tags; and the share of words with the right tag.
        """
        truth, said = ([spans([labels[tag] for tag in tags]) for tags in side] for side in (targets, predictions.values))
        kinds = sorted({kind for side in (truth, said) for found in side for kind, _, _ in found})
        hits_NK, true_NK, said_NK = (
            np.array([[len([s for s in found if s[0] == kind]) for kind in kinds] for found in side], float).reshape(len(truth), len(kinds))
            for side in ([a & b for a, b in zip(truth, said, strict=True)], truth, said)
        )
        top, true, guessed = weights_RN @ hits_NK, weights_RN @ true_NK, weights_RN @ said_NK
        every_RK = ratio(2 * top, true + guessed)
        right_N = [sum(a == b for a, b in zip(one, other, strict=True)) for one, other in zip(targets, predictions.values, strict=True)]
        return {
            "span_f1": ratio(2 * top.sum(axis=1), (true + guessed).sum(axis=1)),
            "span_precision": ratio(top.sum(axis=1), guessed.sum(axis=1)),
            "span_recall": ratio(top.sum(axis=1), true.sum(axis=1)),
            "span_macro_f1": ratio(every_RK.sum(axis=1), (true + guessed > 0).sum(axis=1)),
            "token_accuracy": weights_RN @ np.asarray(right_N, float) / (weights_RN @ np.array([len(tags) for tags in targets], float)),
        }

    def baselines(self, data: TaskData, seed: int) -> dict[str, tuple[Predictions, str]]:
        """Each word's most frequent training tag, `O` for words that never stood there."""
        train, test = data.splits["train"], data.splits["test"]
        counts: dict[str, Counter[int]] = {}
        for words, tags in zip(train.inputs, train.targets, strict=True):
            for word, tag in zip(words, tags, strict=True):
                counts.setdefault(word, Counter())[tag] += 1
        best = {word: min(found, key=lambda tag: (-found[tag], tag)) for word, found in counts.items()}
        values = [[best.get(word, 0) for word in words] for words in test.inputs]
        return {"dictionary": (Predictions(values), "each word's most frequent training tag")}


def first_pieces(words_T: NDArray[np.int64], words: Sequence[str], gap: int, offsets: Sequence[Sequence[int]]) -> None:
    """Writes the number of each word at the position of the first token that reaches into it; `gap` characters stand between words.

    A token that begins with the space before a word belongs to the word; one that reaches over several words belongs to the first.
    """
    start, token = 0, 0
    for number, word in enumerate(words):
        while token < len(offsets) and offsets[token][1] <= start:
            token += 1
        if token == len(offsets):
            return
        if offsets[token][0] < start + len(word) and words_T[token] < 0:
            words_T[token] = number
        start += len(word) + gap


def spans(tags: Sequence[str]) -> set[Span]:
    """The spans that seqeval reads from tags, as conlleval does: (type, first word, last word)."""
    from seqeval.metrics.sequence_labeling import get_entities

    return set(get_entities(list(tags)))
