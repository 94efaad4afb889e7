"""Words as arrays: the same as a loop over a regular expression finds, with hashes that neither batch nor place changes."""

import itertools
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fmray.data.words import BATCH_CHARS, batches, n_grams, rolled, words
from tests.data.corpora import topics


def test_words_are_those_of_a_regular_expression() -> None:
    texts = ["The cat's  hat", "", "x_1 = 2.5!", "Ünïcode ДА"]
    found = words(texts)
    assert np.diff(found.first_D1).tolist() == [len(re.findall(r"\w+", text)) for text in texts]
    assert found.document_W.tolist() == [0, 0, 0, 0, 2, 2, 2, 3, 3]


def test_each_character_is_a_word_where_no_spaces_are_set() -> None:
    assert words(["道可道，abc 非常道。"]).first_D1.tolist() == [0, 7]


@given(st.lists(st.text(alphabet="ab c猫.\n", max_size=12), max_size=6))
def test_a_text_has_the_same_words_in_any_batch(texts: list[str]) -> None:
    together = words(texts)
    alone = [words([text]).hash_W.tolist() for text in texts]
    assert together.hash_W.tolist() == list(itertools.chain.from_iterable(alone))


def test_no_two_words_of_a_real_vocabulary_share_a_hash() -> None:
    vocabulary = sorted({word for text in topics() for word in re.findall(r"\w+", text.lower())})
    assert len(vocabulary) > 3000
    assert len(set(words(vocabulary).hash_W.tolist())) == len(vocabulary)


def test_n_grams_are_told_apart_by_order_and_stay_within_their_text() -> None:
    hashes, documents = n_grams(words(["a b c a b", "b a", "c"]), 2)
    assert documents.tolist() == [0, 0, 0, 0, 1]
    assert hashes[0] == hashes[3]
    assert len(set(hashes.tolist())) == 4
    assert rolled(words(["a b c"]).hash_W, 3).shape == (1,)
    assert n_grams(words(["a"]), 5)[0].shape == (0,)


def test_batches_hold_every_text_once() -> None:
    texts = ["x" * (BATCH_CHARS // 3)] * 7 + [""]
    assert list(itertools.chain.from_iterable(batches(texts))) == list(range(8))
    assert batches([]) == []
