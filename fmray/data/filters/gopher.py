"""The quality and repetition rules of MassiveText (Rae et al., 2021, Scaling Language Models, appendix A.1 and table A1)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmray.data.filters import Apply, Filter, Outcome
from fmray.data.filters._repetition import repetition_rule
from fmray.data.filters._tokens import DIGIT, LETTER, Tokens, token_hashes, tokens
from fmray.data.words import batches

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
ELLIPSES = ("...", "…")
BULLETS = ("•", "-")

REPEATED_LINES = {"line": 0.30, "paragraph": 0.30, "line_chars": 0.20, "paragraph_chars": 0.20}
TOP_N_GRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED_N_GRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""Table A1: the largest share of a document that is repeated lines or paragraphs, its commonest n-gram, or repeated n-grams."""


class Gopher(Filter):
    """Removes documents that read unlike English prose, or that repeat themselves. For text in English.

    Quality rules: `few_words` and `many_words` (words that hold more than symbols), `short_words` and `long_words` (mean length),
    `hashes` and `ellipses` (for each word), `bullets` and `ellipsis_lines` (shares of lines), `few_alphabetic` (share of words
    with a letter), `few_stop_words` (of eight common ones). Repetition rules, by characters unless named otherwise:
    `repeated_lines`, `repeated_line_chars`, `repeated_paragraphs`, `repeated_paragraph_chars`, `top_2_gram` to `top_4_gram`,
    `repeated_5_grams` to `repeated_10_grams`. The first that holds names the removal; thresholds are the paper's.
    """

    type: Literal["gopher"] = "gopher"
    quality: bool = True
    repetition: bool = True
    min_words: int = Field(50, ge=0)
    max_words: int = Field(100_000, ge=1)
    min_mean_word_length: float = Field(3.0, ge=0)
    max_mean_word_length: float = Field(10.0, gt=0)
    max_symbols_per_word: float = Field(0.1, ge=0)
    max_bullet_lines: float = Field(0.9, ge=0, le=1)
    max_ellipsis_lines: float = Field(0.3, ge=0, le=1)
    min_alphabetic_words: float = Field(0.8, ge=0, le=1)
    min_stop_words: int = Field(2, ge=0, le=len(STOP_WORDS))

    def open(self) -> Apply:
        """Needs nothing."""

        def apply(texts: Sequence[str]) -> Outcome:
            fates: list[str | None] = []
            for batch in batches(texts):
                fates += self._fates(texts[batch.start : batch.stop])
            return Outcome(texts, fates)

        return apply

    def _fates(self, texts: Sequence[str]) -> list[str | None]:
        found = tokens(texts)
        fates: list[str | None] = self._quality(texts, found) if self.quality else [None] * len(texts)
        if self.repetition:
            left = [i for i, fate in enumerate(fates) if fate is None]
            rules = repetition_rule([texts[i] for i in left], found, np.array(left, np.int64), REPEATED_LINES, TOP_N_GRAMS, REPEATED_N_GRAMS)
            for i, rule in zip(left, rules, strict=True):
                fates[i] = rule
        return fates

    def _quality(self, texts: Sequence[str], found: Tokens) -> list[str | None]:
        n = len(texts)
        worded = (found.kind_W & (LETTER | DIGIT)) > 0
        n_worded = np.bincount(found.document_W[worded], minlength=n)
        length = np.bincount(found.document_W[worded], weights=found.length_W[worded], minlength=n) / np.maximum(1, n_worded)
        n_tokens = np.maximum(1, np.diff(found.first_D1))
        alphabetic = np.bincount(found.document_W[(found.kind_W & LETTER) > 0], minlength=n) / n_tokens
        stops = _distinct_stop_words(found, n)
        rules = {
            "few_words": n_worded < self.min_words,
            "many_words": n_worded > self.max_words,
            "short_words": length < self.min_mean_word_length,
            "long_words": length > self.max_mean_word_length,
            "hashes": _counts(texts, ("#",)) / n_tokens > self.max_symbols_per_word,
            "ellipses": _counts(texts, ELLIPSES) / n_tokens > self.max_symbols_per_word,
            **self._lines(texts),
            "few_alphabetic": alphabetic < self.min_alphabetic_words,
            "few_stop_words": stops < self.min_stop_words,
        }
        names = [*rules, None]
        first = np.argmax([*rules.values(), np.ones(n, np.bool_)], axis=0)
        return [names[i] for i in first]

    def _lines(self, texts: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
        bullets, ellipses = np.zeros(len(texts)), np.zeros(len(texts))
        for i, text in enumerate(texts):
            lines = text.splitlines() or [""]
            bullets[i] = sum(line.lstrip().startswith(BULLETS) for line in lines) / len(lines) if "-" in text or "•" in text else 0
            ellipses[i] = (
                sum(line.rstrip().endswith(ELLIPSES) for line in lines) / len(lines) if "..." in text or "…" in text else 0
            )
        return {"bullets": bullets > self.max_bullet_lines, "ellipsis_lines": ellipses > self.max_ellipsis_lines}


def _counts(texts: Sequence[str], marks: Sequence[str]) -> NDArray[np.int64]:
    return np.array([sum(text.count(mark) for mark in marks) for text in texts], np.int64)


def _distinct_stop_words(found: Tokens, n_documents: int) -> NDArray[np.int64]:
    short = np.flatnonzero(found.length_W <= max(map(len, STOP_WORDS)))
    present = np.zeros(n_documents, np.int64)
    for stop in token_hashes(STOP_WORDS):
        holders = found.document_W[short[found.hash_W[short] == stop]]
        present[np.unique(holders)] += 1
    return present
