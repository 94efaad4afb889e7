"""The global order of rows: a function of seed and epoch that no library version and no number of workers can change.

Two things are combined. The sources of a mixture are interleaved, so that every stretch of the order holds each one's share. And
positions are dealt to lanes, position p to lane p mod n_lanes, each of which reads blocks of its own: a worker that takes every W-th
position fetches no block of another worker's lanes where W divides the lanes.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

LANE_BLOCKS = 8
"""Blocks of a lane within a stripe: a block that two lanes share is fetched twice, so about one in so many is."""
MAX_STRIPE = 2**19
"""Positions whose pattern of sources and lanes is held at once: about 10 MB."""


def mix(values: U64, key: int) -> U64:
    """A bijection of 64-bit numbers chosen by `key`: splitmix64's output function (Steele, Lea and Flood, 2014) after a keyed offset.

    Sorting anything by `mix(ids, key)` gives a repeatable shuffle that depends on nothing but the ids and the key.
    """
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) + np.uint64(key & _MASK)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def key(*parts: int) -> int:
    """One 64-bit key from several numbers, such as a seed, an epoch and a purpose; the order of the parts matters."""
    state = 0
    for part in parts:
        value = np.array([(state + part + 1) * _GOLDEN & _MASK], np.uint64)
        state = int(mix(value, _GOLDEN)[0])
    return state


def unit(values: U64, key: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each value, uniform over the values: to draw splits by hash."""
    return (mix(values, key) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def permutation(n: int, key: int) -> I64:
    """The numbers 0 to n-1 in the order that `key` gives them."""
    return np.argsort(mix(np.arange(n, dtype=np.uint64), key), kind="stable")


def interleave(counts: Sequence[int], begins: Sequence[int], ends: Sequence[int]) -> I64:
    """The sources of the positions of a mixture that take rows `begins` to `ends` of each source.

    The k-th of a source's n rows stands at time (k + 1/2) / n, and ties go by source. At any time a source has shown its share of its
    rows to within half a row; so of S >= 2 sources, one with a share f of all rows has in any stretch of the order f of it to
    within 1 + (S - 2) f rows. Equal times round to equal doubles; different ones may do so only with 2^25 rows and more.
    """
    times = np.concatenate([(2 * np.arange(begin, end) + 1) / (2 * max(1, n)) for n, begin, end in zip(counts, begins, ends, strict=True)])
    sources = np.repeat(np.arange(len(counts)), np.subtract(ends, begins))
    return sources[np.argsort(times, kind="stable")] if len(counts) > 1 else sources


def deal(sources: I64, n_sources: int, first: int, n_lanes: int) -> I64:
    """Which of its source's rows each position takes, counted from 0, when position p takes the next row of its lane, p mod n_lanes.

    The rows of a source are cut into one run for each lane, as long as the lane has positions of that source.

    Args:
        sources: of the positions from `first` on.
    """
    lanes = (first + np.arange(len(sources))) % n_lanes
    # Small numbers are sorted by radix, in time that grows with the positions alone.
    groups = (sources * n_lanes + lanes).astype(np.min_scalar_type(n_sources * n_lanes))
    by_lane = np.argsort(groups, kind="stable")
    counts = np.bincount(sources, minlength=n_sources)
    taken = np.empty(len(sources), np.int64)
    taken[by_lane] = np.arange(len(sources)) - np.repeat(np.cumsum(counts) - counts, counts)
    return taken


class GlobalOrder:
    """The rows of a split in the order of any epoch, found for any positions without laying out the epoch.

    Each epoch shuffles the blocks of each source and the rows within each block. The interleaved epoch is cut into stripes, and
    lanes begin anew with each, so that time and memory are bounded by a stripe.
    """

    def __init__(self, sizes: I64, sources: I64, seed: int, n_lanes: int) -> None:
        """Takes the blocks in storage order: the rows of each, and the number of the source that it belongs to, from 0 up."""
        self.seed, self.n_lanes = seed, n_lanes
        self.firsts = np.concatenate([[0], np.cumsum(sizes)])
        self._blocks_of = [np.flatnonzero(sources == source) for source in range(int(sources.max()) + 1)]
        self._counts = np.array([sizes[blocks].sum() for blocks in self._blocks_of], np.int64)
        stripe = min(MAX_STRIPE, int(sizes.max()) * LANE_BLOCKS * n_lanes)
        n_stripes = max(1, self.n_rows // stripe)
        # The rows of each source whose time is at most i / n_stripes: stripes cut the one order of the whole epoch.
        self._begins = (2 * np.arange(n_stripes + 1)[:, None] * self._counts + n_stripes) // (2 * n_stripes)
        self._starts = self._begins.sum(axis=1)
        live = 2 * n_lanes * len(self._blocks_of) + 2
        self._pattern = lru_cache(2)(self._stripe_pattern)
        self._shuffled = lru_cache(2 * len(self._blocks_of))(self._shuffled_blocks)
        self._inside = lru_cache(live)(self._inside_block)

    @property
    def n_rows(self) -> int:
        """Rows of the split, which is the positions of an epoch."""
        return int(self.firsts[-1])

    def row_ids(self, epoch: int, positions: I64) -> I64:
        """The ids (places in storage order) of the rows at these positions of an epoch."""
        found = np.empty(len(positions), np.int64)
        stripes = np.searchsorted(self._starts, positions, side="right") - 1
        for stripe in np.unique(stripes):
            here = np.flatnonzero(stripes == stripe)
            sources, taken = self._pattern(int(stripe))
            places = positions[here] - self._starts[stripe]
            for source in np.unique(sources[places]):
                mine = sources[places] == source
                found[here[mine]] = self._rows_of(epoch, int(source), self._begins[stripe, source] + taken[places[mine]])
        return found

    def _stripe_pattern(self, stripe: int) -> tuple[I64, I64]:
        sources = interleave(self._counts.tolist(), self._begins[stripe].tolist(), self._begins[stripe + 1].tolist())
        return sources, deal(sources, len(self._counts), int(self._starts[stripe]), self.n_lanes)

    def _rows_of(self, epoch: int, source: int, places: I64) -> I64:
        """The ids of the rows at these places of a source's own shuffled order."""
        blocks, ends = self._shuffled(epoch, source)
        found = np.empty(len(places), np.int64)
        slots = np.searchsorted(ends, places, side="right")
        for slot in np.unique(slots):
            block, mine = int(blocks[slot]), slots == slot
            inside = self._inside(epoch, block)
            found[mine] = self.firsts[block] + inside[places[mine] - (ends[slot] - len(inside))]
        return found

    def _shuffled_blocks(self, epoch: int, source: int) -> tuple[I64, I64]:
        """A source's blocks in the epoch's order, and the place behind the last row of each."""
        blocks = self._blocks_of[source]
        blocks = blocks[permutation(len(blocks), key(self.seed, epoch, 0, source))]
        return blocks, np.cumsum(np.diff(self.firsts)[blocks])

    def _inside_block(self, epoch: int, block: int) -> I64:
        return permutation(int(self.firsts[block + 1] - self.firsts[block]), key(self.seed, epoch, 1, block))
