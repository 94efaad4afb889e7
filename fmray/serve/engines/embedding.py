"""The engine of encoders without a head: one vector of each text, as sentence-transformers pools and scales it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fmray.core.errors import ArtifactError
from fmray.serve.engine import Answer, Embeddable, RequestError
from fmray.serve.engines.forward import groups, mean_pooled
from fmray.serve.engines.opening import longest, opened, refusal

MAX_POSITIONS = 16 * 512
POOLING = "1_Pooling/config.json"


class Embedder:
    """Embeds texts by the mean of their tokens' last hidden states."""

    def __init__(self, path: Path, *, device: str, threads: int) -> None:
        pooling = json.loads((path / POOLING).read_text(encoding="utf-8")) if (path / POOLING).is_file() else {}
        if not pooling.get("pooling_mode_mean_tokens", True):
            raise ArtifactError(f"its {POOLING} asks for another pooling than the mean of tokens", where=str(path), todo="serve a model that was tuned with mean pooling")
        self._model, self._tokenizer = opened("AutoModel", path, device, threads)
        self.max_model_len = longest(self._model, self._tokenizer)

    def health(self) -> None:
        """Always well: it has no thread of its own that could end."""

    def close(self) -> None:
        """Nothing to end."""

    def answer(self, asked: Sequence[Embeddable]) -> list[Answer | RequestError]:
        """The vector of each text; see `TaskEngine`."""
        limit = self.max_model_len
        rows = [self._ids(one) for one in asked]
        answers: list[Answer | RequestError | None] = [self._refusal(row, one) for row, one in zip(rows, asked, strict=True)]
        good = [index for index, error in enumerate(answers) if error is None]
        short = {i: list(self._tokenizer(asked[i].text, truncation=True, max_length=limit)["input_ids"]) if len(rows[i]) > limit else rows[i] for i in good}
        for group in groups([short[i] for i in good], MAX_POSITIONS):
            picked = [good[i] for i in group]
            vectors = mean_pooled(self._model, [short[i] for i in picked], self._tokenizer.pad_token_id or 0)
            for index, vector in zip(picked, vectors, strict=True):
                answers[index] = replace(vector, truncated=len(rows[index]) > limit)
        return [answer for answer in answers if answer is not None]

    def _ids(self, one: Embeddable) -> list[int]:
        return list(self._tokenizer(one.text, verbose=False)["input_ids"]) if isinstance(one.text, str) else list(one.text)

    def _refusal(self, row: list[int], one: Embeddable) -> RequestError | None:
        size = int(self._model.config.vocab_size)
        wrong = next((token for token in row if not 0 <= token < size), None)
        if wrong is not None:
            return RequestError(400, f"token id {wrong} is outside the vocabulary of {size}", param="input")
        # Ids are taken as they are: cut, they would lose the mark that ends a text.
        return refusal(len(row), self.max_model_len, one.truncate and isinstance(one.text, str))
