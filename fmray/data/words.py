"""Words of many texts at once, as arrays: where they lie, to which text they belong, and a 64-bit hash of each.

A batch of texts is laid end to end as code points, so that numpy does the work of a loop over words. A word's hash is a polynomial
over its scrambled code points modulo 2^64; an n-gram's is the same over its words. Neither depends on where in a batch a text stands.
Legend: C code points, W words, D documents (texts), G n-grams.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fmray.data.order import key, mix

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

BASE, INVERSE = 0x9E3779B97F4A7C15, pow(0x9E3779B97F4A7C15, -1, 1 << 64)
"""An odd number, and what multiplies it to 1 modulo 2^64: a hash is taken at any place of the batch and moved to place 0."""

BATCH_CHARS = 1 << 20
"""Texts are laid together up to about this many characters: enough to forget numpy's overhead, little enough for the cache."""

UNSPACED = "\u2e80-\u2fdf\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\U00020000-\U0003ffff"
"""Scripts that set no spaces between words: Han, kana, Thai, Lao, Burmese, Khmer."""


@dataclass(frozen=True)
class Words:
    """The words of a batch of texts.

    Attributes:
        hash_W: 64-bit hashes.
        document_W: the number of the text that each lies in, rising.
        first_D1: the first word of each text, and the number of words at the end.
    """

    hash_W: U64
    document_W: I64
    first_D1: I64


def words(texts: Sequence[str]) -> Words:
    """The words of texts in lower case: runs of letters, digits and underscores; each character of a script without spaces is one."""
    code_C, first_D = laid_out([text.lower() for text in texts])
    kind_C = _kinds()[code_C]
    starts_C = kind_C == _SINGLE
    letter_C = kind_C == _LETTER
    starts_C[0:1] |= letter_C[0:1]
    starts_C[1:] |= letter_C[1:] & ~letter_C[:-1]
    at_W = np.flatnonzero(starts_C)
    hash_W = hashes(_values()[code_C], at_W)
    first_D1 = np.searchsorted(at_W, np.append(first_D, len(code_C)))
    return Words(hash_W, np.repeat(np.arange(len(texts)), np.diff(first_D1)), first_D1)


def laid_out(texts: Sequence[str]) -> tuple[NDArray[np.uint32], I64]:
    """The code points of texts end to end, a newline behind each, and where each text starts."""
    joined = "".join([f"{text}\n" for text in texts])
    code_C = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths_D = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    return code_C, np.cumsum(lengths_D) - lengths_D


def hashes(value_C: U64, at_W: I64) -> U64:
    """The polynomial hash of each stretch of values, from its place in `at_W` to the next; zeros between words do not count."""
    if not len(at_W):
        return np.empty(0, np.uint64)
    forward, backward = powers(len(value_C))
    with np.errstate(over="ignore"):
        summed_W = np.add.reduceat(value_C * forward[: len(value_C)], at_W)
        return mix(summed_W * backward[at_W], 0)


def n_grams(found: Words, n: int) -> tuple[U64, I64]:
    """The hashes of all runs of `n` words that lie in one text, and the text of each, rising: hash_G and document_G."""
    last = len(found.hash_W) - n + 1
    if last <= 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    hash_G = rolled(found.hash_W, n)
    inside_G = found.document_W[:last] == found.document_W[n - 1 :]
    return hash_G[inside_G], found.document_W[:last][inside_G]


def rolled(hash_W: U64, n: int) -> U64:
    """One hash for each `n` neighbours, in their order."""
    forward, _ = powers(n)
    last = len(hash_W) - n + 1
    with np.errstate(over="ignore"):
        sum_G = hash_W[:last].copy()
        for i in range(1, n):
            sum_G += hash_W[i : i + last] * forward[i]
    return mix(sum_G, n)


def among(values: U64, index: U64) -> NDArray[np.bool_]:
    """Which values are in a sorted index that is not empty."""
    at = np.minimum(np.searchsorted(index, values), len(index) - 1)
    return index[at] == values


def powers(n: int) -> tuple[U64, U64]:
    """BASE^i and INVERSE^i modulo 2^64 for i from 0 to at least n - 1."""
    return _powers(max(BATCH_CHARS, 1 << (n - 1).bit_length()))


@lru_cache(maxsize=2)
def _powers(n: int) -> tuple[U64, U64]:
    both = []
    for base in (BASE, INVERSE):
        factors = np.full(n, base, np.uint64)
        factors[0] = 1
        both.append(np.multiply.accumulate(factors))
    return both[0], both[1]


_SPACE, _LETTER, _SINGLE = 0, 1, 2


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """For each code point whether it is part of a word, a word of its own, or neither."""
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    kinds = np.zeros(len(every), np.uint8)
    for pattern, kind in ((r"\w+", _LETTER), (f"[{UNSPACED}]+", _SINGLE)):
        for run in re.finditer(pattern, every):
            kinds[run.start() : run.end()] = kind
    kinds[[i for i in range(0x2E80, 0x10000) if kinds[i] == _SINGLE and not every[i].isalnum()]] = _SPACE
    return kinds


@lru_cache(maxsize=1)
def _values() -> U64:
    """The scrambled value of each code point that is part of a word; 0 for all others."""
    return np.where(_kinds() == _SPACE, np.uint64(0), scrambled())


@lru_cache(maxsize=1)
def scrambled() -> U64:
    """A 64-bit number for each code point."""
    return mix(np.arange(sys.maxunicode + 1, dtype=np.uint64), key(0x776F7264))


def batches(texts: Sequence[str]) -> list[range]:
    """Neighbouring texts in groups of about BATCH_CHARS characters, for functions that lay them together."""
    groups, start, size = [], 0, 0
    for i, text in enumerate(texts):
        size += len(text) + 1
        if size >= BATCH_CHARS:
            groups.append(range(start, i + 1))
            start, size = i + 1, 0
    if start < len(texts):
        groups.append(range(start, len(texts)))
    return groups
