"""A draw follows the distribution that was asked for, and only the seed and the position decide it."""

import math
from collections import Counter

import pytest
import torch

from fmray.serve.engine import Sampling
from fmray.serve.engines.sampling import Row, choose, draw, shifted

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
        (Sampling(min_p=0.35), (0.5 / 0.7, 0.2 / 0.7, 0, 0, 0)),
        (Sampling(min_p=1.0), (1.0, 0, 0, 0, 0)),
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


def test_penalties_are_openais_and_the_biases_are_added() -> None:
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((0, -100.0), (4, 3.0)))
    found = shifted(LOGITS, sampling, (3, 3), (1, 1, 2))
    expected = [LOGITS[0] - 100, LOGITS[1] - 0.5 - 2 * 0.25, LOGITS[2] - 0.5 - 0.25, LOGITS[3], LOGITS[4] + 3]
    torch.testing.assert_close(found, torch.stack(expected))
    assert LOGITS[0] == math.log(0.5), "what the model said stays as it was"


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits_V = torch.tensor([2.0, -1.0, 0.5, -0.25, 3.0])
    expected = RepetitionPenaltyLogitsProcessor(penalty=1.3)(torch.tensor([[0, 1, 1, 3]]), logits_V[None].clone())[0]
    torch.testing.assert_close(shifted(logits_V, Sampling(repetition_penalty=1.3), (0, 1), (1, 3)), expected)


def test_a_greedy_choice_follows_the_shifted_logits_and_an_unshifted_one_is_the_models() -> None:
    assert choose(LOGITS, Row(Sampling(temperature=0), 0, 3, "r")) is None
    assert choose(LOGITS, Row(Sampling(temperature=0, presence_penalty=2.0), 0, 3, "r", (0,), (0,))) == 1
    assert choose(LOGITS, Row(Sampling(temperature=0, logit_bias=((4, 100.0),)), 0, 3, "r")) == 4
