"""Near-duplicates: planted ones are found, and the same ones whatever the order and the files; brute force agrees."""

import itertools
import random
import tracemalloc
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fmray.data.near_duplicates import NearDuplicates, removed_keys, shingles
from fmray.data.text import document_hash
from fmray.data.words import words
from tests.data.corpora import docstrings

SIMILARITIES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)


def shingle_set(text: str, n: int = 5) -> frozenset[int]:
    return frozenset(shingles(words([text]), n)[0].tolist())


def similarity(one: str, other: str) -> float:
    a, b = shingle_set(one), shingle_set(other)
    return len(a & b) / max(1, len(a | b))


@cache
def planted() -> tuple[list[str], NDArray[np.float64]]:
    """Docstrings of the standard library, each followed by a copy with words replaced, and the pairs' exact similarities.

    Of a run of five words a replacement rate p leaves (1 - p)^5 untouched, so it is chosen for a similarity from 0.5 to 0.95:
    as many pairs stand at the threshold, or within 0.05 of it, as clearly on one side; that makes the set a hard one.
    """
    draw = random.Random(0)
    texts = sorted({document["text"] for document in docstrings() if 60 <= len(document["text"].split()) <= 600})
    vocabulary = sorted({word for text in texts for word in text.split()})
    both: list[str] = []
    for text in texts:
        wanted = draw.choice(SIMILARITIES)
        rate = 1 - (2 * wanted / (1 + wanted)) ** 0.2
        copy = " ".join(draw.choice(vocabulary) if draw.random() < rate else word for word in text.split())
        if copy != text:
            both += [text, copy]
    return both, np.array([similarity(one, other) for one, other in zip(both[::2], both[1::2], strict=True)])


def keys_of(texts: list[str]) -> NDArray[np.uint64]:
    return np.array([document_hash(text) for text in texts], np.uint64)


def removed(texts: list[str], config: NearDuplicates, folder: Path, cuts: tuple[int, ...] = ()) -> NDArray[np.uint64]:
    """The keys that go when the texts lie in files cut at `cuts`."""
    folder.mkdir()
    work = folder / "work"
    work.mkdir()
    parts = []
    for i, (start, end) in enumerate(itertools.pairwise([0, *cuts, len(texts)])):
        parts.append((folder / f"{i}.keys.npy", folder / f"{i}.signatures.npy"))
        np.save(parts[-1][0], keys_of(texts[start:end]))
        np.save(parts[-1][1], config.signatures(texts[start:end]))
    return removed_keys(parts, config, work)


def test_planted_near_duplicates_are_found(tmp_path: Path) -> None:
    texts, exact = planted()
    alike = exact >= 0.8
    assert 300 < alike.sum() < len(alike) - 300
    assert (np.abs(exact - 0.8) < 0.05).sum() > 100
    gone = np.isin(keys_of(texts), removed(texts, NearDuplicates(), tmp_path / "a")).reshape(-1, 2).any(axis=1)
    hits = (gone & alike).sum()
    precision, recall = hits / gone.sum(), hits / alike.sum()
    assert 2 * precision * recall / (precision + recall) >= 0.95
    clear = np.abs(exact - 0.8) > 0.06
    assert (gone == alike)[clear].mean() > 0.985  # some docstrings are near-duplicates of others' copies by nature


def test_the_same_documents_go_whatever_their_order_and_files(tmp_path: Path) -> None:
    texts = planted()[0][:600]
    shuffled = random.Random(3).sample(texts, len(texts))
    one = removed(texts, NearDuplicates(), tmp_path / "a")
    other = removed(shuffled, NearDuplicates(), tmp_path / "b", cuts=(0, 1, 250, 600))
    assert len(one) > 50
    assert one.tolist() == other.tolist() == sorted(one.tolist())


def test_exact_copies_count_as_one_and_texts_without_words_as_none(tmp_path: Path) -> None:
    base = " ".join(f"word{i}" for i in range(50))
    texts = ["...", "!!!", base, base, base + " more", "quite another text of its own"]
    keys = keys_of(texts)
    gone = removed(texts, NearDuplicates(), tmp_path / "a")
    assert gone.tolist() == [max(keys[2], keys[4])]
    assert removed([], NearDuplicates(), tmp_path / "b").tolist() == []


def test_chinese_is_compared_by_characters(tmp_path: Path) -> None:
    one = "昔者庄周梦为胡蝶栩栩然胡蝶也自喻适志与不知周也俄然觉则蘧蘧然周也不知周之梦为胡蝶与胡蝶之梦为周与周与胡蝶则必有分矣此之谓物化"
    other = one[:-2] + "变化"
    assert len(removed([one, other, "北冥有鱼其名为鲲鲲之大不知其几千里也化而为鸟其名为鹏"], NearDuplicates(), tmp_path / "a")) == 1


def test_signatures_do_not_depend_on_the_batch() -> None:
    texts = [*planted()[0][:40], "", "short", "a b c d e", "今天"]
    config = NearDuplicates(n_perm=64)
    alone = np.concatenate([config.signatures([text]) for text in texts])
    assert (config.signatures(texts) == alone).all()
    assert config.signatures([]).shape == (0, 64)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), max_size=14), st.sampled_from((0.3, 0.5, 0.8)))
def test_brute_force_over_signatures_agrees(tmp_path_factory: pytest.TempPathFactory, drawn: list[list[int]], threshold: float) -> None:
    config = NearDuplicates(threshold=threshold, shingle=2, n_perm=128)
    texts = [" ".join("abcd"[i] for i in document) for document in drawn]
    found = removed(texts, config, tmp_path_factory.mktemp("brute") / "x")
    keys, signatures = keys_of(texts), config.signatures(texts)
    root = {key: key for key in keys.tolist()}
    for _ in texts:  # as often as a chain can be long
        for (a, one), (b, other) in itertools.combinations(zip(keys.tolist(), signatures, strict=True), 2):
            if (one == other).mean() >= threshold:
                root[a] = root[b] = min(root[a], root[b])
    assert found.tolist() == sorted(key for key, least in root.items() if key != least)


def test_bands_are_as_long_as_recall_at_the_threshold_allows() -> None:
    n_bands, rows = NearDuplicates().bands
    assert n_bands * rows <= 512
    assert 1 - (1 - 0.8**rows) ** n_bands >= 0.9995 > 1 - (1 - 0.8 ** (rows + 1)) ** (512 // (rows + 1))
    assert NearDuplicates(threshold=1.0, n_perm=16).bands == (1, 16)


def synthetic(folder: Path, n: int, n_perm: int) -> list[tuple[Path, Path]]:
    """Signatures of which a tenth are near-copies of others, in four files."""
    draw = np.random.default_rng(0)
    signatures = draw.integers(0, 2**16, (n, n_perm), dtype=np.uint16)
    copies = np.arange(0, n - 1, 10)
    signatures[copies + 1] = np.where(draw.random((len(copies), n_perm)) < 0.9, signatures[copies], signatures[copies + 1])
    keys = draw.permutation(n).astype(np.uint64)
    parts = []
    for i, at in enumerate(np.array_split(np.arange(n), 4)):
        parts.append((folder / f"{i}.keys.npy", folder / f"{i}.signatures.npy"))
        np.save(parts[-1][0], keys[at])
        np.save(parts[-1][1], signatures[at])
    return parts


@pytest.mark.slow
def test_memory_is_bounded_by_a_few_numbers_a_document(tmp_path: Path) -> None:
    n = 200_000
    parts = synthetic(tmp_path, n, 512)
    (tmp_path / "work").mkdir()
    tracemalloc.start()
    gone = removed_keys(parts, NearDuplicates(), tmp_path / "work")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(gone) == n // 10
    signatures = n * 512 * 2
    # 16 bytes a document and a band's table of 24, and buffers of one chunk whatever the corpus: signatures stay on disk.
    assert peak < 48 * n + 10 * 8192 * 512 * 2 < signatures / 2
