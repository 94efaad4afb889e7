"""The classification engine: one padded forward pass over a batch of texts."""

from collections.abc import Sequence
from pathlib import Path

from fmray.serve.engine import Answer, RequestError, Scores, Text
from fmray.serve.engines.opening import longest, positions, refusal
from fmray.tasks.classifier import Classifier


class Classification:
    """Scores texts with a sequence-classification head, in float32 as it was tuned."""

    def __init__(self, path: Path, *, device: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._classifier = Classifier.load(path, device)
        self.max_model_len = positions(self._classifier.model) or longest(self._classifier.model, self._classifier.tokenizer)

    def health(self) -> None:
        """Always well: it has no thread of its own that could end."""

    def close(self) -> None:
        """Nothing to end."""

    def answer(self, asked: Sequence[Text]) -> list[Answer | RequestError]:
        """Scores of each text; see `TaskEngine`."""
        lengths = [len(ids) for ids in self._classifier.tokenizer([one.text for one in asked], verbose=False)["input_ids"]]
        limit = self.max_model_len
        refused = [refusal(length, limit, one.truncate) for length, one in zip(lengths, asked, strict=True)]
        scored = iter(self._score([one.text for one, error in zip(asked, refused, strict=True) if error is None]))
        return [
            Scores(next(scored), min(length, limit), length > limit) if error is None else error
            for length, error in zip(lengths, refused, strict=True)
        ]

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
