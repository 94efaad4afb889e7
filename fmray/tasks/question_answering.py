"""Extractive question answering: where in a passage the answer stands, if it stands there.

Shapes: N examples, B rows (windows of passages), T positions, R weightings.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmray.core.errors import ArtifactError, DataError
from fmray.data.sources import Source
from fmray.model.checkpoint import Head
from fmray.tasks import Predictions, Split, Weights
from fmray.tasks.classifier import Outputs, Rows, model_inputs
from fmray.tasks.sourced import Example, Unlabelled, is_blank

if TYPE_CHECKING:
    from torch import Tensor

N_STARTS = 20
_ARTICLE = re.compile(r"\b(a|an|the)\b")
CJK = r"\u3400-\u9fff\uf900-\ufaff"
_UNIT = re.compile(rf"[{CJK}]|[^\s{CJK}]+")


class QuestionAnswering(Unlabelled):
    """The span of a passage that answers a question.

    A passage longer than `max_length` is read in windows that overlap by `stride` tokens, but by no more than a quarter of `max_length`;
    the window that is surest answers. A window without the answer is taught to point at its first token, which also says that there is
    none.

    Attributes:
        context, question, answers: the fields of a document that hold the passage, the question, and the list of `{text, answer_start}`, or
            one such mapping of two lists, as Hugging Face keeps SQuAD.
        no_answer: whether a question may have no answer: then the empty answer is given where it is surer than any span.
        by_character: figures count each Chinese character as a word.
        max_answer_tokens: spans are at most so long.
    """

    type: Literal["question_answering"] = "question_answering"
    head: ClassVar[Head] = "question_answering"
    metric_names: ClassVar[tuple[str, ...]] = ("f1", "exact_match")
    main_metric: ClassVar[str] = "f1"
    per_example: ClassVar[tuple[str, ...]] = metric_names
    name: str = Field("answers", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    context: str = "text"
    question: str = "question"
    answers: str = "answers"
    stride: int = Field(64, ge=0)
    no_answer: bool = False
    by_character: bool = False
    max_answer_tokens: int = Field(30, ge=1)

    def examples(self, source: Source) -> list[Example]:
        """See `Sourced`: each answer must stand where it is said to."""
        found: list[Example] = []
        blank: Counter[str] = Counter()
        for document in source.iter_documents():
            context, question, answers = self.columns(document, (self.context, self.question, self.answers))
            where = f"{self.where}, {document['id']}"
            lacking = [column for column, value in ((self.context, context), (self.question, question)) if is_blank(value)]
            blank.update(lacking)
            target = [] if lacking else self._answers(context, answers, where)
            found.append(Example({"question": question, "context": context}, target, f"{question}\n{context}"))
        self.refuse_blanks(len(found), blank)
        return found

    def _answers(self, context: Any, held: Any, where: str) -> list[list[Any]]:
        """The start and the text of each answer."""
        if not isinstance(context, str):
            raise DataError(f"the column '{self.context}' holds {type(context).__name__}, which is no text", where=where)
        pairs = _pairs([] if held is None else held)
        if pairs is None:
            raise DataError(f"the column '{self.answers}' holds no list of answers with text and answer_start", where=where)
        if not pairs and not self.no_answer:
            raise DataError("the question has no answer", where=where, todo="set task.no_answer to true if that may be")
        for start, text in pairs:
            if start < 0 or context[start : start + len(text)] != text:
                raise DataError(f"the answer {text[:40]!r} does not stand at {start} of the passage", where=where, todo="mend the offsets")
        return [[start, text] for start, text in pairs]

    def encode(self, tokenizer: Any, split: Split, max_length: int, n_labels: int) -> Rows:
        """See `Task`: `start_B` and `end_B` are the positions of the first answer in a window, 0 where it does not lie in it;
        `from_BT` and `to_BT` where in the passage a position's characters stand, -1 outside it.

        Raises:
            ArtifactError: the tokenizer cannot say where its tokens stand in a text.
            DataError: a question takes more than half of `max_length`.
        """
        if not tokenizer.is_fast:
            raise ArtifactError("its tokenizer tells no offsets, so answers cannot be put on its tokens", where=self.where, todo="give a model with a tokenizer.json")
        questions = [one["question"] for one in split.inputs]
        longest = max(len(ids) for ids in tokenizer(questions)["input_ids"])
        if longest > max_length // 2:
            raise DataError(f"a question has {longest} tokens, more than half of max_length {max_length}", where=self.where, todo="raise max_length")
        encoded = tokenizer(
            questions, [one["context"] for one in split.inputs], truncation="only_second", max_length=max_length, stride=min(self.stride, max_length // 4),
            return_overflowing_tokens=True, return_offsets_mapping=True, padding=True, padding_side="right", return_tensors="np",
        )  # fmt: skip
        rows = model_inputs(encoded, pairs=True)
        offsets_BT2 = np.asarray(encoded["offset_mapping"], dtype=np.int64)
        inside_BT = np.array([[part == 1 for part in encoded.sequence_ids(row)] for row in range(len(offsets_BT2))])
        from_BT, to_BT = (np.where(inside_BT, offsets_BT2[..., side], -1) for side in (0, 1))
        example_B = np.asarray(encoded["overflow_to_sample_mapping"], dtype=np.int64)
        ends = np.zeros((len(example_B), 2), dtype=np.int64)
        for row, example in enumerate(example_B):
            if split.targets[example]:
                start, text = split.targets[example][0]
                ends[row] = window_positions(from_BT[row], to_BT[row], start, start + len(text))
        return {**rows, "start_B": ends[:, 0], "end_B": ends[:, 1], "from_BT": from_BT, "to_BT": to_BT, "example_B": example_B}

    def truncated(self, tokenizer: Any, split: Split, max_length: int, n_labels: int) -> NDArray[np.bool_]:
        """None: a passage that is longer is read in windows."""
        return np.zeros(len(split), dtype=bool)

    def n_targets(self, batch: "Mapping[str, Tensor]") -> int:
        """The number of windows."""
        return int(batch["start_B"].numel())

    def loss_sum(self, outputs: "tuple[Tensor, ...]", batch: "Mapping[str, Tensor]", weights_K: "Tensor | None") -> "Tensor":
        """The mean of the cross-entropies of start and end, over the window's positions without padding."""
        import torch.nn.functional as F

        padding_BT = batch["attention_mask_BT"] == 0
        start, end = (
            F.cross_entropy(logits.float().masked_fill(padding_BT, -1e9), batch[name], reduction="sum")
            for logits, name in zip(outputs, ("start_B", "end_B"), strict=True)
        )
        return (start + end) / 2

    def predict(self, outputs: Outputs, rows: Rows, split: Split) -> Predictions:
        """The text of the surest span over all windows; nothing, with `no_answer`, where no span is surer than that in any window."""
        best: dict[int, tuple[float, str]] = {}
        none: dict[int, float] = {}
        for row, example in enumerate(rows["example_B"].tolist()):
            score, first, last = best_span(outputs[0][row], outputs[1][row], rows["from_BT"][row] >= 0, self.max_answer_tokens)
            none[example] = min(none.get(example, np.inf), float(outputs[0][row, 0] + outputs[1][row, 0]))
            if score > best.get(example, (-np.inf, ""))[0]:
                context = split.inputs[example]["context"]
                best[example] = (score, context[rows["from_BT"][row, first] : rows["to_BT"][row, last]])
        values = []
        for example in range(len(split)):
            score, text = best.get(example, (-np.inf, ""))
            values.append("" if self.no_answer and none[example] > score else text.strip())
        return Predictions(values)

    def figures(self, labels: Sequence[str], targets: Sequence[Any], predictions: Predictions, weights_RN: Weights) -> dict[str, NDArray[np.float64]]:
        """Exact match and F1 of words by the rules of SQuAD (Rajpurkar et al. 2016 and 2018): the best over the answers that are right,
        without case, punctuation and articles.
        """
        scores_N2 = np.array([self.score(said, [text for _, text in answers]) for said, answers in zip(predictions.values, targets, strict=True)])
        total_R = weights_RN.sum(axis=1)
        return {"f1": weights_RN @ scores_N2[:, 1] / total_R, "exact_match": weights_RN @ scores_N2[:, 0] / total_R}

    def units(self, split: Split) -> NDArray[np.int64]:
        """The passages: questions about the same one are hard or easy together."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(one["context"], len(numbers)) for one in split.inputs], dtype=np.int64)

    def score(self, said: str, right: Sequence[str]) -> tuple[float, float]:
        """Exact match and F1 of an answer against those that are right (none: it should say nothing)."""
        return squad_scores(said, right or [""], self.by_character)


def _pairs(held: Any) -> list[tuple[int, str]] | None:
    """Answers of either form as (start, text); None where they are neither."""
    if isinstance(held, Mapping):
        texts, starts = held.get("text"), held.get("answer_start")
        found = list(zip(starts, texts, strict=True)) if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts) else None
    else:
        sound = isinstance(held, list) and all(isinstance(one, Mapping) for one in held)
        found = [(one.get("answer_start"), one.get("text")) for one in held] if sound else None
    if found is None or not all(isinstance(start, int) and isinstance(text, str) and text for start, text in found):
        return None
    return found


def window_positions(from_T: NDArray[np.int64], to_T: NDArray[np.int64], start: int, end: int) -> tuple[int, int]:
    """The positions of the first and the last token of the characters from `start` to `end`; 0 and 0 where they do not lie in the window."""
    inside = np.flatnonzero(from_T >= 0)
    if not len(inside) or start < from_T[inside[0]] or end > to_T[inside[-1]]:
        return 0, 0
    first, last = inside[to_T[inside] > start][0], inside[from_T[inside] < end][-1]
    return int(first), int(last)


def best_span(start_T: NDArray[np.float32], end_T: NDArray[np.float32], legal_T: NDArray[np.bool_], longest: int) -> tuple[float, int, int]:
    """The highest start + end of a span of at most `longest` legal positions, from the likeliest starts: score, first, last."""
    found = (-np.inf, 0, 0)
    legal = np.flatnonzero(legal_T)
    for first in legal[np.argsort(start_T[legal])[::-1][:N_STARTS]]:
        ends = np.arange(first, min(first + longest, legal[-1] + 1))
        last = int(ends[end_T[ends].argmax()])
        score = float(start_T[first]) + float(end_T[last])
        if score > found[0]:
            found = (score, int(first), last)
    return found


def units(text: str, by_character: bool) -> list[str]:
    """The words that SQuAD's rules compare: lower case, without punctuation and (but by character) articles."""
    if by_character:
        return _UNIT.findall("".join(c for c in text.lower() if not unicodedata.category(c).startswith("P")))
    return _ARTICLE.sub(" ", "".join(c for c in text.lower() if c not in string.punctuation)).split()


def squad_scores(said: str, right: Sequence[str], by_character: bool) -> tuple[float, float]:
    """Exact match and F1 of words, each the best over the answers that are right."""
    pairs = [(units(said, by_character), units(text, by_character)) for text in right]
    return max(float(a == b) for a, b in pairs), max(_f1(a, b) for a, b in pairs)


def _f1(said: Sequence[str], right: Sequence[str]) -> float:
    if not said or not right:
        return float(list(said) == list(right))
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right))
