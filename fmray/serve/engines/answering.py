"""The engine of question-answering heads: the surest span of a passage, read in windows that overlap.

Legend: B windows, T positions.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmray.core.errors import ArtifactError
from fmray.serve.engine import Answer, Answered, Question, RequestError
from fmray.tasks.classifier import Classifier, model_inputs
from fmray.tasks.question_answering import best_span

STRIDE = 64
MAX_ANSWER_TOKENS = 30


class Answering:
    """Answers questions about passages as the task `question_answering` does."""

    def __init__(self, path: Path, *, device: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model = Classifier.load(path, device, "question_answering")
        if not self._model.tokenizer.is_fast:
            raise ArtifactError("its tokenizer tells no offsets, so answers cannot be found in a text", where=str(path), todo="give a model with a tokenizer.json")
        self.max_model_len = self._model.longest(None)

    def health(self) -> None:
        """Always well: it has no thread of its own that could end."""

    def close(self) -> None:
        """Nothing to end."""

    def answer(self, asked: Sequence[Question]) -> list[Answer | RequestError]:
        """The span of each passage that answers its question; see `TaskEngine`."""
        return [self._one(one) for one in asked]

    def _one(self, one: Question) -> Answer | RequestError:
        tokenizer, limit = self._model.tokenizer, self.max_model_len
        n_question = len(tokenizer(one.question, verbose=False)["input_ids"])
        if n_question > limit // 2:
            message = f"the question has {n_question} tokens; this model takes at most {limit // 2}"
            return RequestError(400, message, param="question", code="context_length_exceeded")
        encoded = tokenizer(
            [one.question], [one.context], truncation="only_second", max_length=limit, stride=min(STRIDE, limit // 4),
            return_overflowing_tokens=True, return_offsets_mapping=True, padding=True, padding_side="right", return_tensors="np",
        )  # fmt: skip
        rows = model_inputs(encoded, pairs=True)
        starts_BT, ends_BT = self._model.outputs(rows)
        found: tuple[float, int, int] | None = None
        for row, offsets_T2 in enumerate(np.asarray(encoded["offset_mapping"])):
            inside_T = np.array([part == 1 for part in encoded.sequence_ids(row)]) & (offsets_T2[:, 1] > offsets_T2[:, 0])
            if inside_T.any():
                score, first, last = best_span(starts_BT[row], ends_BT[row], inside_T, MAX_ANSWER_TOKENS)
                if found is None or score > found[0]:
                    found = (score, int(offsets_T2[first, 0]), int(offsets_T2[last, 1]))
        if found is None:
            return RequestError(400, "the context holds no token", param="context")
        score, start, end = found
        return Answered(one.context[start:end], start, end, float(score), int(rows["attention_mask_BT"].sum()))
