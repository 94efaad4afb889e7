"""The engine of encoder-decoder models: a greedy summary of each text."""

from collections.abc import Sequence
from pathlib import Path

from fmray.serve.engine import Answer, LongText, RequestError, Summary
from fmray.serve.engines.opening import longest, opened, refusal


class Summarizing:
    """Shortens texts, one after another and greedily: the same text has the same summary whatever else is asked."""

    def __init__(self, path: Path, *, device: str, threads: int) -> None:
        self._model, self._tokenizer = opened("AutoModelForSeq2SeqLM", path, device, threads)
        self.max_model_len = longest(self._model, self._tokenizer)

    def health(self) -> None:
        """Always well: it has no thread of its own that could end."""

    def close(self) -> None:
        """Nothing to end."""

    def answer(self, asked: Sequence[LongText]) -> list[Answer | RequestError]:
        """The summary of each text; see `TaskEngine`."""
        return [self._one(one) for one in asked]

    def _one(self, one: LongText) -> Answer | RequestError:
        import torch

        limit = self.max_model_len
        length = len(self._tokenizer(one.text, verbose=False)["input_ids"])
        if one.max_tokens > limit:
            return RequestError(400, f"this model's answers have at most {limit} tokens", param="max_tokens")
        refused = refusal(length, limit, one.truncate)
        if refused is not None:
            return refused
        encoded = self._tokenizer(one.text, truncation=True, max_length=limit, return_tensors="pt")
        given = {name: encoded[name].to(self._model.device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            ids = self._model.generate(**given, max_new_tokens=one.max_tokens, do_sample=False, num_beams=1)[0].tolist()
        text = str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip()
        # The first id only starts the decoder.
        return Summary(text, min(length, limit), len(ids) - 1, length > limit)
