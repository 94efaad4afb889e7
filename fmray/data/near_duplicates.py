"""Near-duplicates across a whole corpus: MinHash signatures while it is read, then one global, deterministic search over them.

Two documents are near-duplicates when the Jaccard similarity of their sets of shingles (runs of words) is at least a threshold;
a group holds everything that likeness connects, and its document with the smallest key stays. MinHash (Broder, 1997) with
banding (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, ch. 3) proposes pairs; the share of equal signature
entries, an unbiased estimate of the similarity, decides.
Legend: N documents with words (distinct keys), K entries of a signature, P pairs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmray.core.config import Config
from fmray.core.errors import DataError
from fmray.data.order import mix
from fmray.data.words import Words, batches, n_grams, rolled, words

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
U16 = NDArray[np.uint16]
I64 = NDArray[np.int64]

RECALL = 0.9995
"""The least probability that a pair at the threshold becomes a candidate: it sets the rows of a band."""

WINDOW = 128
"""Documents of one bucket are compared with this many that follow in the order of keys: all pairs, in all but huge buckets."""

NOTHING = np.uint16(0xFFFF)
"""Every entry of the signature of a document without a word; it is nobody's near-duplicate."""

_CHUNK = 1 << 13


class NearDuplicates(Config):
    """Which documents count as near-duplicates of each other.

    Attributes:
        threshold: the Jaccard similarity of shingle sets from which on two documents are near-duplicates.
        shingle: words of a shingle, in lower case and without punctuation; in scripts without spaces (Chinese) each character is
            a word. A document of fewer words is one shingle.
        n_perm: entries of a signature, two bytes each: the estimate's standard error at similarity s is
            sqrt(s (1 - s) / n_perm), 0.018 at 0.8. Two bytes of a minimum agree by chance once in 65,536 times, so twice the entries
            of whole minima fit in the same space.
    """

    threshold: float = Field(0.8, ge=0.3, le=1.0)
    shingle: int = Field(5, ge=1, le=50)
    n_perm: int = Field(512, ge=16, le=4096)

    @property
    def bands(self) -> tuple[int, int]:
        """Bands of a signature and rows of a band: as many rows as keep RECALL at the threshold, so that few pairs are proposed.

        A pair of similarity s shares one of b bands of r rows with probability 1 - (1 - s^r)^b.
        """
        rows = 1
        while rows < self.n_perm and 1 - (1 - self.threshold ** (rows + 1)) ** (self.n_perm // (rows + 1)) >= RECALL:
            rows += 1
        return self.n_perm // rows, rows

    def signatures(self, texts: Sequence[str]) -> U16:
        """MinHash signatures, [len(texts), n_perm]; each depends on its own text alone."""
        parts = [self._signatures(texts[batch.start : batch.stop]) for batch in batches(texts)]
        return np.concatenate(parts) if parts else np.empty((0, self.n_perm), np.uint16)

    def _signatures(self, texts: Sequence[str]) -> U16:
        hash_G, offsets = shingles(words(texts), self.shingle)
        return minhash(hash_G, offsets, self.n_perm).astype(np.uint16)


def minhash(hash_G: U64, offsets: U64, n_perm: int) -> U32:
    """MinHash signatures, [sets, n_perm], of sets that lie end to end, set i from `offsets[i]` to `offsets[i + 1]`."""
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hash_G, offsets, n_perm, 0)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(offsets) - 1, n_perm)


def shingles(found: Words, n: int) -> tuple[U64, U64]:
    """The hashes of each document's runs of `n` words, repetitions included, and where each document's begin and the last end.

    A document of fewer than `n` words, but at least one, has a single shingle of all its words.
    """
    hash_G, document_G = n_grams(found, n)
    n_words = np.diff(found.first_D1)
    for length in range(1, n):
        short = np.flatnonzero(n_words == length)
        if len(short):
            hash_G = np.append(hash_G, rolled(found.hash_W, length)[found.first_D1[short]])
            document_G = np.append(document_G, short)
    order = np.argsort(document_G, kind="stable")
    offsets = np.searchsorted(document_G[order], np.arange(len(n_words) + 1))
    return hash_G[order], offsets.astype(np.uint64)


def removed_keys(parts: Sequence[tuple[Path, Path]], config: NearDuplicates, work: Path) -> U64:
    """The sorted keys of the documents that go: in each group of near-duplicates all but the one with the smallest key.

    Documents that share a key are copies of one document. The result depends on keys and signatures alone, not on how they are
    spread over files. Memory holds 8 bytes a document and one band's table (another 16); signatures stay on disk.

    Args:
        parts: files of keys (uint64, [n]) and of signatures (uint16, [n, n_perm]), as np.save writes them.
        work: an empty folder for band tables, 8 bytes a document and band.
    """
    store = _Store(parts, config)
    keys, row_N = store.distinct()
    np.save(work / "keys.npy", keys)
    del keys
    hashed = store.band_hashes(work / "bands.npy")
    parent_N = np.arange(len(row_N), dtype=np.uint32)
    for band in range(config.bands[0]):
        for one_P, other_P in _pairs(np.asarray(hashed[band])[row_N]):
            _connect(parent_N, one_P, other_P, store, row_N, config.threshold)
    sorted_keys: U64 = np.load(work / "keys.npy", mmap_mode="r")
    return np.array(sorted_keys[np.flatnonzero(parent_N != np.arange(len(parent_N)))])


class _Store:
    """Keys and memory-mapped signatures of all parts, as if in one array of rows."""

    def __init__(self, parts: Sequence[tuple[Path, Path]], config: NearDuplicates) -> None:
        self.config = config
        self._keys = [keys for keys, _ in parts]
        self._signatures: list[U16] = [np.load(path, mmap_mode="r") for _, path in parts]
        self.first_row = np.cumsum([0, *(len(each) for each in self._signatures)])
        if self.first_row[-1] >= 2**32:
            raise DataError("near-duplicates are searched among at most 2^32 documents", where="near_duplicates")

    def distinct(self) -> tuple[U64, U32]:
        """The distinct keys of documents with words, rising, and one row of each."""
        keys = np.concatenate([np.empty(0, np.uint64), *(np.load(path) for path in self._keys)])
        rows = np.argsort(keys, kind="stable").astype(np.uint32)
        keys = keys[rows]
        first = np.ones(len(keys), np.bool_)
        first[1:] = keys[1:] != keys[:-1]
        keys, rows = keys[first], rows[first]
        has_words = np.concatenate([np.empty(0, np.bool_), *((each[:, :8] != NOTHING).any(1) for each in self._signatures)])[rows]
        return keys[has_words], rows[has_words]

    def band_hashes(self, path: Path) -> NDArray[np.uint64]:
        """A 64-bit hash of each band of each row, [bands, rows], in one pass over the signatures; on disk."""
        n_bands, rows = self.config.bands
        total = max(1, int(self.first_row[-1]))
        hashed = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint64, shape=(n_bands, total))
        for first, signatures in zip(self.first_row, self._signatures, strict=False):
            for at in range(0, len(signatures), _CHUNK):
                some = np.asarray(signatures[at : at + _CHUNK, : n_bands * rows]).astype(np.uint64)
                state = np.zeros((len(some), n_bands), np.uint64)
                for row in range(rows):
                    state = mix(state ^ some[:, row::rows], row)
                hashed[:, first + at : first + at + len(some)] = state.T
        return hashed

    def signatures(self, rows: U32) -> U16:
        """The signatures of some rows, in their order."""
        part_of = np.searchsorted(self.first_row, rows, side="right") - 1
        found = np.empty((len(rows), self.config.n_perm), np.uint16)
        for part in np.unique(part_of):
            here = part_of == part
            found[here] = self._signatures[part][rows[here] - self.first_row[part]]
        return found


def _pairs(hash_N: U64) -> Iterator[tuple[I64, I64]]:
    """Pairs of documents of one bucket, nearest in key order first; documents stand in the order of their keys."""
    order = np.argsort(hash_N, kind="stable")
    hash_N = hash_N[order]
    at = np.flatnonzero(hash_N[1:] == hash_N[:-1])
    for distance in range(1, WINDOW + 1):
        for start in range(0, len(at), _CHUNK):
            some = at[start : start + _CHUNK]
            yield order[some], order[some + distance]
        at = at[at + distance + 1 < len(hash_N)]
        at = at[hash_N[at] == hash_N[at + distance + 1]]
        if not len(at):
            return


def _connect(parent_N: U32, one_P: I64, other_P: I64, store: _Store, row_N: U32, threshold: float) -> None:
    """Joins the groups of those pairs that are not joined yet and alike."""
    apart = _roots(parent_N, one_P) != _roots(parent_N, other_P)
    one_P, other_P = one_P[apart], other_P[apart]
    if not len(one_P):
        return
    equal = store.signatures(row_N[one_P]) == store.signatures(row_N[other_P])
    alike = np.count_nonzero(equal, axis=1) >= threshold * store.config.n_perm
    for one, other in zip(one_P[alike].tolist(), other_P[alike].tolist(), strict=True):
        a, b = root(parent_N, one), root(parent_N, other)
        if a != b:
            parent_N[max(a, b)] = min(a, b)


def _roots(parent_N: U32, at_P: I64) -> U32:
    """The smallest document of each one's group; all of them then point at it directly."""
    root_P = parent_N[at_P]
    while not np.array_equal(above_P := parent_N[root_P], root_P):
        root_P = above_P
    parent_N[at_P] = root_P
    return root_P


def root(parent: NDArray[Any], at: int) -> int:
    """The root of one member of a union-find forest; shortens the way there."""
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = int(parent[at])
    return at
