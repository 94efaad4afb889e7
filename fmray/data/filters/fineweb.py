"""The rules that FineWeb adds to Gopher's and C4's (Penedo et al., 2024, section 3.6: thresholds chosen on histograms)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from fmray.data.filters import Apply, Filter, Outcome
from fmray.data.filters._tokens import tokens
from fmray.data.words import batches

ENDINGS = tuple(".!?\u2047\u2048\u2049\u203c\u203d\u3002\uff0e\uff01\uff1f\uff61\u061f\u06d4\u0964\u0965\u1362\u0589\u104b\u17d4")
"""Marks that end a sentence: Latin, CJK, Arabic, Indic, Ethiopic, Armenian, Burmese, Khmer."""


class Fineweb(Filter):
    """Removes pages of menus, lists and repeated lines.

    Rules: `unpunctuated_lines` (too small a share of lines ends a sentence), `short_lines` (too many have at most `short_line_chars`
    characters), `repeated_line_chars` (characters in lines that occurred before), `lists` (new lines for each word).
    """

    type: Literal["fineweb"] = "fineweb"
    min_punctuated_lines: float = Field(0.12, ge=0, le=1)
    max_short_lines: float = Field(0.67, ge=0, le=1)
    short_line_chars: int = Field(30, ge=0)
    max_repeated_line_chars: float = Field(0.01, ge=0, le=1)
    max_new_lines_per_word: float = Field(0.3, ge=0)

    def open(self) -> Apply:
        """Needs nothing."""

        def apply(texts: Sequence[str]) -> Outcome:
            fates: list[str | None] = []
            for batch in batches(texts):
                fates += self._fates(texts[batch.start : batch.stop])
            return Outcome(texts, fates)

        return apply

    def _fates(self, texts: Sequence[str]) -> list[str | None]:
        fates = [self._line_rule(text) for text in texts]
        left = [i for i, fate in enumerate(fates) if fate is None and "\n" in texts[i]]
        n_tokens = np.diff(tokens([texts[i] for i in left]).first_D1).tolist()
        for i, n in zip(left, n_tokens, strict=True):
            if texts[i].count("\n") > self.max_new_lines_per_word * max(1, n):
                fates[i] = "lists"
        return fates

    def _line_rule(self, text: str) -> str | None:
        lines = [line for line in text.split("\n") if line and not line.isspace()]
        if not lines:
            return "unpunctuated_lines"
        if sum(line.endswith(ENDINGS) for line in lines) / len(lines) < self.min_punctuated_lines:
            return "unpunctuated_lines"
        lengths = [len(line) for line in lines]
        if sum(length <= self.short_line_chars for length in lengths) / len(lines) > self.max_short_lines:
            return "short_lines"
        distinct = set(lines)
        if len(distinct) < len(lines):
            repeated = sum(lengths) - sum(map(len, distinct))
            if repeated / (len(text) - text.count("\n")) > self.max_repeated_line_chars:
                return "repeated_line_chars"
        return None
