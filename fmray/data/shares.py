"""The shares of a mixture: how often each source's documents must stand in the train split for its tokens to have their share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fmray.data.order import unit
from fmray.data.shards import Selection

MEASURED_COLUMNS = ("key", "hash", "source", "part", "ordinal", "n_bytes")
BINS = 4096
"""How finely the bytes of a source are known by the number in [0, 1) that decides about one more copy of a document."""


@dataclass
class Measured:
    """UTF-8 bytes of distinct train documents by source number, in BINS equal parts of the number that decides about one more copy."""

    bins: dict[int, NDArray[np.int64]]

    @property
    def n_bytes(self) -> dict[int, int]:
        """Bytes by source number."""
        return {source: int(bins.sum()) for source, bins in self.bins.items()}


def measure(selection: Selection, low_high: tuple[int, int]) -> Measured:
    """The bytes of the train documents of a range of keys, without reading any text."""
    table, _ = selection.distinct(*low_high, columns=MEASURED_COLUMNS)
    table = table.filter(~selection.in_validation(table))
    sources, sizes = table["source"].to_numpy(), table["n_bytes"].to_numpy()
    bins = (unit(table["hash"].to_numpy(), selection.copy_key) * BINS).astype(np.int64)
    return Measured({int(s): _summed(bins[sources == s], sizes[sources == s]) for s in np.unique(sources)})


def _summed(bins_N: NDArray[np.int64], sizes_N: NDArray[np.int64]) -> NDArray[np.int64]:
    total = np.zeros(BINS, np.int64)
    np.add.at(total, bins_N, sizes_N)
    return total


def joined(parts: Iterable[Measured]) -> Measured:
    """What all parts hold together."""
    total: dict[int, NDArray[np.int64]] = {}
    for part in parts:
        for source, bins in part.bins.items():
            total[source] = total.get(source, 0) + bins
    return Measured(total)


def repeats(weights: Sequence[float], n_tokens: Sequence[float], max_repeats: int) -> tuple[float, ...]:
    """How often the documents of each source are wanted, as a mean.

    The train split becomes as large as all sources together, or smaller where a source would have to repeat more than
    `max_repeats` times. With N tokens in all, source s with n_s tokens and share w_s is wanted w_s N / n_s times.

    Args:
        weights: shares, not necessarily of sum 1.
        n_tokens: how many tokens each source has, all above 0.
    """
    share = np.array(weights) / np.sum(weights)
    have = np.array(n_tokens, np.float64)
    total = min(have.sum(), float((max_repeats * have / share).min()))
    return tuple((share * total / have).tolist())


def by_bytes(mean: float, bins: NDArray[np.int64]) -> float:
    """The mean of copies of a document with which a source's bytes stand `mean` times in the split.

    Which documents get one more copy is drawn by hash. Where a few hold much of the text, a share of the documents may be quite
    another share of the bytes; so the share of documents is taken that comes nearest in bytes.
    """
    whole, part = divmod(mean, 1.0)
    reached = np.concatenate([[0], np.cumsum(bins)]) / bins.sum()
    return float(whole + np.abs(reached - part).argmin() / BINS)


def tokens_of(n_bytes: Mapping[int, int], tokens_per_byte: Sequence[float]) -> list[float]:
    """Estimated tokens of each source."""
    return [n_bytes.get(source, 0) * rate for source, rate in enumerate(tokens_per_byte)]
