"""Word lists: the groups whose mentions are counted, the words that may lean towards one of them, and who is swapped for whom."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fmray.data.corpus_bias import _chinese, _english

Words = tuple[str, ...]
Named = Literal["en_gender", "en_age", "en_religion", "zh_gender", "zh_age"]


@dataclass(frozen=True)
class WordLists:
    """What is looked for in a text, all in lower case.

    Attributes:
        groups: words by group.
        targets: words by kind, such as occupations; spellings of one word stand together, apart by a slash.
        pairs: words that are swapped for one another, by place, where there are two groups.
        names: given names that may be swapped as well.
        ignored: longer words in which a listed one means something else.
        spaced: whether texts have words between spaces; else the lists are found anywhere, the longest word first.
        grammar: `english` knows what her, his, him and hers become in a swap.
    """

    groups: Mapping[str, Words]
    targets: Mapping[str, Words]
    pairs: tuple[tuple[str, str], ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    ignored: Words = ()
    spaced: bool = True
    grammar: Literal["english"] | None = None
    target_names: Words = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_names", tuple(w.split("/")[0] for words in self.targets.values() for w in words))


_EN_TARGETS = {"occupations": _english.OCCUPATIONS, "adjectives": _english.ADJECTIVES}
_ZH_TARGETS = {"occupations": _chinese.OCCUPATIONS, "adjectives": _chinese.ADJECTIVES}

LISTS: dict[Named, WordLists] = {
    "en_gender": WordLists(
        {"male": _english.MALE, "female": _english.FEMALE},
        _EN_TARGETS,
        pairs=_english.GENDER_PAIRS,
        names=_english.NAME_PAIRS,
        grammar="english",
    ),
    "en_age": WordLists({"young": _english.YOUNG, "old": _english.OLD}, _EN_TARGETS),
    "en_religion": WordLists(_english.RELIGIONS, _EN_TARGETS),
    "zh_gender": WordLists(
        {"male": _chinese.MALE, "female": _chinese.FEMALE},
        _ZH_TARGETS,
        pairs=_chinese.GENDER_PAIRS,
        ignored=_chinese.NOT_WORDS,
        spaced=False,
    ),
    "zh_age": WordLists({"young": _chinese.YOUNG, "old": _chinese.OLD}, _ZH_TARGETS, spaced=False),
}
"""The lists that are shipped, by name."""


def own_lists(groups: Mapping[str, Words], targets: Mapping[str, Words]) -> WordLists:
    """Lists given in the experiment file; words with Chinese, Japanese or Thai letters are found anywhere in a text.

    Raises:
        ValueError: a word is empty, twice among the groups, or made of several words.
    """
    lowered = {name: tuple(word.lower() for word in words) for name, words in groups.items()}
    kinds = {name: tuple(word.lower() for word in words) for name, words in targets.items()}
    grouped = [word for words in lowered.values() for word in words]
    aimed = [spelling for words in kinds.values() for word in words for spelling in word.split("/")]
    spaced = not any(_unspaced(word) for word in grouped)
    for word in [*grouped, *aimed]:
        if not word or (spaced and not word.isalpha()):
            raise ValueError(f"'{word}' is not one word; only single words are counted")
    twice = next((word for i, word in enumerate(grouped) if word in grouped[:i] or word in aimed), None)
    if twice is not None:
        raise ValueError(f"'{twice}' is listed twice")
    sizes = {len(words) for words in lowered.values()}
    two = list(lowered.values())
    pairs = tuple(zip(*two, strict=True)) if len(two) == 2 and len(sizes) == 1 else ()
    return WordLists(lowered, kinds, pairs=pairs, spaced=spaced)


def _unspaced(word: str) -> bool:
    return any("\u0e00" <= c <= "\u0e7f" or "\u3040" <= c <= "\u30ff" or "\u3400" <= c <= "\u9fff" for c in word)
