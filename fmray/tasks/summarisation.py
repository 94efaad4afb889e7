"""Summarisation by an encoder-decoder: a short text that says what a long one does."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmray.core.errors import DataError
from fmray.data.sources import Source
from fmray.data.text import normalise
from fmray.model.checkpoint import Head
from fmray.tasks import Predictions, Split, TaskData
from fmray.tasks.classifier import Rows, encode
from fmray.tasks.generative import IGNORED, Generative
from fmray.tasks.rouge import NAMES, rouge
from fmray.tasks.sourced import Example, is_blank

_ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


class Summarisation(Generative):
    """The summary of a text, judged by ROUGE against one or several references; of several the first is learnt.

    Its control is the lead of the text: its first sentences, as they stand.

    Attributes:
        text, summary: the fields of a document that hold the text and its summary, or a list of summaries.
        prefix: what the model reads before the text, such as `summarize: ` of T5.
        lead_sentences: how many sentences the lead has.
    """

    type: Literal["summarisation"] = "summarisation"
    head: ClassVar[Head] = "seq2seq_lm"
    metric_names: ClassVar[tuple[str, ...]] = tuple(NAMES)
    main_metric: ClassVar[str] = "rouge_l"
    per_example: ClassVar[tuple[str, ...]] = metric_names
    lower_is_better: ClassVar[tuple[str, ...]] = ("perplexity",)
    name: str = Field("summary", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    text: str = "text"
    summary: str = "target"
    prefix: str = ""
    lead_sentences: int = Field(1, ge=1)

    def examples(self, source: Source) -> list[Example]:
        """See `Sourced`: the texts in normal form, line ends kept."""
        found: list[Example] = []
        blank: Counter[str] = Counter()
        for document in source.iter_documents():
            text, held = self.columns(document, (self.text, self.summary))
            summaries = [held] if isinstance(held, str) else held
            if not isinstance(summaries, list) or not all(isinstance(one, str) for one in summaries):
                raise DataError(f"the column '{self.summary}' holds {type(held).__name__}, which is no text and no list of texts", where=f"{self.where}, {document['id']}")
            summaries = [normalise(one).strip() for one in summaries if not is_blank(one)]
            blank.update(column for column, there in ((self.text, not is_blank(text)), (self.summary, bool(summaries))) if not there)
            found.append(Example(normalise(str(text)), summaries, normalise(str(text))))
        self.refuse_blanks(len(found), blank)
        return found

    def encode(self, tokenizer: Any, split: Split, max_length: int, n_labels: int) -> Rows:
        """See `Task`; `labels_BU` are the tokens of the first summary and its end, then -100; `mask_BU` says which are its own."""
        rows = encode(tokenizer, [self.prefix + text for text in split.inputs], max_length)
        ended = [_ended(ids, tokenizer.eos_token_id, self.max_new_tokens) for ids in tokenizer([target[0] for target in split.targets])["input_ids"]]
        labels_BU = np.full((len(ended), max(len(ids) for ids in ended)), IGNORED, dtype=np.int64)
        for row, ids in enumerate(ended):
            labels_BU[row, : len(ids)] = ids
        mask_BU = (labels_BU != IGNORED).astype(np.int64)
        return {**rows, "labels_BU": labels_BU, "mask_BU": mask_BU, "example_B": np.arange(len(split), dtype=np.int64)}

    def scores(self, said: str, right: Sequence[str]) -> Mapping[str, float]:
        """ROUGE-L, ROUGE-1 and ROUGE-2, F-measures, each the best over the references."""
        return dict(zip(NAMES, rouge(said, tuple(right), self.by_character), strict=True))

    def baselines(self, data: TaskData, seed: int) -> dict[str, tuple[Predictions, str]]:
        """The lead, and nothing else: a summariser that does not beat it has learnt little."""
        what = "the first sentence of the text" if self.lead_sentences == 1 else f"the first {self.lead_sentences} sentences of the text"
        return {"lead": (Predictions([lead(text, self.lead_sentences) for text in data.splits["test"].inputs]), what)}


def lead(text: str, n: int) -> str:
    """The first sentences of a text, as their marks and spaces say. The end of a line ends one too, for sources give lists of sentences as lines."""
    found = (sentence.strip() for sentence in _ENDS.split(text))
    return " ".join([sentence for sentence in found if sentence][:n])


def _ended(ids: Sequence[int], eos: int | None, longest: int) -> NDArray[np.int64]:
    """A target cut to `longest` tokens, the last of which is the end token if there is one: else a model could not learn to end."""
    whole = list(ids) if eos is None or ids[-1:] == [eos] else [*ids, eos]
    return np.asarray(whole if len(whole) <= longest else [*whole[: longest - 1], whole[-1]], dtype=np.int64)
