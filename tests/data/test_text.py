"""The normal form of a text, its hash, and how much of a text a corpus holds."""

import hashlib
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmray.data.text import document_hash, normalise, overlap, paragraphs

anything = st.text(st.characters(codec=None), max_size=60)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("\ufeff  text \n", "text"),
        ("be\x00ll\x07 \x7f\x9ftab\tstays", "bell tab\tstays"),
        ("e\u0301te\u0301", "été"),
        ("lone \ud800 surrogate", "lone  surrogate"),
        ("e\x00\u0301", "é"),
        ("\x00\r\n", ""),
        ("page\x0cpage\x0bline", "page\npage\nline"),
        ("be\x00ll é\x07", "bell é"),
    ],
)
def test_normal_form(raw: str, clean: str) -> None:
    assert normalise(raw) == clean


@given(anything)
def test_normalising_twice_changes_nothing_and_leaves_what_utf8_can_hold(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once.encode().decode() == once
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in once)


def test_the_hash_is_the_head_of_sha256_of_the_normal_form() -> None:
    assert document_hash("a text") == int(hashlib.sha256(b"a text").hexdigest()[:16], 16)
    assert document_hash("\ufeffa text\r\n") == document_hash("a text")


def test_overlap_counts_the_words_of_known_paragraphs() -> None:
    known = np.sort(np.array([document_hash(t) for t in ("one two three", "whole\n\ntext")], np.uint64))
    assert overlap("one two three", known) == 1
    assert overlap("whole\n\ntext", known) == 1
    assert overlap("one two three\n\nfour", known) == 0.75
    assert overlap("four five", known) == 0
    assert overlap(" ", known) == 0
    assert overlap("one two three", known[:0]) == 0


def test_paragraphs_stand_between_blank_lines() -> None:
    assert paragraphs("a\nb\n \t\nc\n\n\n\nd\n") == ["a\nb", "c", "d"]
