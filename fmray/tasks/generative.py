"""Tasks whose answer is a text that the model writes. Shapes: N examples, B rows, T positions, U positions of a target, V vocabulary."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmray.core.errors import DataError
from fmray.model.positions import n_positions
from fmray.tasks import Predictions, Split, Weights
from fmray.tasks.classifier import Classifier, Outputs, Rows, inputs_of
from fmray.tasks.sourced import Unlabelled

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
LOGITS = 2**26
"""So many are held at once while texts are scored: 256 MiB of them in float32."""


class Generative(Unlabelled):
    """A task with a text as its answer, written greedily or by beam search; only the answer is learnt.

    Attributes:
        max_new_tokens: answers are cut to so many tokens, those that are learnt (of an encoder-decoder) and those that are written.
        num_beams: of the search for the likeliest answer; 1 is greedy.
        by_character: figures count each Chinese character as a word.
    """

    max_new_tokens: int = Field(64, ge=1)
    num_beams: int = Field(1, ge=1)
    by_character: bool = False

    def forward(self, model: Callable[..., Any], batch: Mapping[str, "Tensor"], hf_config: Any) -> "tuple[Tensor, ...]":
        """The logits of every position; an encoder-decoder is told the answer one place later, its start token in front."""
        if self.head == "causal_lm":
            return (model(**inputs_of(batch), use_cache=False).logits,)
        labels_BU = batch["labels_BU"]
        begun_BU = labels_BU.masked_fill(labels_BU == IGNORED, hf_config.pad_token_id).roll(1, dims=1)
        begun_BU[:, 0] = hf_config.decoder_start_token_id
        return (model(**inputs_of(batch), decoder_input_ids=begun_BU, use_cache=False).logits,)

    def n_targets(self, batch: "Mapping[str, Tensor]") -> int:
        """The number of tokens of the answers."""
        return int((labels_of(batch) != IGNORED).sum())

    def loss_sum(self, outputs: "tuple[Tensor, ...]", batch: "Mapping[str, Tensor]", weights_K: "Tensor | None") -> "Tensor":
        """Cross-entropy of the tokens of the answers."""
        return told_loss(outputs[0], labels_of(batch)).sum()

    def require_room(self, opened: Classifier, rows: Rows) -> None:
        """See `Task`.

        Raises:
            DataError: the model has fewer positions than the longest prompt and `max_new_tokens`.
        """
        positions, before = n_positions(opened.model.config), int(rows["prompt_B"].max()) if "prompt_B" in rows else 1
        # What is written last is not read again.
        if positions is not None and before + self.max_new_tokens - 1 > positions:
            raise DataError(
                f"behind a prompt of {before} tokens the model has no positions for {self.max_new_tokens} new ones: it has {positions} in all", where=self.where,
                todo="lower task.max_new_tokens, or max_length",
            )  # fmt: skip

    def outputs(self, opened: Classifier, rows: Rows, batch_size: int = 64) -> Outputs:
        """The texts that the model writes [B], the summed loss of the right answers [B] and the numbers of their tokens [B]."""
        import torch

        self.require_room(opened, rows)

        def compute(batch: "Mapping[str, Tensor]") -> list[Any]:
            written = decoded(opened, generate(opened, batch, self.max_new_tokens, self.num_beams))
            labels = labels_of(batch)
            n = rows_at_once(opened, labels.shape[1])
            losses = [self._nats(opened, {name: column[start : start + n] for name, column in batch.items()}) for start in range(0, len(labels), n)]
            return [written, torch.cat(losses), (labels != IGNORED).sum(dim=1)]

        return opened.each(rows, batch_size, compute, fill=0)

    def _nats(self, opened: Classifier, batch: "Mapping[str, Tensor]") -> "Tensor":
        """The summed loss of each row."""
        import torch

        labels = labels_of(batch)
        losses = torch.zeros(labels.shape, device=labels.device)
        losses[labels != IGNORED] = told_loss(self.forward(opened.model, batch, opened.model.config)[0], labels)
        return losses.sum(dim=1)

    def predict(self, outputs: Outputs, rows: Rows, split: Split) -> Predictions:
        """The texts that were written."""
        losses_N2 = np.stack([outputs[1].astype(np.float64), outputs[2].astype(np.float64)], axis=1)
        return Predictions([str(text) for text in outputs[0]], losses_N2=losses_N2)

    @abc.abstractmethod
    def scores(self, said: str, right: Sequence[str]) -> Mapping[str, float]:
        """The figures of one answer against the texts that are right."""

    def figures(self, labels: Sequence[str], targets: Sequence[Any], predictions: Predictions, weights_RN: Weights) -> dict[str, NDArray[np.float64]]:
        """Means of `scores`; and the perplexity of the right answers where the predictions are a model's."""
        each = [self.scores(said, [right] if isinstance(right, str) else right) for said, right in zip(predictions.values, targets, strict=True)]
        total_R = weights_RN.sum(axis=1)
        found = {name: weights_RN @ np.array([scores[name] for scores in each]) / total_R for name in self.metric_names}
        if predictions.losses_N2 is not None:
            nats_R, tokens_R = (weights_RN @ column_N for column_N in predictions.losses_N2.T)
            found["perplexity"] = np.exp(nats_R / np.maximum(tokens_R, 1))
        return found


def labels_of(batch: Mapping[str, Any]) -> Any:
    """The tokens to be told: of a decoder where they are predicted, of an encoder-decoder along its target."""
    return batch["labels_BT"] if "labels_BT" in batch else batch["labels_BU"]


def rows_at_once(opened: Classifier, width: int) -> int:
    """How many rows of so many positions have no more than `LOGITS` logits."""
    return max(1, LOGITS // (width * int(opened.model.config.get_text_config().vocab_size)))


def told_loss(logits_BTV: "Tensor", labels_BT: "Tensor") -> "Tensor":
    """The cross-entropy in nats of each position that has a label, in float32; logits of the others are left alone, which saves most of it."""
    import torch.nn.functional as F

    chosen_BT = labels_BT != IGNORED
    return F.cross_entropy(logits_BTV[chosen_BT].float(), labels_BT[chosen_BT], reduction="none")


def generate(opened: Classifier, batch: "Mapping[str, Tensor]", max_new_tokens: int, num_beams: int) -> "Tensor":
    """The tokens that the model writes behind each row [B, U], padded; a decoder's rows are cut to their first `prompt_B` tokens."""
    import torch

    pad, eos = opened.tokenizer.pad_token_id, opened.tokenizer.eos_token_id
    ids_BT, mask_BT = batch["input_ids_BT"], batch["attention_mask_BT"]
    if opened.head == "causal_lm":
        # What is written stands behind a prompt's last token in every row, so prompts are padded in front.
        prompts = [ids_T[:n] for ids_T, n in zip(ids_BT, batch["prompt_B"].tolist(), strict=True)]
        width = max(len(ids) for ids in prompts)
        ids_BT = torch.stack([torch.nn.functional.pad(ids, (width - len(ids), 0), value=pad) for ids in prompts])
        mask_BT = (torch.arange(width, device=ids_BT.device) >= width - batch["prompt_B"][:, None]).long()
    written: Any = opened.model.generate(
        input_ids=ids_BT, attention_mask=mask_BT, max_new_tokens=max_new_tokens, num_beams=num_beams, do_sample=False, pad_token_id=pad, eos_token_id=eos
    )
    return written[:, ids_BT.shape[1] :] if opened.head == "causal_lm" else written


def decoded(opened: Classifier, ids_BU: "Tensor") -> NDArray[Any]:
    """The texts of written tokens [B], without special tokens and white space around them."""
    texts = opened.tokenizer.batch_decode(ids_BU, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return np.array([text.strip() for text in texts], dtype=object)


def causal_rows(answered: Sequence[tuple[Sequence[int], Sequence[bool], int]], max_length: int, pad: int, where: str) -> Rows:
    """The rows of a decoder, one an example.

    Args:
        answered: of each example its tokens, which of them are to be learnt, and how many stand before the last answer.

    Returns:
        `input_ids_BT`, `attention_mask_BT`; `labels_BT`: the next token where it is to be learnt, else -100; `prompt_B`; `example_B`.

    Raises:
        DataError: answers stand behind `max_length` tokens.
    """
    late = sum(prompt >= min(max_length, len(ids)) for ids, _, prompt in answered)
    if late:
        raise DataError(f"of {len(answered)} examples {late} have no token of the answer within max_length {max_length}", where=where, todo="raise max_length, or drop long examples")
    width = min(max_length, max(len(ids) for ids, _, _ in answered))
    ids_BT = np.full((len(answered), width), pad, dtype=np.int64)
    mask_BT, labels_BT = np.zeros_like(ids_BT), np.full_like(ids_BT, IGNORED)
    for row, (ids, learnt, _) in enumerate(answered):
        kept = np.asarray(ids[:width], dtype=np.int64)
        ids_BT[row, : len(kept)], mask_BT[row, : len(kept)] = kept, 1
        at = np.flatnonzero(np.asarray(learnt[:width], dtype=bool)[1:])
        labels_BT[row, at] = kept[at + 1]
    prompt_B = np.array([prompt for _, _, prompt in answered], dtype=np.int64)
    return {"input_ids_BT": ids_BT, "attention_mask_BT": mask_BT, "labels_BT": labels_BT, "prompt_B": prompt_B, "example_B": np.arange(len(answered), dtype=np.int64)}
