"""Near-duplicates are grouped and never cross a split."""

import random
from collections import Counter

import numpy as np
import pytest

from fmray.data.split import THRESHOLD, _shingles, jaccard, near_duplicate_groups, split_texts
from tests.data.corpora import docstrings

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


@pytest.fixture(scope="module")
def prose() -> list[str]:
    return [d["text"] for d in docstrings()[:2000]]


def altered(text: str, draw: random.Random) -> str:
    """The text with one word replaced and its case and white space changed."""
    words = text.split()
    words[draw.randrange(len(words))] = "otherwise"
    return "  ".join(words).upper()


def test_planted_near_duplicates_never_cross(prose: list[str]) -> None:
    draw = random.Random(0)
    originals = [text for text in prose if len(text.split()) >= 15][:600]
    texts = originals + [altered(text, draw) for text in originals]
    alike = [
        jaccard(_shingles(a), _shingles(b)) >= THRESHOLD
        for a, b in zip(originals, texts[len(originals) :], strict=True)
    ]
    assert sum(alike) > 0.9 * len(originals)
    split = split_texts(texts, FRACTIONS, seed=1)
    assert all(
        a == b for a, b, near in zip(split[: len(originals)], split[len(originals) :], alike, strict=True) if near
    )
    assert len(set(split)) == 3


def test_no_pair_across_splits_is_alike_by_exact_comparison(prose: list[str]) -> None:
    split = np.array(split_texts(prose, FRACTIONS, seed=0))
    shingles = [_shingles(text) for text in prose]
    holders: dict[int, list[int]] = {}
    for i in np.flatnonzero(split != "test"):
        for shingle in shingles[i]:
            holders.setdefault(shingle, []).append(int(i))
    for i in np.flatnonzero(split == "test"):
        shared = Counter(j for shingle in shingles[i] for j in holders.get(shingle, ()))
        assert all(n / (len(shingles[i]) + len(shingles[j]) - n) < THRESHOLD for j, n in shared.items())


def test_the_split_depends_on_texts_and_seed_alone(prose: list[str]) -> None:
    once = dict(zip(prose, split_texts(prose, FRACTIONS, seed=4), strict=True))
    assert dict(zip(prose[::-1], split_texts(prose[::-1], FRACTIONS, seed=4), strict=True)) == once
    assert dict(zip(prose, split_texts(prose, FRACTIONS, seed=5), strict=True)) != once
    shares = Counter(once.values())
    assert all(abs(shares[name] / len(once) - share) < 0.04 for name, share in FRACTIONS.items())


def test_groups_are_named_by_their_first_text_and_connect_chains() -> None:
    base = [f"w{chr(97 + i)}" for i in range(20)]
    near, nearer = [*base[:-1], "x"], ["y", *base[1:-1], "x"]
    texts = ["something else entirely different", " ".join(base), " ".join(near), " ".join(nearer), " ".join(base)]
    assert near_duplicate_groups(texts).tolist() == [0, 1, 1, 1, 1]
    assert near_duplicate_groups([]).tolist() == []


def test_fractions_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to"):
        split_texts(["a"], {"train": 0.5, "test": 0.4}, seed=0)
