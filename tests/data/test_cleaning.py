"""Cleaning: order, counts, examples that do not depend on how the corpus was cut, and what a broken filter gets."""

import pickle
import random
from collections.abc import Sequence
from typing import Literal

import pytest

from fmray.core.errors import DataError
from fmray.data.cleaning import EXCERPT, SAMPLED, Cleaner, Cleaning
from fmray.data.filters import Apply, Filter, Outcome
from fmray.data.filters.length import Length
from fmray.data.filters.pii import Pii
from fmray.data.filters.unicode import Unicode
from tests.data.corpora import topics


class Emptying(Filter):
    """Leaves nothing of some texts."""

    type: Literal["test_emptying"] = "test_emptying"

    def open(self) -> Apply:
        return lambda texts: Outcome(["  " if "empty me" in text else text for text in texts], [None] * len(texts))


class Miscounting(Filter):
    """Gives a fate too few."""

    type: Literal["test_miscounting"] = "test_miscounting"

    def open(self) -> Apply:
        return lambda texts: Outcome(texts, [None] * (len(texts) - 1))


def test_each_filter_sees_what_those_before_left() -> None:
    cleaner = Cleaner([Unicode(form="NFKC"), Length(max_chars=3), Pii(kinds=("email",))])
    cleaned = cleaner.clean(["ﬁx", "long enough to go", "a²", "abcd"], ["a", "b", "c", "d"])
    assert cleaned.kept == [0, 2]
    assert cleaned.texts == ["fix", "a2"]
    assert cleaner.done.notes == {"unicode/changed": 2}
    assert cleaner.done.removed == {"length/many_chars": 2}
    assert {row["id"] for row in cleaner.done.rows()} == {"b", "d"}


def test_a_filter_that_leaves_nothing_removes_the_document() -> None:
    cleaner = Cleaner([Emptying()])
    assert cleaner.clean(["keep", "empty me"], ["a", "b"]).texts == ["keep"]
    assert cleaner.done.removed == {"test_emptying/empty": 1}


def test_a_filter_that_loses_count_is_named() -> None:
    with pytest.raises(DataError, match="filter test_miscounting"):
        Cleaner([Miscounting()]).clean(["a", "b"], ["a", "b"])


def cleaned_in(parts: Sequence[Sequence[tuple[str, str]]]) -> Cleaning:
    whole = Cleaning()
    for part in parts:
        cleaner = Cleaner([Length(min_chars=40, max_chars=400)])
        for at in range(0, len(part), 50):
            batch = part[at : at + 50]
            cleaner.clean([text for text, _ in batch], [id for _, id in batch])
        whole.add(pickle.loads(pickle.dumps(cleaner.done)))
    return whole


def test_counts_and_examples_do_not_depend_on_how_the_corpus_is_cut() -> None:
    documents = [(text, f"topic-{i}") for i, text in enumerate(topics())]
    shuffled = list(documents)
    random.Random(1).shuffle(shuffled)
    one = cleaned_in([documents])
    other = cleaned_in([shuffled[:700], [], shuffled[700:800], shuffled[800:]])
    assert one.removed == other.removed
    assert one.rows() == other.rows()
    assert {rule: len(examples) for rule, examples in one.examples.items()} == {"length/few_chars": SAMPLED, "length/many_chars": SAMPLED}
    assert all(len(row["text"]) <= EXCERPT for row in one.rows())


def test_every_document_is_kept_or_counted() -> None:
    texts = topics()
    cleaner = Cleaner([Length(min_chars=40), Length(max_words=60)])
    kept = cleaner.clean(texts, [str(i) for i in range(len(texts))]).kept
    assert len(kept) + sum(cleaner.done.removed.values()) == len(texts)
    assert kept == sorted(kept)
