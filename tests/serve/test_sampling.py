"""A draw follows the distribution that was asked for, and only the seed and the position decide it."""

import math
from collections import Counter

import pytest
import torch

from fmray.serve.engine import Sampling
from fmray.serve.engines.sampling import draw

PROBABILITIES = (0.5, 0.2, 0.15, 0.1, 0.05)
LOGITS = torch.tensor([math.log(p) for p in PROBABILITIES])
N = 4000


def drawn(sampling: Sampling, n: int = N) -> Counter[int]:
    return Counter(draw(LOGITS, sampling, seed, 7) for seed in range(n))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), PROBABILITIES),
        (Sampling(temperature=0.5), tuple(p**2 / sum(q**2 for q in PROBABILITIES) for p in PROBABILITIES)),
        (Sampling(top_k=2), (0.5 / 0.7, 0.2 / 0.7, 0, 0, 0)),
        (Sampling(top_p=0.8), (0.5 / 0.85, 0.2 / 0.85, 0.15 / 0.85, 0, 0)),
        (Sampling(top_p=0.01), (1.0, 0, 0, 0, 0)),
        (Sampling(top_k=3, top_p=0.7), (0.5 / 0.7, 0.2 / 0.7, 0, 0, 0)),
    ],
)
def test_frequencies_are_those_of_the_distribution(sampling: Sampling, expected: tuple[float, ...]) -> None:
    counts = drawn(sampling)
    assert set(counts) <= {token for token, p in enumerate(expected) if p > 0}
    # Pearson's chi-square against its 99.9 % point for 4 degrees of freedom, which bounds fewer degrees too.
    assert sum((counts[t] - N * p) ** 2 / (N * p) for t, p in enumerate(expected) if p > 0) < 18.5


def test_seed_and_position_decide_the_draw() -> None:
    logits_V = torch.zeros(1000)
    first = [draw(logits_V, Sampling(), 5, position) for position in range(30)]
    assert first == [draw(logits_V, Sampling(), 5, position) for position in range(30)]
    assert len(set(first)) > 20
    assert first != [draw(logits_V, Sampling(), 6, position) for position in range(30)]


@pytest.mark.parametrize("temperature", [1e-320, 1e-10, 1e-3])
def test_the_least_temperature_takes_the_likeliest(temperature: float) -> None:
    assert set(drawn(Sampling(temperature=temperature), 20)) == {0}
