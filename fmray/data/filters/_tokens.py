"""English tokens of many texts at once, as the published quality rules count them: punctuation and contractions apart from words.

The rules of Gopher and FineWeb were tuned on such tokens (`do|n't`, `well|-|known`, `end|.|"`). Where to cut is decided for all
punctuation of a batch in a few array operations; no loop runs over words.
Legend: C code points, Q places of punctuation, W tokens.
"""

import string
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fmray.data.order import mix
from fmray.data.words import hashes, laid_out, scrambled

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

LETTER, UPPER, DIGIT, OPENS, CLOSES, JOINS, ALONE, SPACE = (1 << bit for bit in range(8))
"""What a code point may be: OPENS and CLOSES are cut off the start and the end of a word, JOINS cut a word between letters, ALONE always."""

ABBREVIATIONS = (
    "Adm", "Bros", "Co", "Corp", "Dr", "Gen", "Gov", "Inc", "Jr", "Ltd", "Md", "Messrs", "Mr", "Mrs", "Ms", "Mt",
    "Prof", "Rep", "Rev", "Sen", "Sr", "St", "vs", "Jan", "Feb", "Mar", "Apr", "Jun", "Jul", "Aug", "Sep", "Sept",
    "Oct", "Nov", "Dec", "a.m", "p.m", "e.g", "E.g", "i.e", "I.e", "Ph.D",
)
"""Words whose dot ends no sentence."""

_NOT_OPENING, _NOT_CLOSING, _JOINING = "-./@\\^|~", "$+-/=@\\^|~", ",-/:<=>~\u2013\u2014\u2026"
_DOT, _AT, _COLON, _SLASH, _N, _T = map(ord, ".@:/nt")
_HYPHENS, _APOSTROPHES = tuple(map(ord, "-\u2013\u2014")), tuple(map(ord, "'\u2019"))


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch of texts.

    Attributes:
        hash_W: 64-bit hashes.
        kind_W: what the code points of each are, or-ed together.
        length_W: code points of each.
        document_W: the number of the text that each lies in, rising.
        first_D1: the first token of each text, and the number of tokens at the end.
    """

    hash_W: NDArray[np.uint64]
    kind_W: U8
    length_W: I64
    document_W: I64
    first_D1: I64


def tokens(texts: Sequence[str]) -> Tokens:
    """The tokens of texts."""
    code_C, first_D = laid_out(texts)
    kind_C = _kinds()[code_C]
    solid_C = (kind_C & SPACE) == 0
    starts_C = solid_C.copy()
    starts_C[1:] &= ~solid_C[:-1]
    ends_C = np.zeros(len(code_C) + 1, np.bool_)
    ends_C[1:] = solid_C
    ends_C[1:-1] &= ~solid_C[1:]
    chunk = np.flatnonzero(starts_C)
    starts_C[_cuts(code_C, kind_C, chunk)] = True
    starts_C &= solid_C
    at_W = np.flatnonzero(starts_C)
    ends_C[1:-1] |= starts_C[1:] & solid_C[:-1]
    length_W = np.flatnonzero(ends_C) - at_W
    first_D1 = np.searchsorted(at_W, np.append(first_D, len(code_C)))
    kind_W = np.bitwise_or.reduceat(kind_C & ~np.uint8(SPACE), at_W) if len(at_W) else np.empty(0, np.uint8)
    document_W = np.repeat(np.arange(len(texts)), np.diff(first_D1))
    return _with_abbreviations(Tokens(hashes(_values()[code_C], at_W), kind_W, length_W, document_W, first_D1), at_W)


def _with_abbreviations(found: Tokens, at_W: I64) -> Tokens:
    """The tokens with the dot of an abbreviation as a part of it."""
    known = _abbreviations()
    dot = np.flatnonzero(found.hash_W == known[0])
    dot = dot[dot > 0]
    word = dot - 1
    touching = at_W[word] + found.length_W[word] == at_W[dot]
    dot, word = dot[touching], word[touching]
    abbreviated = np.isin(found.hash_W[word], known[1:])
    dot, word = dot[abbreviated], word[abbreviated]
    if not len(dot):
        return found
    hash_W, length_W = found.hash_W.copy(), found.length_W.copy()
    hash_W[word], length_W[word] = mix(hash_W[word], 1), length_W[word] + 1
    stays = np.ones(len(hash_W), np.bool_)
    stays[dot] = False
    first_D1 = found.first_D1 - np.searchsorted(dot, found.first_D1)
    return Tokens(hash_W[stays], found.kind_W[stays], length_W[stays], found.document_W[stays], first_D1)


@lru_cache(maxsize=1)
def _abbreviations() -> NDArray[np.uint64]:
    """The hashes of a dot and of the words that keep one behind them."""
    code_C, first_D = laid_out([".", *ABBREVIATIONS])
    return hashes(_values()[code_C], first_D)


def token_hashes(known: Sequence[str]) -> NDArray[np.uint64]:
    """The hashes of some tokens, to look for them among others."""
    return tokens([" ".join(known)]).hash_W


def _cuts(code_C: NDArray[np.uint32], kind_C: U8, chunk: I64) -> I64:
    """Places inside chunks of text without white space where a token starts."""
    at = np.flatnonzero((kind_C & (LETTER | DIGIT | SPACE)) == 0)
    if not len(at):
        return at
    kind, code = kind_C[at], code_C[at]
    before, after = kind_C[at - 1], kind_C[at + 1]
    before[at == 0] = SPACE
    opening, closing = _at_the_edges(at, kind, before, after)
    same = np.zeros(len(at), np.bool_)
    same[1:] = (at[1:] == at[:-1] + 1) & (code[1:] == code[:-1])
    initial = (code == _DOT) & ((before & UPPER) > 0) & ~((kind_C[at - 2] & UPPER) > 0)
    closing &= ~initial & ~((code == _DOT) & same)
    inside = ~opening & ~closing & ~_in_address(at, kind_C, code_C, opening, chunk)
    joint = _joints(at, code, kind, before, after, same, code_C, kind_C)
    split = inside & (joint | ((kind & ALONE) > 0))
    elided = inside & np.isin(code, _APOSTROPHES) & ((before & LETTER) > 0) & _ends_soon(at, kind_C)
    negated = elided & (code_C[at - 1] == _N) & (code_C[at + 1] == _T)
    starts = at[opening | closing | (split & ~same) | (elided & ~negated)]
    follows = np.append(same[1:], False)
    return np.concatenate([starts, at[opening | (split & ~follows)] + 1, at[negated] - 1])


def _at_the_edges(at: I64, kind: U8, before: U8, after: U8) -> tuple[Bools, Bools]:
    """Which punctuation stands at the start of its chunk, behind none but opening one, or at its end, before none but closing one."""
    edges = np.flatnonzero(np.diff(at) != 1) + 1
    first, last = np.append(0, edges), np.append(edges, len(at)) - 1
    run = np.repeat(np.arange(len(first)), last - first + 1)
    hard = np.cumsum((kind & OPENS) == 0)
    opening = ((before[first] & SPACE) > 0)[run] & (hard == (hard[first] - ((kind[first] & OPENS) == 0))[run])
    soft = np.cumsum(((kind & CLOSES) == 0)[::-1])[::-1]
    closing = ((after[last] & SPACE) > 0)[run] & (soft == (soft[last] - ((kind[last] & CLOSES) == 0))[run])
    return opening, closing


def _in_address(at: I64, kind_C: U8, code_C: NDArray[np.uint32], opening: Bools, chunk: I64) -> Bools:
    """Which punctuation is part of a URL or an e-mail address: they stay whole."""
    code = code_C[at]
    far = np.minimum(at + 2, len(code_C) - 1)
    chunk_of = np.searchsorted(chunk, at, side="right")
    first = np.ones(len(at), np.bool_)
    first[1:] = opening[:-1] | (chunk_of[1:] != chunk_of[:-1])
    scheme = first & (code == _COLON) & (code_C[at + 1] == _SLASH) & (code_C[far] == _SLASH)
    worded = LETTER | DIGIT
    mailbox = (code == _AT) & ((kind_C[at - 1] & worded) > 0) & ((kind_C[at + 1] & worded) > 0)
    marked = scheme | mailbox
    return np.isin(chunk_of, chunk_of[marked]) if marked.any() else marked


def _joints(
    at: I64, code: NDArray[np.uint32], kind: U8, before: U8, after: U8, same: Bools, code_C: NDArray[np.uint32], kind_C: U8
) -> Bools:
    """Which punctuation cuts a word in two: marks between letters, runs of hyphens, of dots, and a dot before a capital."""
    behind, ahead = (before & LETTER) > 0, (after & LETTER) > 0
    joint = ((kind & JOINS) > 0) & behind & ahead
    numeral = (before & DIGIT) > 0
    joint |= np.isin(code, tuple(map(ord, ":<=>/-"))) & numeral & ahead
    joint |= np.isin(code, tuple(map(ord, "+-*^"))) & numeral & ((after & DIGIT) > 0)
    joint |= (code == _DOT) & behind & ((before & UPPER) == 0) & ((after & UPPER) > 0)
    follows = np.append(same[1:], False)
    hyphen, dot = np.isin(code, _HYPHENS), code == _DOT
    # Runs of two or three: the first has a letter behind it and the last a letter ahead, or the run is of dots.
    first, last = follows & ~same, same & ~follows
    start = np.maximum.accumulate(np.where(first | (~same & ~follows), np.arange(len(at)), 0))
    led = behind[start]
    ends = np.minimum.accumulate(np.where(last | (~same & ~follows), np.arange(len(at)), len(at) - 1)[::-1])[::-1]
    closed = ahead[ends]
    joint |= (same | follows) & (dot | (hyphen & led & closed))
    return joint


def _ends_soon(at: I64, kind_C: U8) -> Bools:
    """Whether one or two letters follow, and then none: 's, 't, 're."""
    last = len(kind_C) - 1
    following = [(kind_C[np.minimum(at + i, last)] & (LETTER | DIGIT)) > 0 for i in (1, 2, 3)]
    return following[0] & (~following[1] | ~following[2])


@lru_cache(maxsize=1)
def _kinds() -> U8:
    """What each code point is."""
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    by_category = {"L": LETTER, "M": LETTER, "N": DIGIT, "P": OPENS | CLOSES, "S": OPENS | CLOSES, "Z": SPACE}
    kinds = np.fromiter((_kind(char, unicodedata.category(char), by_category) for char in every), np.uint8, len(every))
    for char in string.punctuation:
        kinds[ord(char)] = (0 if char in _NOT_OPENING else OPENS) | (0 if char in _NOT_CLOSING else CLOSES)
    for char in _JOINING:
        kinds[ord(char)] |= JOINS
    return kinds


def _kind(char: str, category: str, by_category: dict[str, int]) -> int:
    if char.isspace():
        return SPACE
    if category == "Lu":
        return LETTER | UPPER
    return OPENS | CLOSES | ALONE if category == "So" else by_category.get(category[0], OPENS | CLOSES)


@lru_cache(maxsize=1)
def _values() -> NDArray[np.uint64]:
    """The scrambled value of each code point; 0 for white space."""
    return np.where(_kinds() & SPACE, np.uint64(0), scrambled())
