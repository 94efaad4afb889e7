"""Span corruption. Shapes: B rows, T positions of the input, U positions of the target, V vocabulary."""

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fmray.core.errors import ConfigError
from fmray.data.vocabulary import Vocabulary
from fmray.model.architectures import Family, Reads
from fmray.model.checkpoint import Head
from fmray.objectives import ALONE, Batch, Forward, LossParts, Objective, Rows, Setting, row_generators
from fmray.objectives._encoder_decoder import Ints, batch_of, count_targets, cross_entropy


class SpanCorruption(Objective):
    """Write what stood in the spans that sentinels replace (Raffel et al. 2020, section 3.1.4).

    A document `a b c d e f` becomes the input `a <extra_id_0> d e <extra_id_1>` and the target `<extra_id_0> b c <extra_id_1> f` with the
    end token behind it. Spans are drawn anew in every epoch as T5's code draws them: their number follows from `share` and
    `mean_span`, and every way to cut the hidden and the shown tokens into so many pieces is equally likely. Rows hold one document.

    Attributes:
        share: of a document's tokens that are hidden.
        mean_span: tokens of a span on average.
    """

    type: Literal["span_corruption"] = "span_corruption"
    head: ClassVar[Head] = "seq2seq_lm"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    family: ClassVar[Family | None] = "encoder_decoder"
    share: float = Field(0.15, gt=0, lt=1)
    mean_span: float = Field(3.0, ge=1)

    def check(self, setting: Setting, seq_len: int) -> None:
        """Wants rows of one document, and as many sentinels as the longest row needs."""
        vocabulary = _vocabulary(setting)
        if not setting.one_a_row:
            raise ConfigError("span_corruption trains on rows of one document each", where="objective", todo="prepare the dataset with packing: {type: unpacked}")
        needed = self._sizes(seq_len)[1]
        if len(vocabulary.sentinel_ids) < needed:
            raise ConfigError(
                f"rows of {seq_len} tokens need {needed} sentinels and the dataset's tokenizer has {len(vocabulary.sentinel_ids)}", where="objective",
                todo="prepare it with a tokenizer of `sentinels: 100`",
            )  # fmt: skip

    def configure(self, hf_config: Any) -> None:
        """The decoder begins with padding, as T5's does."""
        hf_config.decoder_start_token_id = hf_config.pad_token_id

    @property
    def reads(self) -> Reads:
        """See `Objective`."""
        spans = self.share / self.mean_span
        return 1 - self.share + spans, self.share + spans

    def collate(self, rows: Rows, setting: Setting = ALONE) -> Batch:
        """`input_ids_BT` with sentinels and `attention_mask_BT`, `decoder_input_ids_BT` and `labels_BT` (-100: none), each cut to its longest row.

        The targets' axis is as long as the longest target, not as the inputs.
        """
        vocabulary = _vocabulary(setting)
        pairs = []
        for ids_T, segments_T, draw in zip(np.asarray(rows["input_ids_BT"]), np.asarray(rows["segment_ids_BT"]), row_generators(rows, setting.seed), strict=True):
            pairs.append(self._corrupt(ids_T[segments_T != 0].astype(np.int64), vocabulary, draw))
        pad = vocabulary.pad_id if vocabulary.pad_id is not None else vocabulary.eos_id
        assert pad is not None
        return batch_of(rows, pairs, pad=pad, start=pad)

    def _sizes(self, n_tokens: int) -> tuple[int, int]:
        """How many of a document's tokens are hidden, and in how many spans."""
        hidden = min(max(round(n_tokens * self.share), 1), n_tokens - 1)
        return hidden, min(max(round(hidden / self.mean_span), 1), n_tokens - hidden)

    def _corrupt(self, ids_N: Ints, vocabulary: Vocabulary, draw: np.random.Generator) -> tuple[Ints, Ints]:
        """Input and target of one document; a document of fewer than two tokens has no target."""
        first = int(len(ids_N) > 0 and ids_N[0] == vocabulary.bos_id)
        last = len(ids_N) - int(len(ids_N) > first and ids_N[-1] == vocabulary.eos_id)
        body_N = ids_N[first:last]
        if len(body_N) < 2:
            return ids_N, np.zeros(0, np.int64)
        hidden, n_spans = self._sizes(len(body_N))
        lengths = np.stack([_cut(len(body_N) - hidden, n_spans, draw), _cut(hidden, n_spans, draw)], axis=1).ravel()
        pieces = np.split(body_N, np.cumsum(lengths)[:-1])
        sentinels = [np.array([i], dtype=np.int64) for i in vocabulary.sentinel_ids[:n_spans]]
        shown = [part for pair in zip(pieces[0::2], sentinels, strict=True) for part in pair]
        told = [part for pair in zip(sentinels, pieces[1::2], strict=True) for part in pair]
        return np.concatenate([ids_N[:first], *shown, ids_N[last:]]), np.concatenate([*told, [vocabulary.eos_id]]).astype(np.int64)

    def count(self, batch: Batch) -> int:
        """The number of target tokens, sentinels and ends included."""
        return count_targets(batch)

    def loss(self, model: Forward, batch: Batch) -> LossParts:
        """Summed cross-entropy in nats, in float32 whatever the model computes in."""
        return cross_entropy(model, batch)


def _cut(n: int, parts: int, draw: np.random.Generator) -> Ints:
    """`n` cut into so many parts of at least one, every way equally likely."""
    edges = np.sort(draw.choice(n - 1, parts - 1, replace=False)) + 1
    lengths: Ints = np.diff(np.concatenate([[0], edges, [n]])).astype(np.int64)
    return lengths


def _vocabulary(setting: Setting) -> Vocabulary:
    if setting.vocabulary is None or setting.vocabulary.eos_id is None:
        raise ConfigError("span_corruption needs the dataset's vocabulary with an end token", where="objective")
    return setting.vocabulary
