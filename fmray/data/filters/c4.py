"""The rules of the Colossal Clean Crawled Corpus (Raffel et al., 2020, section 2.2, and the authors' published code)."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from fmray.data.filters import Apply, Filter, Outcome
from fmray.data.filters._tokens import ABBREVIATIONS

ENDINGS = (".", "!", "?", '"', "'")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_ABBREVIATED = re.compile(rf"\b(?:[A-Z]|[A-Za-z](?:\.[A-Za-z])+|{'|'.join(map(re.escape, ABBREVIATIONS))})$")
_END = re.compile(r"([!?\u3002\uff01\uff1f]|(?<![.\s])\.)[^\w\s]*(?:\s+|(?<=[a-z]\.)(?=[A-Z]))(?=\S)")
_WORD_BEFORE = 12


class C4(Filter):
    """Keeps the lines of a document that are sentences, and documents of which enough is left. For text in English.

    A line stays when it ends in a terminal mark (not an ellipsis), holds `min_words_per_line` words and none longer than
    `max_word_chars`, and mentions neither JavaScript nor cookie and privacy policies; citation marks such as [12] are cut out.
    Rules: `lorem_ipsum`, `curly_bracket`, `few_sentences` (fewer than `min_sentences` in the lines left).
    Notes: `lines_cut`, in documents that stay.
    """

    type: Literal["c4"] = "c4"
    min_sentences: int = Field(5, ge=0)
    min_words_per_line: int = Field(3, ge=0)
    max_word_chars: int = Field(1000, ge=1)

    def open(self) -> Apply:
        """Needs nothing."""

        def apply(texts: Sequence[str]) -> Outcome:
            results = [self._clean(text) for text in texts]
            notes = Counter[str]()
            if n := sum(cut for _, rule, cut in results if rule is None):
                notes["lines_cut"] = n
            return Outcome([text for text, _, _ in results], [rule for _, rule, _ in results], notes)

        return apply

    def _clean(self, text: str) -> tuple[str, str | None, int]:
        """The lines that stay, the rule that removes the document, and how many lines were cut."""
        lower = text.lower()
        lorem, scripted = "lorem ipsum" in lower, "javascript" in lower
        policed = "cookie" in lower or "terms of use" in lower or "privacy policy" in lower
        bracketed, cited = "{" in text, "[" in text
        lines, kept, n_sentences = text.splitlines(), list[str](), 0
        for line in lines:
            line = self._sentence_line(line, cited)
            if not line:
                continue
            if lorem and "lorem ipsum" in line.lower():
                return text, "lorem_ipsum", 0
            if scripted and "javascript" in line.lower():
                continue
            if bracketed and "{" in line:
                return text, "curly_bracket", 0
            if policed and any(phrase in line.lower() for phrase in POLICY):
                continue
            if n_sentences < self.min_sentences:
                n_sentences += count_sentences(line)
            kept.append(line)
        if n_sentences < self.min_sentences:
            return text, "few_sentences", 0
        return "\n".join(kept).strip(), None, len(lines) - len(kept)

    def _sentence_line(self, line: str, cited: bool) -> str:
        """The line without citations, or nothing where its ending or its words cut it."""
        line = line.strip()
        words = line.split(None, self.min_words_per_line)
        if len(line) > self.max_word_chars and any(len(word) > self.max_word_chars for word in line.split()):
            return ""
        if cited and "[" in line:
            line = _CITATION.sub("", line)
        if len(words) < self.min_words_per_line or not line.endswith(ENDINGS) or line.endswith("..."):
            return ""
        return line


def count_sentences(line: str) -> int:
    """The sentences of one line: marks that end one and are followed by text, abbreviations and initials left out, and the last."""
    return 1 + sum(
        not (end.group(1) == "." and _ABBREVIATED.search(line, max(0, end.start() - _WORD_BEFORE), end.start()))
        for end in _END.finditer(line)
    )
