"""The shares of a mixture: how often each source's documents must stand in the train split for its tokens to have their share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fmray.data.shards import Selection

MEASURED_COLUMNS = ("key", "hash", "source", "part", "ordinal", "n_bytes")


@dataclass
class Measured:
    """Distinct train documents by source number: UTF-8 bytes."""

    n_bytes: dict[int, int]


def measure(selection: Selection, low_high: tuple[int, int]) -> Measured:
    """The bytes of the train documents of a range of keys, without reading any text."""
    table, _ = selection.distinct(*low_high, columns=MEASURED_COLUMNS)
    table = table.filter(~selection.in_validation(table))
    sources, sizes = table["source"].to_numpy(), table["n_bytes"].to_numpy()
    return Measured({int(s): int(sizes[sources == s].sum()) for s in np.unique(sources)})


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


def tokens_of(n_bytes: Mapping[int, int], tokens_per_byte: Sequence[float]) -> list[float]:
    """Estimated tokens of each source."""
    return [n_bytes.get(source, 0) * rate for source, rate in enumerate(tokens_per_byte)]
