"""Corpus bias: how often a corpus mentions groups of people, what it says beside them, and two corrections that prepare can apply."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fmray.core.config import Config
from fmray.data.corpus_bias._lists import LISTS, Named, WordLists, Words, own_lists
from fmray.data.corpus_bias.counterfactual import Swap, swapper
from fmray.data.corpus_bias.counting import BiasCounts, Matcher, Window, count, leaning, matcher, mentions
from fmray.data.corpus_bias.figures import repeats_by_group, report
from fmray.data.order import key, unit
from fmray.data.text import document_hash

REPEATS = 3
"""The purpose of a random draw, beside those of prepare, in its key."""


class CorpusBias(Config):
    """What to count, and what to do about it. Texts are taken in their normal form.

    Attributes:
        lists: word lists that are shipped: gender, age or religion, English or Chinese.
        groups: word lists of one's own by group, in the place of those of `lists`.
        targets: words of one's own by kind, whose leaning towards a group is measured; by default those of `lists`.
        window: how near a target word must stand to a group's to count as beside it.
        min_count: windows that a word needs to be named among the most skewed.
        n_words: how many of them are named.
        correct: `rebalance` repeats documents that lean towards groups with fewer mentions; `augment` adds the counterfactual of
            each document with something to swap. None measures only.
        max_repeats: how often `rebalance` may repeat a document.
        swap_names: whether `augment` swaps given names as well (English gender).
        seed: draws which documents are repeated once more, where the mean is no whole number.
    """

    lists: Named = "en_gender"
    groups: dict[str, Words] | None = None
    targets: dict[str, Words] | None = None
    window: Window = "sentence"
    min_count: int = Field(10, ge=1)
    n_words: int = Field(20, ge=0, le=1000)
    correct: Literal["rebalance", "augment"] | None = None
    max_repeats: int = Field(4, ge=2, le=100)
    swap_names: bool = False
    seed: int = 0

    @model_validator(mode="after")
    def _fits(self) -> "CorpusBias":
        if self.groups is not None and len(self.groups) < 2:
            raise ValueError("groups must be at least two")
        if self.groups is not None and not all(self.groups.values()):
            raise ValueError("each group needs a word")
        lists = self.word_lists
        if self.correct == "augment" and not lists.pairs:
            raise ValueError("augment needs pairs to swap: lists en_gender or zh_gender, or two groups of equally many words in the same order")
        if self.swap_names and not lists.names:
            raise ValueError("swap_names is there for lists: en_gender alone")
        return self

    @property
    def word_lists(self) -> WordLists:
        """The lists in use."""
        shipped = LISTS[self.lists]
        if self.groups is None and self.targets is None:
            return shipped
        own = own_lists(self.groups or shipped.groups, self.targets if self.targets is not None else shipped.targets)
        if self.groups is not None:
            return own
        return WordLists(
            shipped.groups, own.targets, pairs=shipped.pairs, names=shipped.names, ignored=shipped.ignored, spaced=shipped.spaced,
            grammar=shipped.grammar,
        )  # fmt: skip

    def empty(self) -> BiasCounts:
        """Nothing counted yet: what parts are added to."""
        match = self._matcher
        return BiasCounts.empty(match.n_groups, match.n_targets)

    def count(self, texts: Sequence[str]) -> BiasCounts:
        """Counts one batch; `BiasCounts.add` puts batches together, in any order to the same figures."""
        return count(self._matcher, texts, self.window)

    def report(self, counts: BiasCounts) -> dict[str, Any]:
        """The figures as plain JSON values.

        `groups` (mentions, share of mentions for each word of the group's list), `representation` and `association` (distances, 0 is
        none), `most_skewed` words. With `correct: rebalance` also `repeats`: how often documents stand that lean towards each group.
        """
        match = self._matcher
        found = report(self.word_lists, counts, match.sizes_G, self.min_count, self.n_words)
        found |= {"lists": "own" if self.groups else self.lists, "window": self.window}
        if self.correct == "rebalance":
            repeats_G = repeats_by_group(counts, match.sizes_G, self.max_repeats)
            found["repeats"] = dict(zip(self.word_lists.groups, repeats_G.tolist(), strict=True))
        return found

    def repeats(self, texts: Sequence[str], counts: BiasCounts) -> NDArray[np.int64]:
        """How often each text should stand in the corpus to make the groups' mentions more even: 1 to `max_repeats`.

        Depends on the text, this config and the counts of the whole corpus alone: the part behind the point is drawn by the text's hash.
        """
        match = self._matcher
        repeats_G = repeats_by_group(counts, match.sizes_G, self.max_repeats)
        leaning_D = leaning(match, mentions(match, texts))
        wanted_D = np.where(leaning_D >= 0, repeats_G[leaning_D], 1.0)
        hashes_D = np.array([document_hash(text) for text in texts], np.uint64)
        drawn_D = unit(hashes_D, key(self.seed, REPEATS)) < wanted_D - np.floor(wanted_D)
        return np.floor(wanted_D).astype(np.int64) + drawn_D

    def counterfactual(self, texts: Sequence[str]) -> list[str | None]:
        """Each text with the words of its groups swapped, in its own case; None where there is nothing to swap.

        See `fmray.data.corpus_bias.counterfactual` for what English grammar makes of it.
        """
        swap = self._swap
        return [None if (swapped := swap(text)) == text else swapped for text in texts]

    @property
    def _matcher(self) -> Matcher:
        return _matcher_of(self.model_dump_json(include={"lists", "groups", "targets"}))

    @property
    def _swap(self) -> Swap:
        return _swap_of(self.model_dump_json(include={"lists", "groups", "targets", "swap_names"}))


# Lists are compiled once a process, not once a batch; a config with dictionaries cannot be a key itself.
@cache
def _matcher_of(config: str) -> Matcher:
    return matcher(CorpusBias.model_validate_json(config).word_lists)


@cache
def _swap_of(config: str) -> Swap:
    bias = CorpusBias.model_validate_json(config)
    return swapper(bias.word_lists, names=bias.swap_names)
