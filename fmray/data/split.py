"""Groups of near-duplicates, which a split must keep whole: no test text then has a near-copy among the training texts."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fmray.data.near_duplicates import minhash, root
from fmray.data.text import normalise

THRESHOLD = 0.7
N_BANDS, BAND_ROWS = 64, 4
"""Two texts of Jaccard similarity s share a band with probability 1 - (1 - s^4)^64: all but 2e-8 of those at 0.7 become candidates."""

_WORD = re.compile(r"\w+")
_DIGIT = re.compile(r"\d")


def near_duplicate_groups(texts: Sequence[str], threshold: float = THRESHOLD) -> NDArray[np.int64]:
    """For each text the index of the first text of its group.

    Two texts are alike when the Jaccard similarity of their words and pairs of neighbouring words (lower case, digits as one) is
    at least `threshold`; a group holds everything that likeness connects. MinHash proposes the pairs, exact comparison decides.
    """
    shingles = [_shingles(text) for text in texts]
    parent = np.arange(len(texts))
    for bucket in _candidates(shingles):
        for at, one in enumerate(bucket):
            for other in bucket[:at]:
                a, b = root(parent, one), root(parent, other)
                if a != b and jaccard(shingles[one], shingles[other]) >= threshold:
                    parent[max(a, b)] = min(a, b)
    return np.array([root(parent, i) for i in range(len(texts))], np.int64)


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    """Shared elements over all elements; 1 for two empty sets."""
    union = len(a | b)
    return len(a & b) / union if union else 1.0


def _shingles(text: str) -> frozenset[int]:
    words = _WORD.findall(_DIGIT.sub("0", normalise(text).lower()))
    return frozenset(_number(s) for s in [*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))])


def _number(shingle: str) -> int:
    return int.from_bytes(hashlib.blake2b(shingle.encode(), digest_size=8).digest(), "big")


def _candidates(shingles: Sequence[frozenset[int]]) -> Iterable[list[int]]:
    """Lists of texts whose MinHash signatures agree in a whole band."""
    if not shingles:
        return
    hashes = np.fromiter(itertools.chain.from_iterable(shingles), np.uint64)
    offsets = np.cumsum([0, *map(len, shingles)]).astype(np.uint64)
    bands = minhash(hashes, offsets, N_BANDS * BAND_ROWS).reshape(len(shingles), N_BANDS, BAND_ROWS)
    for band in range(N_BANDS):
        _, bucket_of = np.unique(bands[:, band], axis=0, return_inverse=True)
        order = np.argsort(bucket_of, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(bucket_of[order])) + 1):
            if len(bucket) > 1:
                yield bucket.tolist()
