"""How much of a document repeats itself: lines, paragraphs and n-grams (Rae et al., 2021, table A1).

Legend: W tokens, G places where an n-gram starts.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fmray.data.filters._tokens import Tokens
from fmray.data.order import mix
from fmray.data.words import rolled

I64 = NDArray[np.int64]

_PARAGRAPH, _LINE = re.compile(r"\n{2,}"), re.compile(r"\n+")


def repetition_rule(
    texts: Sequence[str],
    found: Tokens,
    numbers: I64,
    lines: Mapping[str, float],
    top_n_grams: Mapping[int, float],
    repeated_n_grams: Mapping[int, float],
) -> list[str | None]:
    """The first rule that each text breaks, or None.

    Args:
        found: tokens of a batch; `numbers` says which of its documents the texts are.
        lines: largest shares of repeated lines and paragraphs, by number and by characters.
        top_n_grams: largest share of the characters in the commonest n-gram, by n.
        repeated_n_grams: largest share of the characters in n-grams that occurred before, by n.
    """
    fates = [_line_rule(text, lines) for text in texts]
    repeats = _repeats(found, sorted([*top_n_grams, *repeated_n_grams]))
    for place, (text, number) in enumerate(zip(texts, numbers.tolist(), strict=True)):
        if fates[place] is None and text:
            first, last = found.first_D1[number : number + 2].tolist()
            own = {n: starts[slice(*np.searchsorted(starts, (first, last)))] for n, starts in repeats.items()}
            fates[place] = _n_gram_rule(len(text), found, range(first, last), own, top_n_grams, repeated_n_grams)
    return fates


def _line_rule(text: str, most: Mapping[str, float]) -> str | None:
    n_chars = max(1, len(text))
    n, chars, total = _repeated(_PARAGRAPH.split(text.strip()))
    if n / total > most["paragraph"]:
        return "repeated_paragraphs"
    if chars / n_chars > most["paragraph_chars"]:
        return "repeated_paragraph_chars"
    n, chars, total = _repeated(_LINE.split(text))
    if n / total > most["line"]:
        return "repeated_lines"
    return "repeated_line_chars" if chars / n_chars > most["line_chars"] else None


def _repeated(parts: list[str]) -> tuple[int, int, int]:
    """How many of the parts occurred before, their characters, and how many parts there are."""
    distinct = set(parts)
    if len(distinct) == len(parts):
        return 0, 0, len(parts)
    return len(parts) - len(distinct), sum(map(len, parts)) - sum(map(len, distinct)), len(parts)


def _repeats(found: Tokens, sizes: Sequence[int]) -> dict[int, I64]:
    """By n, the places of n-grams that occur more than once in their document, rising.

    A repeated n-gram starts with a repeated (n-1)-gram, so each size looks only where the one before found something.
    """
    owned_W = found.hash_W ^ mix(found.document_W.astype(np.uint64), 1)
    at = np.arange(len(found.hash_W))
    repeats = {}
    for n in sizes:
        at = at[at + n <= len(owned_W)]
        at = at[found.document_W[at] == found.document_W[at + n - 1]]
        hash_G = rolled(owned_W, n)[at] if len(at) * 4 > len(owned_W) else _n_gram(owned_W, at, n)
        order = np.argsort(hash_G)
        equal = hash_G[order[1:]] == hash_G[order[:-1]]
        repeated = np.zeros(len(at), np.bool_)
        repeated[order[1:][equal]] = repeated[order[:-1][equal]] = True
        at = at[repeated]
        repeats[n] = at
    return repeats


def _n_gram(hash_W: NDArray[np.uint64], at: I64, n: int) -> NDArray[np.uint64]:
    """The hashes of the n-grams at some places: those of `rolled`, computed there alone."""
    if not len(at):
        return np.empty(0, np.uint64)
    window = hash_W[at[:, None] + np.arange(n)].ravel()
    return rolled(window, n)[::n]


def _n_gram_rule(
    n_chars: int,
    found: Tokens,
    tokens: range,
    repeats: Mapping[int, I64],
    top_n_grams: Mapping[int, float],
    repeated_n_grams: Mapping[int, float],
) -> str | None:
    ends_W = np.append(0, np.cumsum(found.length_W[tokens.start : tokens.stop]))
    for n, most in top_n_grams.items():
        if len(tokens) >= n and _top_chars(found, tokens, repeats[n], ends_W, n) / n_chars > most:
            return f"top_{n}_gram"
    for n, most in repeated_n_grams.items():
        at = repeats[n] - tokens.start
        if not len(at):
            break
        # The characters under repeated n-grams bound those of disjoint ones from above: only few documents need the walk.
        if _covered(at, ends_W, n) / n_chars > most and _repeated_chars(found, tokens, at, ends_W, n) / n_chars > most:
            return f"repeated_{n}_grams"
    return None


def _top_chars(found: Tokens, tokens: range, repeated: I64, ends_W: I64, n: int) -> int:
    """The characters in all occurrences of the commonest n-gram, a space between its words; the first of equals counts."""
    if len(repeated):
        _, first, count = np.unique(_n_gram(found.hash_W, repeated, n), return_index=True, return_counts=True)
        commonest = count == count.max()
        at, occurrences = int(repeated[first[commonest].min()]) - tokens.start, int(count.max())
    else:
        at, occurrences = 0, 1
    return occurrences * int(ends_W[at + n] - ends_W[at] + n - 1)


def _covered(at: I64, ends_W: I64, n: int) -> int:
    """The characters under all occurrences of repeated n-grams."""
    until = np.minimum(at + n, np.append(at[1:], len(ends_W) - 1))
    return int((ends_W[until] - ends_W[at]).sum())


def _repeated_chars(found: Tokens, tokens: range, at: I64, ends_W: I64, n: int) -> int:
    """The characters of n-grams that occurred before, counted from left to right without overlap."""
    hashes = _n_gram(found.hash_W, at + tokens.start, n).tolist()
    seen: set[int] = set()
    chars, free = 0, 0
    for place, value in zip(at.tolist(), hashes, strict=True):
        if place < free:
            continue
        if value in seen:
            chars += int(ends_W[place + n] - ends_W[place])
            free = place + n
        else:
            seen.add(value)
    return chars
