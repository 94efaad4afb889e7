"""Near-duplicates share a group, by exact comparison, so that a split of whole groups separates none."""

import random
from collections import Counter

import numpy as np
import pytest

from fmray.data.split import THRESHOLD, _shingles, jaccard, near_duplicate_groups
from tests.data.corpora import docstrings


@pytest.fixture(scope="module")
def prose() -> list[str]:
    return [d["text"] for d in docstrings()[:2000]]


def altered(text: str, draw: random.Random) -> str:
    """The text with one word replaced and its case and white space changed."""
    words = text.split()
    words[draw.randrange(len(words))] = "otherwise"
    return "  ".join(words).upper()


def test_planted_near_duplicates_share_a_group(prose: list[str]) -> None:
    draw = random.Random(0)
    originals = [text for text in prose if len(text.split()) >= 15][:600]
    copies = [altered(text, draw) for text in originals]
    alike = [jaccard(_shingles(a), _shingles(b)) >= THRESHOLD for a, b in zip(originals, copies, strict=True)]
    assert sum(alike) > 0.9 * len(originals)
    groups = near_duplicate_groups(originals + copies)
    assert all(groups[i] == groups[len(originals) + i] for i in np.flatnonzero(alike))


def test_no_two_groups_hold_texts_that_are_alike_by_exact_comparison(prose: list[str]) -> None:
    groups = near_duplicate_groups(prose)
    assert 0.7 * len(prose) < len(set(groups)) < len(prose)
    shingles = [_shingles(text) for text in prose]
    holders: dict[int, list[int]] = {}
    for i, own in enumerate(shingles):
        shared = Counter(j for shingle in own for j in holders.get(shingle, ()))
        near = [j for j, n in shared.items() if n / (len(own) + len(shingles[j]) - n) >= THRESHOLD]
        assert all(groups[j] == groups[i] for j in near)
        for shingle in own:
            holders.setdefault(shingle, []).append(i)


def test_groups_do_not_depend_on_the_order_of_texts(prose: list[str]) -> None:
    def as_sets(texts: list[str]) -> set[frozenset[str]]:
        groups = near_duplicate_groups(texts)
        return {frozenset(text for text, g in zip(texts, groups, strict=True) if g == group) for group in set(groups)}

    some = prose[:600]
    assert as_sets(some) == as_sets(some[::-1])


def test_groups_are_named_by_their_first_text_and_connect_chains() -> None:
    base = [f"w{chr(97 + i)}" for i in range(20)]
    near, nearer = [*base[:-1], "x"], ["y", *base[1:-1], "x"]
    texts = ["something else entirely different", " ".join(base), " ".join(near), " ".join(nearer), " ".join(base)]
    assert near_duplicate_groups(texts).tolist() == [0, 1, 1, 1, 1]
    assert near_duplicate_groups([]).tolist() == []
