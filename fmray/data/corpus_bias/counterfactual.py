"""Counterfactual texts: the words of one group in the place of those of the other (Lu et al. 2020, "Gender Bias in Neural NLP").

English pronouns do not map one to one. The rule for `her`: before a word that can be owned it is `his`, before any other word
(articles, prepositions, conjunctions, auxiliaries, adverbs; listed in `_english.NOT_OWNED`), a stop or the end it is `him`. The
rule for `his`: before a word that can be owned it is `her`, else `hers`. So `her` before a bare verb ("let her go") comes out
wrong as `his`, as does a predicate behind an object ("made her happy").
"""

import re
from collections.abc import Callable
from functools import partial

from fmray.data.corpus_bias._english import LY_THINGS, NOT_OWNED, TITLES
from fmray.data.corpus_bias._lists import WordLists

Swap = Callable[[str], str]

_WORD = re.compile(r"[^\W\d_]+")
_NEXT = re.compile(r"[ \t]*\n?[ \t]*([^\W\d_]+)")
_NEXT_NAME = re.compile(r" [A-Z]")
_PRONOUNS = {"he": "she", "she": "he", "him": "her", "hers": "his", "himself": "herself", "herself": "himself"}
_BOTH = {"ms": "mr"}


def swapper(lists: WordLists, *, names: bool) -> Swap:
    """A function from a text to the text with swapped words; it gives the same text back where there is nothing to swap."""
    pairs = [*lists.pairs, *(lists.names if names else ())]
    table = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
    if not lists.spaced:
        return _anywhere(table, lists)
    if lists.grammar == "english":
        table = _BOTH | _PRONOUNS | table
    cased = {shape(a): shape(b) for a, b in table.items() for shape in (str.upper, str.capitalize, str.lower)}
    replace = partial(_english if lists.grammar == "english" else _plain, cased)
    return partial(_WORD.sub, replace)


def _anywhere(table: dict[str, str], lists: WordLists) -> Swap:
    # Words that are not swapped are found as well, or a shorter one in them would be.
    known = {*table, *lists.ignored, *(word for words in lists.groups.values() for word in words)}
    expression = re.compile("|".join(re.escape(word) for word in sorted(known, key=lambda w: (-len(w), w))))
    return partial(expression.sub, lambda found: table.get(found[0], found[0]))


def _plain(cased: dict[str, str], found: re.Match[str]) -> str:
    return cased.get(found[0], found[0])


def _english(cased: dict[str, str], found: re.Match[str]) -> str:
    word = found[0]
    if word in TITLES and _NEXT_NAME.match(found.string, found.end()):
        return TITLES[word]
    if swapped := cased.get(word):
        return swapped
    lowered = word.lower() if len(word) == 3 else ""
    if lowered not in ("her", "his"):
        return word
    owned = owns(found.string, found.end())
    swapped = {("her", True): "his", ("her", False): "him", ("his", True): "her", ("his", False): "hers"}[lowered, owned]
    return swapped if word.islower() else swapped.upper() if word.isupper() else swapped.capitalize()


def owns(text: str, end: int) -> bool:
    """Whether a possessive that ends there stands before something that can be owned."""
    following = _NEXT.match(text, end)
    if following is None:
        return False
    word = following[1].lower()
    return not (word in NOT_OWNED or (word.endswith("ly") and word not in LY_THINGS))
