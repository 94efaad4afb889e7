"""Counting mentions of groups and of target words, and how often they stand together. Shapes: K tokens, W windows, D documents,
G groups, T target words.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmray.data.corpus_bias._lists import WordLists

I64 = NDArray[np.int64]
Window = Literal["sentence", "document"]

_DOCUMENT_END, _SENTENCE_END = "\x00", "\x01"
_FIRST = 3
"""Item numbers: 0 any other word, 1 the end of a sentence, 2 of a document, then groups, then targets."""

# A stop behind a title such as Mr. ends no sentence, a blank line does. The end of a document is its own mark.
_SPACED_END = re.compile(
    r"[.!?\n](?:(?<!\bmr\.)(?<!\bmrs\.)(?<!\bms\.)(?<!\bdr\.)(?<!\bst\.)(?<!\n)[.!?\"'”’)\]]*+\s++|(?<=\n)\s*?\n\s*+)(?!\x00)"
)
_UNSPACED_END = re.compile(r"[。！？!?；\n]++[\"'”’」』）)]*+\s*+(?!\x00)")
_FOREIGN_SIGN = re.compile(r"[^\w\x00-\x7f]")
_PLAIN_SIGNS = bytes(byte if byte <= 1 or byte >= 128 or chr(byte).isalnum() else 32 for byte in range(256))


@dataclass
class BiasCounts:
    """What was counted, in whole numbers: parts of a corpus add up to the same in any order.

    Attributes:
        n_documents, n_windows: texts, and the windows (sentences or documents) in them.
        mentions_G: words of each group.
        targets_T: target words.
        together_TG: over all windows, the mentions of a target times those of a group in the same window.
        windows_G, windows_T, windows_TG: windows with a group, with a target, with both.
        leaning_G: documents in which a group has the most mentions for the length of its list; none where two have.
        leaning_mentions_GG: in the documents that lean towards the first group, the mentions of the second.
    """

    n_documents: int
    n_windows: int
    mentions_G: I64
    targets_T: I64
    together_TG: I64
    windows_G: I64
    windows_T: I64
    windows_TG: I64
    leaning_G: I64
    leaning_mentions_GG: I64

    @classmethod
    def empty(cls, n_groups: int, n_targets: int) -> "BiasCounts":
        """Nothing counted yet."""
        def zeros(*shape: int) -> I64:
            return np.zeros(shape, np.int64)

        g, t = n_groups, n_targets
        return cls(0, 0, zeros(g), zeros(t), zeros(t, g), zeros(g), zeros(t), zeros(t, g), zeros(g), zeros(g, g))

    def add(self, other: "BiasCounts") -> None:
        """Adds another part's figures."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Matcher(NamedTuple):
    """Lists made ready for reading texts.

    Attributes:
        items: a batch of texts as item numbers [K].
        sizes_G: words in the list of each group.
        n_targets: target words, spellings of one counted once.
    """

    items: Callable[[Sequence[str]], NDArray[np.int32]]
    sizes_G: I64
    n_targets: int

    @property
    def n_groups(self) -> int:
        """G."""
        return len(self.sizes_G)


def matcher(lists: WordLists) -> Matcher:
    """Makes lists ready."""
    numbers = {_SENTENCE_END: 1, _DOCUMENT_END: 2}
    for group, words in enumerate(lists.groups.values()):
        numbers |= dict.fromkeys(words, _FIRST + group)
    n_groups = len(lists.groups)
    targets = list(itertools.chain.from_iterable(lists.targets.values()))
    for target, spellings in enumerate(targets):
        numbers |= dict.fromkeys(spellings.split("/"), _FIRST + n_groups + target)
    split: Callable[[str], Sequence[str | bytes]] = _words if lists.spaced else _finder({*numbers, *lists.ignored})
    ends = _SPACED_END if lists.spaced else _UNSPACED_END
    known: dict[str | bytes, int] = {word.encode() if lists.spaced else word: number for word, number in numbers.items()}

    def items(texts: Sequence[str]) -> NDArray[np.int32]:
        joined = _DOCUMENT_END.join([*texts, ""]).lower()
        tokens = split(ends.sub(_SENTENCE_END, joined))
        return np.fromiter(map(known.get, tokens, itertools.repeat(0)), np.int32, len(tokens))

    sizes = np.array([len(words) for words in lists.groups.values()], np.int64)
    return Matcher(items, sizes, len(targets))


def _words(text: str) -> list[bytes]:
    """Words and marks in UTF-8: splitting bytes at spaces is four times as fast as finding words by an expression."""
    if not text.isascii():
        text = _FOREIGN_SIGN.sub(" ", text)
    apart = text.replace(_SENTENCE_END, f" {_SENTENCE_END} ").replace(_DOCUMENT_END, f" {_DOCUMENT_END} ")
    return apart.encode().translate(_PLAIN_SIGNS).split()


def _finder(words: Iterable[str]) -> Callable[[str], list[str]]:
    """Finds words anywhere in a text, the longest first."""
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=lambda w: (-len(w), w)))).findall


def count(match: Matcher, texts: Sequence[str], window: Window) -> BiasCounts:
    """Counts one batch of normalised texts (which hold no control characters), in one pass over its words."""
    items_K = match.items(texts)
    n_groups, n_targets = match.n_groups, match.n_targets
    is_end_K = items_K == 2 if window == "document" else (items_K == 1) | (items_K == 2)
    n_windows = int(is_end_K.sum())
    is_hit_K = items_K >= _FIRST
    window_H = (np.cumsum(is_end_K) - is_end_K)[is_hit_K]
    item_H = items_K[is_hit_K].astype(np.int64) - _FIRST
    is_group_H = item_H < n_groups
    groups_WG = _table(window_H[is_group_H], item_H[is_group_H], n_windows, n_groups)
    target_window, target = window_H[~is_group_H], item_H[~is_group_H] - n_groups
    together_TG = np.zeros((n_targets, n_groups), np.int64)
    np.add.at(together_TG, target, groups_WG[target_window])
    # A target that a window holds twice is one window with it.
    once = np.unique(target_window * n_targets + target)
    once_window, once_target = once // n_targets, once % n_targets
    windows_TG = np.zeros_like(together_TG)
    np.add.at(windows_TG, once_target, (groups_WG[once_window] > 0).astype(np.int64))
    mentions_DG = _mentions(match, items_K, len(texts))
    leaning_D = leaning(match, mentions_DG)
    leaning_mentions_GG = np.zeros((n_groups, n_groups), np.int64)
    np.add.at(leaning_mentions_GG, leaning_D[leaning_D >= 0], mentions_DG[leaning_D >= 0])
    return BiasCounts(
        n_documents=len(texts),
        n_windows=n_windows,
        mentions_G=groups_WG.sum(axis=0),
        targets_T=np.bincount(target, minlength=n_targets).astype(np.int64),
        together_TG=together_TG,
        windows_G=(groups_WG > 0).sum(axis=0).astype(np.int64),
        windows_T=np.bincount(once_target, minlength=n_targets).astype(np.int64),
        windows_TG=windows_TG,
        leaning_G=np.bincount(leaning_D[leaning_D >= 0], minlength=n_groups).astype(np.int64),
        leaning_mentions_GG=leaning_mentions_GG,
    )


def mentions(match: Matcher, texts: Sequence[str]) -> I64:
    """Words of each group in each text [D, G]."""
    return _mentions(match, match.items(texts), len(texts))


def leaning(match: Matcher, mentions_DG: I64) -> I64:
    """The group that each document mentions most for the length of its list [D]; -1 where none or two do."""
    # Compared as whole numbers: mentions / size, times the product of all sizes.
    weight_G = np.lcm.reduce(match.sizes_G) // match.sizes_G
    weighed_DG = mentions_DG * weight_G
    best_D = weighed_DG.max(axis=1, initial=0)
    alone_D = (weighed_DG == best_D[:, None]).sum(axis=1) == 1
    return np.where(alone_D & (best_D > 0), weighed_DG.argmax(axis=1), -1)


def _mentions(match: Matcher, items_K: NDArray[np.int32], n_documents: int) -> I64:
    is_group_K = (items_K >= _FIRST) & (items_K < _FIRST + match.n_groups)
    document_K = np.cumsum(items_K == 2)
    return _table(document_K[is_group_K], items_K[is_group_K].astype(np.int64) - _FIRST, n_documents, match.n_groups)


def _table(rows: I64, columns: I64, n_rows: int, n_columns: int) -> I64:
    return np.bincount(rows * n_columns + columns, minlength=n_rows * n_columns).reshape(n_rows, n_columns).astype(np.int64)
