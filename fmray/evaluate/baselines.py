"""Unigram and bigram models counted on the train split: what any language model must beat.

Both are absolute-discount mixtures (Ney, Essen and Kneser 1994): the discount taken from each seen count is given to the next
simpler model, bigram to unigram and unigram to the uniform distribution over the vocabulary. The discounts are chosen on
the very text that is scored, which favours the baselines.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DISCOUNTS = np.linspace(0.05, 0.95, 19)
Ints = NDArray[np.int64]


def targets(input_ids_BT: NDArray[np.integer], segment_ids_BT: NDArray[np.integer]) -> tuple[NDArray[np.bool_], Ints, Ints]:
    """What is predicted in packed rows: every token but the first of its segment, and no padding.

    Returns:
        predicted_BT, and for the N predicted tokens in row order history_N (the token before) and target_N.
    """
    predicted_BT = np.zeros(input_ids_BT.shape, dtype=bool)
    predicted_BT[:, 1:] = (segment_ids_BT[:, 1:] == segment_ids_BT[:, :-1]) & (segment_ids_BT[:, 1:] != 0)
    history_BT = np.roll(input_ids_BT, 1, axis=1)
    return predicted_BT, history_BT[predicted_BT].astype(np.int64), input_ids_BT[predicted_BT].astype(np.int64)


@dataclass(frozen=True)
class Counts:
    """Bigram counts over a vocabulary V: `keys` are history * V + target, ascending, with their `counts`."""

    vocab_size: int
    keys: Ints
    counts: Ints

    def of(self, keys_N: Ints) -> Ints:
        """The count of each key, 0 for one never seen."""
        if not len(self.keys):
            return np.zeros(len(keys_N), dtype=np.int64)
        place = np.minimum(np.searchsorted(self.keys, keys_N), len(self.keys) - 1)
        return np.where(self.keys[place] == keys_N, self.counts[place], 0)

    @property
    def target_V(self) -> Ints:
        """How often each token was a target."""
        return np.bincount(self.keys % self.vocab_size, weights=self.counts, minlength=self.vocab_size).astype(np.int64)

    @property
    def history_V(self) -> Ints:
        """How often each token came before a target."""
        return np.bincount(self.keys // self.vocab_size, weights=self.counts, minlength=self.vocab_size).astype(np.int64)

    @property
    def successors_V(self) -> Ints:
        """How many distinct targets follow each token."""
        return np.bincount(self.keys // self.vocab_size, minlength=self.vocab_size)


def count(blocks: Iterable[tuple[Ints, Ints]], vocab_size: int) -> Counts:
    """Counts (history_N, target_N) blocks; memory grows with the distinct bigrams, not with the text."""
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for history_N, target_N in blocks:
        new_keys, new_counts = np.unique(history_N * vocab_size + target_N, return_counts=True)
        merged, places = np.unique(np.concatenate([keys, new_keys]), return_inverse=True)
        counts = np.bincount(places, weights=np.concatenate([counts, new_counts]), minlength=len(merged)).astype(np.int64)
        keys = merged
    return Counts(vocab_size, keys, counts)


@dataclass(frozen=True)
class Baseline:
    """Nats of each scored target under a baseline, and the discount that was best for it."""

    nats_N: NDArray[np.float64]
    discount: float


def score(train: Counts, history_N: Ints, target_N: Ints) -> tuple[Baseline, Baseline]:
    """The unigram and the bigram baseline on the given targets, each with the best of DISCOUNTS on these very targets."""
    seen_V = train.target_V
    total, types = seen_V.sum(), int(np.count_nonzero(seen_V))
    unigram = _best((d, _mixture(seen_V[target_N], total, types, d, 1.0 / train.vocab_size)) for d in DISCOUNTS)
    simpler_N = np.exp(-unigram.nats_N)
    together_N = train.of(history_N * train.vocab_size + target_N)
    history_counts_N, successors_N = train.history_V[history_N], train.successors_V[history_N]
    bigram = _best((d, _mixture(together_N, history_counts_N, successors_N, d, simpler_N)) for d in DISCOUNTS)
    return unigram, bigram


def _mixture(count_N: Ints, total_N: Ints | np.integer, types_N: Ints | int, discount: float, simpler_N: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """p = (max(c - d, 0) + d * types * p_simpler) / total, and p_simpler alone after a history that was never seen."""
    safe = np.maximum(total_N, 1)
    mixed = (np.maximum(count_N - discount, 0.0) + discount * types_N * simpler_N) / safe
    return np.where(total_N > 0, mixed, simpler_N)


def _best(candidates: Iterator[tuple[float, NDArray[np.float64]]]) -> Baseline:
    scored = [Baseline(-np.log(p_N), float(d)) for d, p_N in candidates]
    return min(scored, key=lambda b: float(b.nats_N.sum()))
