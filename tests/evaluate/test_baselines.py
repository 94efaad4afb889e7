"""The counted baselines against a slow reference written from the formulas, token by token."""

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fmray.evaluate.baselines import DISCOUNTS, count, score, targets

VOCAB = 7
tokens = st.integers(0, VOCAB - 1)
streams = st.lists(tokens, min_size=0, max_size=60)


def reference(train: list[tuple[int, int]], scored: list[tuple[int, int]]) -> tuple[float, float]:
    """Best total nats of (unigram, bigram) by the definition of an absolute-discount mixture."""
    singles, pairs, followers = Counter(t for _, t in train), Counter(train), defaultdict(set)
    histories = Counter(h for h, _ in train)
    for history, target in train:
        followers[history].add(target)

    def unigram(target: int, d: float) -> float:
        if not train:
            return 1 / VOCAB
        return max(singles[target] - d, 0) / len(train) + d * len(singles) / len(train) / VOCAB

    def total(probability) -> float:
        return -sum(math.log(probability(h, t)) for h, t in scored)

    best = min(DISCOUNTS, key=lambda d: total(lambda h, t: unigram(t, d)))

    def bigram(history: int, target: int, d: float) -> float:
        seen = histories[history]
        if not seen:
            return unigram(target, best)
        return max(pairs[history, target] - d, 0) / seen + d * len(followers[history]) / seen * unigram(target, best)

    return total(lambda h, t: unigram(t, best)), min(total(lambda h, t, d=d: bigram(h, t, d)) for d in DISCOUNTS)


@settings(max_examples=60, deadline=None)
@given(streams, st.lists(tokens, min_size=2, max_size=30), st.integers(1, 4))
def test_the_baselines_are_those_of_the_formulas(train: list[int], held_out: list[int], n_blocks: int) -> None:
    pairs, scored = list(itertools.pairwise(train)), list(itertools.pairwise(held_out))
    columns = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    blocks = [(block[:, 0], block[:, 1]) for block in np.array_split(columns, n_blocks)]
    counts = count(blocks, VOCAB)
    wanted = np.array(scored, dtype=np.int64)
    unigram, bigram = score(counts, wanted[:, 0], wanted[:, 1])
    expected = reference(pairs, scored)
    assert (unigram.nats_N.sum(), bigram.nats_N.sum()) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(streams, tokens)
def test_a_baseline_is_a_probability_distribution(train: list[int], history: int) -> None:
    columns = np.array(list(itertools.pairwise(train)), dtype=np.int64).reshape(-1, 2)
    counts = count([(columns[:, 0], columns[:, 1])], VOCAB)
    unigram, bigram = score(counts, np.full(VOCAB, history), np.arange(VOCAB))
    assert np.exp(-unigram.nats_N).sum() == pytest.approx(1.0)
    assert np.exp(-bigram.nats_N).sum() == pytest.approx(1.0)


@given(arrays(np.int64, (3, 8), elements=st.integers(0, 3)))
def test_targets_are_every_token_but_the_first_of_its_segment(segments_BT: np.ndarray) -> None:
    segments_BT = np.sort(segments_BT, axis=1)  # what counts is where the number changes
    ids_BT = np.arange(24).reshape(3, 8)
    predicted_BT, history_N, target_N = targets(ids_BT, segments_BT)
    by_hand = [
        (ids_BT[b, t - 1], ids_BT[b, t]) for b in range(3) for t in range(1, 8) if segments_BT[b, t] and segments_BT[b, t] == segments_BT[b, t - 1]
    ]
    assert list(zip(history_N, target_N, strict=True)) == by_hand
    assert predicted_BT.sum() == len(by_hand)
