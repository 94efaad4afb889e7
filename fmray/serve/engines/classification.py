"""The classification engine: one padded forward pass over a batch of texts."""

from collections.abc import Sequence
from pathlib import Path

from fmray.serve.engine import RequestError, Scores
from fmray.tasks.classifier import Classifier


class Classification:
    """Scores texts with a sequence-classification head, in float32 as it was tuned."""

    def __init__(self, path: Path, *, device: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._classifier = Classifier.load(path, device)
        self.max_model_len = int(self._classifier.model.config.get_text_config().max_position_embeddings)

    def health(self) -> None:
        """Always well: it has no thread of its own that could end."""

    def close(self) -> None:
        """Nothing to end."""

    def classify(self, texts: Sequence[str], truncate: Sequence[bool]) -> list[Scores | RequestError]:
        """Scores of each text; see `ClassificationEngine`."""
        lengths = [len(ids) for ids in self._classifier.tokenizer(list(texts), verbose=False)["input_ids"]]
        refused = [self._refusal(length, cut) for length, cut in zip(lengths, truncate, strict=True)]
        scored = iter(self._score([text for text, error in zip(texts, refused, strict=True) if error is None]))
        limit = self.max_model_len
        return [
            Scores(next(scored), min(length, limit), length > limit) if error is None else error
            for length, error in zip(lengths, refused, strict=True)
        ]

    def _refusal(self, length: int, truncate: bool) -> RequestError | None:
        if length == 0:
            return RequestError(400, "the input holds no token", param="input")
        if length > self.max_model_len and not truncate:
            message = f'this model takes {self.max_model_len} tokens and the input has {length}: shorten it, or send "truncate": true'
            return RequestError(400, message, param="input", code="context_length_exceeded")
        return None

    def _score(self, texts: list[str]) -> list[dict[str, float]]:
        import torch

        if not texts:
            return []
        logits_NK = self._classifier.logits(self._classifier.encode(texts, self.max_model_len))
        wide_NK = torch.from_numpy(logits_NK).double()
        # Where a text may bear several labels, each has a probability of its own.
        several = self._classifier.model.config.problem_type == "multi_label_classification"
        scores_NK = torch.sigmoid(wide_NK) if several else torch.softmax(wide_NK, dim=-1)
        return [dict(zip(self._classifier.labels, row, strict=True)) for row in scores_NK.tolist()]
