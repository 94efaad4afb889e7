"""Embedding similarity: how much two texts mean the same, by the cosine of their representations.

Shapes: N examples, B rows, T positions of the first text, U of the second, D width of the model, R weightings.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fmray.core.errors import DataError
from fmray.data.sources import Source
from fmray.data.text import normalise
from fmray.model.checkpoint import Head
from fmray.tasks import Predictions, Split, TaskData, Weights
from fmray.tasks.classifier import Classifier, Outputs, Rows, encode
from fmray.tasks.scores import area_under_curve, pearson, spearman
from fmray.tasks.sourced import Example, Unlabelled, is_blank

if TYPE_CHECKING:
    from torch import Tensor

SCALE = 1_000_000


class EmbeddingSimilarity(Unlabelled):
    """The cosine of two texts' representations is brought close to their score, scaled to 0 to 1 (Reimers and Gurevych 2019, section 3).

    Each text is read alone, so that representations can be kept and searched. Pairs that are either alike or not have scores 1 and 0;
    then there is also `auc`, how often a pair that is alike has the higher cosine.

    Attributes:
        text, second, score: the fields of a document that hold the texts and how alike they are.
        values: what the score is in place of a number, by its spelling: `{neutral: 0.5, entailment: 1, contradiction: 0}`.
        lowest, highest: the range of the scores.
        pooling: a text's representation is the mean over its tokens, or what stands over its first one.
    """

    type: Literal["embedding_similarity"] = "embedding_similarity"
    head: ClassVar[Head] = "encoder"
    metric_names: ClassVar[tuple[str, ...]] = ("spearman", "pearson")
    main_metric: ClassVar[str] = "spearman"
    name: str = Field("similarity", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    text: str = "text"
    second: str = "sentence2"
    score: str = "score"
    values: dict[str, float] = Field(default_factory=dict)
    lowest: float = 0.0
    highest: float = 1.0
    pooling: Literal["mean", "cls"] = "mean"

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError(f"the range of scores is empty: lowest {self.lowest:g} is not below highest {self.highest:g}")
        return self

    def examples(self, source: Source) -> list[Example]:
        """See `Sourced`: the texts in normal form, the scores within their range."""
        found: list[Example] = []
        blank: Counter[str] = Counter()
        columns = (self.text, self.second, self.score)
        for document in source.iter_documents():
            *texts, score = self.columns(document, columns)
            lacking = [column for column, value in zip(columns, (*texts, score), strict=True) if is_blank(value)]
            blank.update(lacking)
            first, second = (normalise(str(text)) for text in texts)
            found.append(Example([first, second], None if lacking else self._number(score, str(document["id"])), f"{first}\n{second}"))
        self.refuse_blanks(len(found), blank)
        return found

    def _number(self, value: Any, place: str) -> float:
        where = f"{self.where}, {place}"
        spelled = str(value).strip()
        if self.values and spelled not in self.values:
            raise DataError(f"the column '{self.score}' holds '{spelled}'; task.values knows: {', '.join(self.values)}", where=where)
        try:
            number = self.values[spelled] if self.values else float(spelled)
        except ValueError:
            raise DataError(f"the column '{self.score}' holds '{spelled[:40]}', which is no number", where=where, todo="say in task.values what it stands for") from None
        if not self.lowest <= number <= self.highest:
            raise DataError(f"the score {number:g} lies outside {self.lowest:g} to {self.highest:g}", where=where, todo="set task.lowest and task.highest")
        return number

    def encode(self, tokenizer: Any, split: Split, max_length: int, n_labels: int) -> Rows:
        """See `Task`; `second_BU` and `mask_BU` are the second texts, `score_B` the scores from 0 to a million."""
        first, second = (encode(tokenizer, [pair[side] for pair in split.inputs], max_length) for side in (0, 1))
        scaled_B = (np.asarray(split.targets, float) - self.lowest) / (self.highest - self.lowest)
        return {
            **first, "second_BU": second["input_ids_BT"], "mask_BU": second["attention_mask_BT"],
            "score_B": np.round(SCALE * scaled_B).astype(np.int64), "example_B": np.arange(len(split), dtype=np.int64),
        }  # fmt: skip

    def forward(self, model: Callable[..., Any], batch: "Mapping[str, Tensor]", hf_config: Any) -> "tuple[Tensor, ...]":
        """The cosine of each pair [B], in float32; both texts go through the model in one pass."""
        import torch
        import torch.nn.functional as F

        width = max(batch["input_ids_BT"].shape[1], batch["second_BU"].shape[1])
        ids, mask = (
            torch.cat([F.pad(batch[name], (0, width - batch[name].shape[1])) for name in names])
            for names in (("input_ids_BT", "second_BU"), ("attention_mask_BT", "mask_BU"))
        )
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        if self.pooling == "mean":
            weights = mask.float()
            pooled = torch.einsum("btd,bt->bd", hidden, weights) / weights.sum(dim=1, keepdim=True).clamp(min=1)
        else:
            pooled = hidden[:, 0]
        first_BD, second_BD = pooled.chunk(2)
        return (F.cosine_similarity(first_BD, second_BD, dim=-1),)

    def n_targets(self, batch: "Mapping[str, Tensor]") -> int:
        """The number of pairs."""
        return int(batch["score_B"].numel())

    def loss_sum(self, outputs: "tuple[Tensor, ...]", batch: "Mapping[str, Tensor]", weights_K: "Tensor | None") -> "Tensor":
        """The squared distance of cosine and score."""
        return ((outputs[0] - batch["score_B"].float() / SCALE) ** 2).sum()

    def outputs(self, opened: Classifier, rows: Rows, batch_size: int = 64) -> Outputs:
        """The cosines [B]."""
        return opened.each(rows, batch_size, lambda batch: self.forward(opened.model, batch, opened.model.config), fill=0)

    def predict(self, outputs: Outputs, rows: Rows, split: Split) -> Predictions:
        """The cosines."""
        return Predictions([round(float(value), 6) for value in outputs[0]])

    def figures(self, labels: Sequence[str], targets: Sequence[Any], predictions: Predictions, weights_RN: Weights) -> dict[str, NDArray[np.float64]]:
        """Spearman's and Pearson's correlation of cosines and scores; and where scores are 0 and 1 alone, the area under the curve."""
        truth_N, said_N = np.asarray(targets, float), np.asarray(predictions.values, float)
        found = {"spearman": spearman(truth_N, said_N, weights_RN), "pearson": pearson(truth_N, said_N, weights_RN)}
        if set(truth_N.tolist()) == {0.0, 1.0}:
            found["auc"] = area_under_curve(truth_N, said_N, weights_RN)
        return found

    def baselines(self, data: TaskData, seed: int) -> dict[str, tuple[Predictions, str]]:
        """The cosine of TF-IDF vectors, which see spelling alone."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        test = data.splits["test"].inputs
        vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True).fit([text for pair in data.splits["train"].inputs for text in pair])
        first, second = (vectors.transform([pair[side] for pair in test]) for side in (0, 1))
        values = np.asarray(first.multiply(second).sum(axis=1)).ravel().tolist()
        return {"tfidf": (Predictions(values), "the cosine of TF-IDF of runs of two to four characters, fitted on the training texts")}
