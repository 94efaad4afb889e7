"""Masked language modelling. Shapes: B rows, T positions, V vocabulary."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fmray.core.errors import ConfigError
from fmray.data.vocabulary import Vocabulary
from fmray.model.architectures import Family
from fmray.model.checkpoint import Head
from fmray.model.target_loss import IGNORED, target_loss
from fmray.objectives import ALONE, Batch, Forward, LossParts, Objective, Rows, Setting, row_generators

if TYPE_CHECKING:
    from torch import Tensor


class MaskedLM(Objective):
    """Tell the hidden tokens of a row from all others of their document (Devlin et al. 2019, section 3.1).

    Of each row's tokens that stand for text a share is chosen, anew in every epoch (Liu et al. 2019, section 4.1), exactly that
    share rounded, and at least one. A chosen token is replaced by the mask, by a random token, or left as it is. Documents packed
    into one row never see each other: attention is full among the positions of a segment.

    Attributes:
        share: of the tokens that are to be told.
        masked: how many of these show the mask; random: how many show a random token; the rest show themselves.
        whole_words: words are chosen rather than tokens, in random order until the share is reached.
    """

    type: Literal["masked_lm"] = "masked_lm"
    head: ClassVar[Head] = "masked_lm"
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    family: ClassVar[Family | None] = "encoder"
    share: float = Field(0.15, gt=0, lt=1)
    masked: float = Field(0.8, ge=0, le=1)
    random: float = Field(0.1, ge=0, le=1)
    whole_words: bool = False

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.masked + self.random > 1:
            raise ValueError(f"masked {self.masked:g} and random {self.random:g} are more than all of the chosen tokens")
        return self

    def check(self, setting: Setting, seq_len: int) -> None:
        """Wants a mask token, and a tokenizer that tells words where whole words are chosen."""
        vocabulary = _vocabulary(setting)
        if vocabulary.mask_id is None:
            raise ConfigError("the dataset's tokenizer has no mask token", where="objective", todo="prepare it with a tokenizer that names a mask_token")
        if self.whole_words and vocabulary.word_start_V is None:
            raise ConfigError("the dataset's tokenizer does not tell where words begin", where="objective.whole_words", todo="leave it out, or use type: bpe, unigram or wordpiece")

    def collate(self, rows: Rows, setting: Setting = ALONE) -> Batch:
        """`input_ids_BT` with masks, `position_ids_BT`, `segment_ids_BT` (0: padding), `labels_BT`: the hidden tokens, else -100.

        Where every row holds one document there is `attention_mask_BT` in place of the segments.
        """
        import torch

        vocabulary = _vocabulary(setting)
        ids_BT, segments_BT = (np.array(rows[name], dtype=np.int64) for name in ("input_ids_BT", "segment_ids_BT"))
        labels_BT = np.full(ids_BT.shape, IGNORED, dtype=np.int64)
        for ids_T, labels_T, segments_T, draw in zip(ids_BT, labels_BT, segments_BT, row_generators(rows, setting.seed), strict=True):
            chosen_N = self._choose(ids_T, segments_T, vocabulary, draw)
            labels_T[chosen_N] = ids_T[chosen_N]
            ids_T[chosen_N] = self._shown(ids_T[chosen_N], vocabulary, draw)
        batch: dict[str, Tensor] = {"row_ids_B": torch.from_numpy(np.asarray(rows["row_ids_B"], dtype=np.int64))}
        batch |= {"input_ids_BT": torch.from_numpy(ids_BT), "labels_BT": torch.from_numpy(labels_BT)}
        batch["position_ids_BT"] = torch.from_numpy(np.asarray(rows["position_ids_BT"], dtype=np.int64) + setting.position_offset)
        if setting.one_a_row:
            return batch | {"attention_mask_BT": torch.from_numpy((segments_BT != 0).astype(np.int64))}
        return batch | {"segment_ids_BT": torch.from_numpy(segments_BT)}

    def _choose(self, ids_T: NDArray[np.int64], segments_T: NDArray[np.int64], vocabulary: Vocabulary, draw: np.random.Generator) -> NDArray[np.int64]:
        """The positions to be told."""
        text_T = (segments_T != 0) & ~vocabulary.special_V[ids_T]
        places = np.flatnonzero(text_T)
        wanted = min(len(places), max(1, round(self.share * len(places))))
        if not self.whole_words or vocabulary.word_start_V is None:
            return np.sort(draw.permutation(places)[:wanted])
        # A word begins where its token says so, at the first token of a document, and behind a special token.
        begins_T = vocabulary.word_start_V[ids_T]
        begins_T[1:] |= ~text_T[:-1] | (segments_T[1:] != segments_T[:-1])
        word_of = np.cumsum(begins_T)[places]
        words, sizes = np.unique(word_of, return_counts=True)
        order = draw.permutation(len(words))
        before = np.cumsum(sizes[order]) - sizes[order]
        return places[np.isin(word_of, words[order[before < wanted]])]

    def _shown(self, tokens_N: NDArray[np.int64], vocabulary: Vocabulary, draw: np.random.Generator) -> NDArray[np.int64]:
        """What stands in the place of the chosen tokens."""
        assert vocabulary.mask_id is not None
        fate_N, others_N = draw.random(len(tokens_N)), draw.choice(vocabulary.plain_ids, len(tokens_N))
        shown_N = np.where(fate_N < self.masked + self.random, others_N, tokens_N)
        return np.where(fate_N < self.masked, vocabulary.mask_id, shown_N)

    def count(self, batch: Batch) -> int:
        """The number of tokens to be told."""
        return int((batch["labels_BT"] != IGNORED).sum())

    def loss(self, model: Forward, batch: Batch) -> LossParts:
        """Summed cross-entropy in nats, in float32 whatever the model computes in."""
        labels_BT = batch["labels_BT"]
        total = target_loss(model, labels_BT, input_ids=batch["input_ids_BT"], position_ids=batch["position_ids_BT"], attention_mask=_mask(batch))
        return LossParts(total, (labels_BT != IGNORED).sum())


def _vocabulary(setting: Setting) -> Vocabulary:
    if setting.vocabulary is None:
        raise ConfigError("masked_lm needs the dataset's vocabulary", where="objective")
    return setting.vocabulary


def _mask(batch: Batch) -> Any:
    """[B, T] of rows with one document, else [B, 1, T, T]: which positions share a segment. Padding sees padding, which no loss reads."""
    if "attention_mask_BT" in batch:
        return batch["attention_mask_BT"]
    segments_BT = batch["segment_ids_BT"]
    return segments_BT[:, None, :, None] == segments_BT[:, None, None, :]
