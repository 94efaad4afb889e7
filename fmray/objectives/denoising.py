"""Document denoising. Shapes: B rows, T positions of the input, U positions of the target, V vocabulary, N tokens of a document."""

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fmray.core.errors import ConfigError
from fmray.data.vocabulary import Vocabulary
from fmray.model.architectures import Family, Reads
from fmray.model.checkpoint import Head
from fmray.objectives import ALONE, Batch, Forward, LossParts, Objective, Rows, Setting, row_generators
from fmray.objectives._encoder_decoder import Ints, batch_of, count_targets, cross_entropy


class Denoising(Objective):
    """Write a document as it was before its sentences were shuffled and spans were hidden (Lewis et al. 2020, section 2.2).

    The target is the whole document, and every token of it counts. Sentences end with full stops and their kin. Then text is infilled:
    spans whose lengths are drawn from a Poisson distribution are replaced by one mask each, until exactly `share` of the tokens is hidden
    (the last span is cut to fit); a span of length 0 puts a mask where nothing was hidden. Spans of tokens, not of words, with at least
    one token between two of them, every placing equally likely, drawn anew in every epoch. Masks for nothing that would make the input
    longer than the document are left out, so it fits wherever the document does. Rows hold one document.

    Attributes:
        share: of a document's tokens that are hidden.
        mean_span: the mean of the Poisson distribution of lengths.
        permute_sentences: whether sentences are shuffled.
    """

    type: Literal["denoising"] = "denoising"
    head: ClassVar[Head] = "seq2seq_lm"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    family: ClassVar[Family | None] = "encoder_decoder"
    share: float = Field(0.3, gt=0, lt=1)
    mean_span: float = Field(3.0, ge=1)
    permute_sentences: bool = True

    def check(self, setting: Setting, seq_len: int) -> None:
        """Wants rows of one document, a mask token, and tokens that end sentences where these are shuffled."""
        vocabulary = _vocabulary(setting)
        if not setting.one_a_row:
            raise ConfigError("denoising trains on rows of one document each", where="objective", todo="prepare the dataset with packing: {type: unpacked}")
        if vocabulary.mask_id is None:
            raise ConfigError("the dataset's tokenizer has no mask token", where="objective", todo="prepare it with a tokenizer that names a mask_token")
        if self.permute_sentences and not vocabulary.sentence_end_V.any():
            raise ConfigError("no token of the dataset's tokenizer ends a sentence", where="objective.permute_sentences", todo="set it to false")

    def configure(self, hf_config: Any) -> None:
        """The decoder begins with the end token, as BART's does."""
        hf_config.decoder_start_token_id = hf_config.eos_token_id

    @property
    def reads(self) -> Reads:
        """See `Objective`."""
        return 1 - self.share + self.share / self.mean_span, 1.0

    def collate(self, rows: Rows, setting: Setting = ALONE) -> Batch:
        """`input_ids_BT` with masks and `attention_mask_BT`, `decoder_input_ids_BT` and `labels_BT` (-100: none), each cut to its longest row.

        The targets' axis is as long as the longest document, not as the inputs.
        """
        vocabulary = _vocabulary(setting)
        assert vocabulary.eos_id is not None
        pairs = []
        for ids_T, segments_T, draw in zip(np.asarray(rows["input_ids_BT"]), np.asarray(rows["segment_ids_BT"]), row_generators(rows, setting.seed), strict=True):
            ids_N = ids_T[segments_T != 0].astype(np.int64)
            pairs.append((self._corrupt(ids_N, vocabulary, draw), ids_N))
        return batch_of(rows, pairs, pad=vocabulary.eos_id if vocabulary.pad_id is None else vocabulary.pad_id, start=vocabulary.eos_id)

    def _corrupt(self, ids_N: Ints, vocabulary: Vocabulary, draw: np.random.Generator) -> Ints:
        """The input for a document: its begin and end stay where they are."""
        first = int(len(ids_N) > 0 and ids_N[0] == vocabulary.bos_id)
        last = len(ids_N) - int(len(ids_N) > first and ids_N[-1] == vocabulary.eos_id)
        body_N = ids_N[first:last]
        if not len(body_N):
            return ids_N
        if self.permute_sentences:
            body_N = _shuffled(body_N, vocabulary, draw)
        return np.concatenate([ids_N[:first], self._infilled(body_N, vocabulary, draw), ids_N[last:]])

    def _infilled(self, body_N: Ints, vocabulary: Vocabulary, draw: np.random.Generator) -> Ints:
        hidden = max(1, round(self.share * len(body_N)))
        lengths = self._lengths(hidden, len(body_N) - hidden + 1, draw)
        # Each span stands in a gap of its own in front of, between or behind the tokens that are shown.
        gaps = np.sort(draw.choice(len(body_N) - hidden + 1, len(lengths), replace=False))
        shown = np.diff(np.concatenate([[0], gaps, [len(body_N) - hidden]]))
        edges = np.cumsum(np.stack([shown[:-1], lengths], axis=1).ravel())
        mask = np.array([vocabulary.mask_id], dtype=np.int64)
        pieces = np.split(body_N, edges)[0::2]
        return np.concatenate([part for piece in pieces[:-1] for part in (piece, mask)] + [pieces[-1]])

    def _lengths(self, hidden: int, most: int, draw: np.random.Generator) -> Ints:
        """Lengths of spans that add up to `hidden`, at most `most` of them and no more than there are tokens to hide."""
        lengths = draw.poisson(self.mean_span, hidden)
        while lengths.sum() < hidden:
            lengths = np.concatenate([lengths, draw.poisson(self.mean_span, hidden)])
        lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), hidden)) + 1]
        lengths[-1] -= lengths.sum() - hidden
        spans = lengths > 0
        if (n_spans := int(spans.sum())) > most:
            # More spans than gaps between the few tokens that are shown: the last ones become one.
            lengths = lengths[spans]
            return np.append(lengths[: most - 1], lengths[most - 1 :].sum())
        return lengths[spans | (np.cumsum(~spans) <= min(hidden, most) - n_spans)]

    def count(self, batch: Batch) -> int:
        """The number of tokens of the documents, begins and ends included."""
        return count_targets(batch)

    def loss(self, model: Forward, batch: Batch) -> LossParts:
        """Summed cross-entropy in nats, in float32 whatever the model computes in."""
        return cross_entropy(model, batch)


def _shuffled(body_N: Ints, vocabulary: Vocabulary, draw: np.random.Generator) -> Ints:
    """A document with its sentences in random order; several ends in a row (`?!`) end one sentence."""
    ends_N = vocabulary.sentence_end_V[body_N]
    sentences = np.split(body_N, np.flatnonzero(ends_N[:-1] & ~ends_N[1:]) + 1)
    return np.concatenate([sentences[i] for i in draw.permutation(len(sentences))])


def _vocabulary(setting: Setting) -> Vocabulary:
    if setting.vocabulary is None or setting.vocabulary.eos_id is None:
        raise ConfigError("denoising needs the dataset's vocabulary with an end token", where="objective")
    return setting.vocabulary
