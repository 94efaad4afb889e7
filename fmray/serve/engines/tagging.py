"""The engine of token-classification heads: a tag for every word, and the spans that the tags name.

Legend: B rows, T positions, K labels.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmray.core.errors import ArtifactError
from fmray.serve.engine import Answer, Entity, RequestError, Tagged, Text
from fmray.serve.engines.opening import longest, positions, refusal
from fmray.tasks.classifier import Classifier
from fmray.tasks.token_classification import first_pieces, spans

WORD = re.compile(r"\S+")


class Tagging:
    """Tags the words of texts, which stand apart by white space, at their first pieces as they were tuned."""

    def __init__(self, path: Path, *, device: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model = Classifier.load(path, device, "token_classification")
        if not self._model.tokenizer.is_fast:
            raise ArtifactError("its tokenizer tells no offsets, so tags cannot be put on words", where=str(path), todo="give a model with a tokenizer.json")
        self.max_model_len = positions(self._model.model) or longest(self._model.model, self._model.tokenizer)

    def health(self) -> None:
        """Always well: it has no thread of its own that could end."""

    def close(self) -> None:
        """Nothing to end."""

    def answer(self, asked: Sequence[Text]) -> list[Answer | RequestError]:
        """Tags and spans of each text; see `TaskEngine`. Words beyond a cut have no tag."""
        joined = [" ".join(WORD.findall(one.text)) for one in asked]
        lengths = [len(ids) if text else 0 for ids, text in zip(self._model.tokenizer(joined, verbose=False)["input_ids"], joined, strict=True)]
        return [
            refusal(length, self.max_model_len, one.truncate) or self._tagged(one.text, text, length)
            for one, text, length in zip(asked, joined, lengths, strict=True)
        ]

    def _tagged(self, text: str, joined: str, length: int) -> Tagged:
        words = list(WORD.finditer(text))
        rows = self._model.encode([joined], self.max_model_len)
        offsets = self._model.tokenizer(joined, truncation=True, max_length=self.max_model_len, return_offsets_mapping=True)["offset_mapping"]
        words_T = np.full(len(offsets), -1, dtype=np.int64)
        first_pieces(words_T, [word.group() for word in words], 1, offsets)
        logits_TK = self._model.outputs(rows)[0][0].astype(np.float64)
        tags: list[tuple[str, str, float]] = []
        for position in np.flatnonzero(words_T >= 0):
            shares_K = np.exp(logits_TK[position] - logits_TK[position].max())
            best = int(shares_K.argmax())
            tags.append((words[words_T[position]].group(), self._model.labels[best], float(shares_K[best] / shares_K.sum())))
        said = [words[number] for number in words_T[words_T >= 0]]
        entities = []
        for label, first, last in sorted(spans([tag for _, tag, _ in tags]), key=lambda span: span[1:]):
            start, end = said[first].start(), said[last].end()
            score = float(np.mean([share for _, _, share in tags[first : last + 1]]))
            entities.append(Entity(label, text[start:end], start, end, score))
        return Tagged(tuple(entities), tuple(tags), min(length, self.max_model_len), length > self.max_model_len)
