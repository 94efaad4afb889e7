"""Fill-mask: which words stand behind the masks of a text. Shapes: N examples, B rows, T positions, V vocabulary, R weightings."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmray.core.errors import ArtifactError
from fmray.data.sources import Source
from fmray.data.text import normalise
from fmray.model.checkpoint import Head
from fmray.tasks import Predictions, Split, TaskData, Weights
from fmray.tasks.classifier import Classifier, Outputs, Rows, model_inputs
from fmray.tasks.generative import IGNORED, rows_at_once, told_loss
from fmray.tasks.question_answering import CJK
from fmray.tasks.sourced import Example, Unlabelled

if TYPE_CHECKING:
    from torch import Tensor

TOP = 5
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")
SURE = "the most frequent training words, whatever stands around the mask"


class FillMask(Unlabelled):
    """A share of a text's words is hidden, every token of theirs behind the mask token; Chinese characters are words.

    What is hidden of a validation or test text depends on the text and the task's seed alone. In training other words are hidden in
    each epoch. A word is told right at k if each of its tokens is among the k most probable at its place; a word behind `max_length`
    is not told. Words are single pieces of text, so a model whose tokens are short has more to tell of each.

    Attributes:
        text: the field of a document that holds the text.
        share: of the words that are hidden, at least one.
    """

    type: Literal["fill_mask"] = "fill_mask"
    head: ClassVar[Head] = "masked_lm"
    metric_names: ClassVar[tuple[str, ...]] = ("accuracy_at_1", "accuracy_at_5")
    main_metric: ClassVar[str] = "accuracy_at_1"
    per_example: ClassVar[tuple[str, ...]] = metric_names
    name: str = Field("masks", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    text: str = "text"
    share: float = Field(0.15, gt=0, lt=1)

    def examples(self, source: Source) -> list[Example]:
        """See `Sourced`; a target is the list of hidden words with their numbers in the text."""
        found: list[Example] = []
        blank: Counter[str] = Counter()
        for document in source.iter_documents():
            (text,) = self.columns(document, (self.text,))
            text = normalise(str(text or ""))
            words = words_of(text)
            if not words:
                blank[self.text] += 1
                continue
            digest = hashlib.sha256(f"{self.seed}\0{text}".encode()).digest()
            hidden = _draw(len(words), self.share, np.random.default_rng(int.from_bytes(digest[:8], "big")))
            found.append(Example(text, [[int(number), text[words[number][0] : words[number][1]]] for number in hidden], text))
        self.refuse_blanks(len(found) + sum(blank.values()), blank)
        return found

    def encode(self, tokenizer: Any, split: Split, max_length: int, n_labels: int) -> Rows:
        """See `Task`; `plain_BT` are the tokens with nothing hidden, `words_BT` the number of the word that each belongs to, else -1,
        `labels_BT` the hidden tokens, else -100, and `mask_B` the mask token.

        Raises:
            ArtifactError: the tokenizer has no mask token, or cannot say where its tokens stand in a text.
        """
        if tokenizer.mask_token_id is None or not tokenizer.is_fast:
            lacks = "has no mask token" if tokenizer.mask_token_id is None else "tells no offsets"
            raise ArtifactError(f"its tokenizer {lacks}, so words cannot be hidden", where=self.where, todo="give a masked language model with a tokenizer.json")
        encoded = tokenizer(
            list(split.inputs), truncation=True, max_length=max_length, padding=True, padding_side="right", return_offsets_mapping=True, return_tensors="np"
        )
        rows = model_inputs(encoded, pairs=False)
        words_BT = np.full(rows["input_ids_BT"].shape, -1, dtype=np.int64)
        for words_T, text, offsets in zip(words_BT, split.inputs, encoded["offset_mapping"], strict=True):
            _number(words_T, words_of(text), offsets)
        hidden_BT = np.array([np.isin(words_T, [number for number, _ in target]) for words_T, target in zip(words_BT, split.targets, strict=True)])
        mask_B = np.full(len(split), tokenizer.mask_token_id, dtype=np.int64)
        whole = {**rows, "plain_BT": rows["input_ids_BT"], "words_BT": words_BT, "mask_B": mask_B, "example_B": np.arange(len(split), dtype=np.int64)}
        return _hide(whole, hidden_BT)

    def of_epoch(self, rows: Rows, seed: int, epoch: int) -> Rows:
        """The rows with other words hidden."""
        hidden_BT = np.zeros(rows["words_BT"].shape, dtype=bool)
        for row, words_T in enumerate(rows["words_BT"]):
            there = np.unique(words_T[words_T >= 0])
            if len(there):
                hidden_BT[row] = np.isin(words_T, there[_draw(len(there), self.share, np.random.default_rng([seed, epoch, row]))])
        return _hide(rows, hidden_BT)

    def n_targets(self, batch: "Mapping[str, Tensor]") -> int:
        """The number of hidden tokens."""
        return int((batch["labels_BT"] != IGNORED).sum())

    def loss_sum(self, outputs: "tuple[Tensor, ...]", batch: "Mapping[str, Tensor]", weights_K: "Tensor | None") -> "Tensor":
        """Cross-entropy of the hidden tokens."""
        return told_loss(outputs[0], batch["labels_BT"]).sum()

    def outputs(self, opened: Classifier, rows: Rows, batch_size: int = 64) -> Outputs:
        """[B] of what is said of each row's hidden words: by number the likeliest word, and the worst rank of a right token."""

        def compute(batch: "Mapping[str, Tensor]") -> list[NDArray[Any]]:
            (logits_BTV,) = self.forward(opened.model, batch, opened.model.config)
            chosen_BT = batch["labels_BT"] != IGNORED
            logits_NV = logits_BTV[chosen_BT].float()
            right_N1 = logits_NV.gather(1, batch["labels_BT"][chosen_BT][:, None])
            ranks_N, best_N = (logits_NV > right_N1).sum(dim=1) + 1, logits_NV.argmax(dim=1)
            found = np.array([{} for _ in chosen_BT], dtype=object)
            places = zip(*(column.tolist() for column in (chosen_BT.nonzero()[:, 0], batch["words_BT"][chosen_BT], ranks_N, best_N)), strict=True)
            for row, word, rank, best in places:
                ids, worst = found[row].get(word, ([], 0))
                found[row][word] = ([*ids, best], max(worst, rank))
            for said in found:
                said.update({word: [opened.tokenizer.decode(ids).strip(), worst] for word, (ids, worst) in said.items()})
            return [found]

        return opened.each(rows, min(batch_size, rows_at_once(opened, rows["input_ids_BT"].shape[1])), compute, fill=0)

    def predict(self, outputs: Outputs, rows: Rows, split: Split) -> Predictions:
        """For each hidden word the likeliest one and the rank of the right one, 0 for a word that was not told."""
        said = {int(example): found for example, found in zip(rows["example_B"], outputs[0], strict=True)}
        return Predictions([[said[example].get(number, ["", 0]) for number, _ in target] for example, target in enumerate(split.targets)])

    def figures(self, labels: Sequence[str], targets: Sequence[Any], predictions: Predictions, weights_RN: Weights) -> dict[str, NDArray[np.float64]]:
        """The share of all hidden words whose rank is at most 1, and at most 5."""
        words_R = weights_RN @ np.array([len(target) for target in targets], float)
        return {
            f"accuracy_at_{k}": weights_RN @ np.array([sum(1 <= rank <= k for _, rank in said) for said in predictions.values], float) / words_R for k in (1, TOP)
        }

    def baselines(self, data: TaskData, seed: int) -> dict[str, tuple[Predictions, str]]:
        """The most frequent words of the training split, for every mask."""
        counts = Counter(text[start:end].lower() for text in data.splits["train"].inputs for start, end in words_of(text))
        order = sorted(counts, key=lambda word: (-counts[word], word))
        rank = {word: number + 1 for number, word in enumerate(order)}
        values = [[[order[0], rank.get(word.lower(), 0)] for _, word in target] for target in data.splits["test"].targets]
        return {"frequent": (Predictions(values), SURE)}


def words_of(text: str) -> list[tuple[int, int]]:
    """From where to where the words of a text stand: Chinese characters, and runs of letters and digits of other scripts."""
    return [match.span() for match in WORD.finditer(text)]


def _draw(n_words: int, share: float, draw: np.random.Generator) -> NDArray[np.int64]:
    return np.sort(draw.permutation(n_words)[: max(1, round(share * n_words))])


def _number(words_T: NDArray[np.int64], words: Sequence[tuple[int, int]], offsets: Sequence[Sequence[int]]) -> None:
    """Writes at each position the number of the word that its token reaches into, of several the first."""
    word = 0
    for position, (start, end) in enumerate(offsets):
        while word < len(words) and words[word][1] <= start:
            word += 1
        if word < len(words) and end > words[word][0] and end > start:
            words_T[position] = word


def _hide(rows: Rows, hidden_BT: NDArray[np.bool_]) -> Rows:
    plain_BT = rows["plain_BT"]
    shown_BT = np.where(hidden_BT, rows["mask_B"][:, None], plain_BT)
    return {**rows, "input_ids_BT": shown_BT, "labels_BT": np.where(hidden_BT, plain_BT, IGNORED)}
