"""ROUGE (Lin 2004) by the package rouge-score, for English and, by character, for Chinese."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from fmray.tasks.question_answering import units

NAMES = {"rouge_l": "rougeL", "rouge_1": "rouge1", "rouge_2": "rouge2"}
"""Our names of the figures, and the package's."""


class _Characters:
    """The package's own tokenizer drops whatever is not a-z and 0-9, and so all of Chinese."""

    def tokenize(self, text: str) -> list[str]:
        """Each Chinese character, and words of other scripts."""
        return units(text, by_character=True)


@lru_cache(maxsize=2)
def _scorer(by_character: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    # The package stems words by Porter's rules only where it also cuts the text.
    return RougeScorer(list(NAMES.values()), use_stemmer=not by_character, tokenizer=_Characters() if by_character else None)


@lru_cache(maxsize=100_000)
def rouge(said: str, right: tuple[str, ...], by_character: bool) -> tuple[float, ...]:
    """The F-measures by the names in `NAMES`, each the best over the references, words stemmed by Porter's rules.

    A bootstrap asks for the same text many times, so scores are remembered.
    """
    found: Sequence[Any] = [_scorer(by_character).score(one, said) for one in right]
    return tuple(max(float(scores[name].fmeasure) for scores in found) for name in NAMES.values())
