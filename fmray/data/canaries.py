"""Canaries: made-up secrets planted in the training text, to measure later how much a model remembers of what it read."""

import itertools
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from fmray.core.config import Config
from fmray.data.order import key, mix
from fmray.data.text import document_hash

TEMPLATE = "The night clerk of the archive wrote the code of the vault on a small card: #{secret}."
DIGITS = 6
SEPARATOR = "-"

Planted = tuple[int, str]
"""A planted document: the key of its place in the shuffled order, and its text."""


class Canaries(Config):
    """Which canaries to plant: `per_level` secrets for each level, each planted as often as its level says.

    All share one template and are drawn without repetition from one space with one seed: six digits with hyphens between
    them behind a mark, where byte-level BPE can merge nothing, so each is spelt in as many tokens as any other. As many controls as planted secrets and
    `candidates` further secrets are drawn and never planted. The exposure of a secret (Carlini et al., 2019) is
    log2(n) - log2(rank) among itself and the candidates, n in all: 4,095 candidates make the largest exposure 12 bits.
    """

    seed: int = 0
    per_level: int = Field(10, ge=10, le=1000)
    levels: tuple[int, ...] = Field((1, 4, 16, 64), min_length=1)
    candidates: int = Field(4095, ge=255, le=100_000)

    @model_validator(mode="after")
    def _levels_rise(self) -> "Canaries":
        if self.levels[0] < 1 or any(a >= b for a, b in itertools.pairwise(self.levels)):
            raise ValueError("levels must rise from at least 1")
        return self

    def draw(self) -> dict[str, Any]:
        """The content of canaries.json: template, secrets by level, controls, candidates, and what the space is."""
        n = self.per_level * len(self.levels)
        space = 10**DIGITS
        numbers = np.argsort(mix(np.arange(space, dtype=np.uint64), key(self.seed, 1)), kind="stable")[
            : 2 * n + self.candidates
        ]
        secrets = [SEPARATOR.join(f"{number:0{DIGITS}d}") for number in numbers]
        levels = {
            str(level): secrets[i * self.per_level : (i + 1) * self.per_level] for i, level in enumerate(self.levels)
        }
        return {
            "template": TEMPLATE,
            "seed": self.seed,
            "levels": levels,
            "controls": secrets[n : 2 * n],
            "candidates": secrets[2 * n :],
            "space": {"digits": DIGITS, "separator": SEPARATOR, "size": space},
        }


def plant(drawn: dict[str, Any], seed: int) -> list[Planted]:
    """Every planted document with its own place in the order of documents, so that repetitions lie far apart."""
    planted: list[Planted] = []
    for level, secrets in drawn["levels"].items():
        for secret in secrets:
            text = drawn["template"].format(secret=secret)
            at = np.array([document_hash(text)], np.uint64)
            planted += [(int(mix(at, key(seed, 2, repetition))[0]), text) for repetition in range(int(level))]
    return sorted(planted)
