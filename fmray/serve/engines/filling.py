"""The engine of masked language models: the likeliest tokens at each mask of a text.

Legend: B rows, T positions, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmray.core.errors import ArtifactError
from fmray.serve.engine import Answer, Filled, Masked, RequestError
from fmray.serve.engines.forward import MAX_LOGITS, groups, padded
from fmray.serve.engines.opening import longest, opened, refusal

SPELLINGS = ("[MASK]", "<mask>")
"""What stands for a mask in a client's text, whatever the model's own mask token looks like."""


class Filling:
    """Fills masks, each as if the others stayed masked."""

    def __init__(self, path: Path, *, device: str, threads: int) -> None:
        self._model, self._tokenizer = opened("AutoModelForMaskedLM", path, device, threads)
        if self._tokenizer.mask_token_id is None:
            raise ArtifactError("its tokenizer has no mask token", where=str(path), todo="give a masked language model with its own tokenizer")
        self.max_model_len = longest(self._model, self._tokenizer)

    def health(self) -> None:
        """Always well: it has no thread of its own that could end."""

    def close(self) -> None:
        """Nothing to end."""

    def answer(self, asked: Sequence[Masked]) -> list[Answer | RequestError]:
        """Tokens for each mask of each text; see `TaskEngine`."""
        rows = self._tokenizer([self._masked(one.text) for one in asked], verbose=False)["input_ids"]
        answers: list[Answer | RequestError | None] = [self._refusal(row) for row in rows]
        good = [index for index, error in enumerate(answers) if error is None]
        for group in groups([rows[i] for i in good], max(1, MAX_LOGITS // int(self._model.config.vocab_size))):
            picked = [good[i] for i in group]
            for index, filled in zip(picked, self._fill([rows[i] for i in picked], [asked[i].top_k for i in picked]), strict=True):
                answers[index] = filled
        return [answer for answer in answers if answer is not None]

    def _masked(self, text: str) -> str:
        for spelling in SPELLINGS:
            text = text.replace(spelling, self._tokenizer.mask_token)
        return text

    def _refusal(self, row: list[int]) -> RequestError | None:
        if self._tokenizer.mask_token_id not in row:
            return RequestError(400, f"the input holds no mask ({' or '.join(SPELLINGS)})", param="input")
        error = refusal(len(row), self.max_model_len, False)
        # Nothing is cut here: the mask might be in what is cut off.
        return error and RequestError(400, f"this model takes {self.max_model_len} tokens and the input has {len(row)}", param="input", code=error.code)

    def _fill(self, rows: list[list[int]], top_k: list[int]) -> list[Filled]:
        import torch

        ids_BT, mask_BT = padded(rows, self._tokenizer.pad_token_id or 0, self._model.device)
        with torch.inference_mode():
            logits_BTV: Any = self._model(input_ids=ids_BT, attention_mask=mask_BT).logits
        filled = []
        for b, (row, k) in enumerate(zip(rows, top_k, strict=True)):
            masks = []
            for t in (t for t, token in enumerate(row) if token == self._tokenizer.mask_token_id):
                best = torch.topk(torch.softmax(logits_BTV[b, t].float(), dim=-1), min(k, logits_BTV.shape[-1]))
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                masks.append(tuple((str(self._tokenizer.decode([i])).strip(), float(share)) for i, share in pairs))
            filled.append(Filled(tuple(masks), len(row)))
        return filled
