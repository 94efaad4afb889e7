"""What a document's text is: its normal form, its hash, and how much of a text is in a set of hashes."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

# C0 and C1 controls but tab and newline, the byte order mark, and lone surrogates (JSON escapes can make them; UTF-8 cannot hold them).
_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ud800-\udfff]")
_UNWANTED_ASCII = bytes(c for c in range(128) if _UNWANTED.match(chr(c)))
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


def normalise(text: str) -> str:
    """The normal form of a text: lines end in one newline, no control characters, Unicode NFC, no white space around it.

    Carriage returns, form feeds and vertical tabs end lines, too. Applying it twice changes nothing.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\f" in text or "\v" in text:
        text = text.replace("\f", "\n").replace("\v", "\n")
    if text.isascii():
        # Bytes are searched at twice the speed of the expression.
        raw = text.encode()
        clean = raw.translate(None, _UNWANTED_ASCII)
        return (text if len(clean) == len(raw) else clean.decode()).strip()
    return unicodedata.normalize("NFC", _UNWANTED.sub("", text)).strip()


def document_hash(text: str) -> int:
    """The first 8 bytes of sha256 of the normalised text, as an unsigned number.

    Two different documents among n share one with a probability of about n^2 / 2^65: one in four thousand for a hundred million documents.
    """
    return int.from_bytes(hashlib.sha256(normalise(text).encode()).digest()[:8], "big")


def paragraphs(text: str) -> list[str]:
    """The parts of a text between blank lines, without the empty ones."""
    return [part for part in (p.strip() for p in _BLANK_LINE.split(text)) if part]


def overlap(text: str, hashes: NDArray[np.uint64]) -> float:
    """The share of a text's words that stand in a document of the corpus, whole or as a whole paragraph; 0 to 1.

    Args:
        hashes: sorted document hashes of the corpus (`document_hashes.npy` of a TokenDataset).
    """
    text = normalise(text)
    if _has(hashes, text):
        return 1.0
    parts = paragraphs(text)
    words = [len(part.split()) for part in parts]
    shared = sum(n for part, n in zip(parts, words, strict=True) if _has(hashes, part))
    return shared / max(1, sum(words))


def _has(hashes: NDArray[np.uint64], text: str) -> bool:
    wanted = np.uint64(document_hash(text))
    at = int(np.searchsorted(hashes, wanted))
    return at < len(hashes) and bool(hashes[at] == wanted)


def by_length(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """The texts in lists of at least so many characters, but for the last."""
    few: list[str] = []
    size = 0
    for text in texts:
        few.append(text)
        size += len(text)
        if size >= characters:
            yield few
            few, size = [], 0
    if few:
        yield few
