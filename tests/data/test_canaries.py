"""Canaries: drawn from one space, planted in the train split alone exactly as often as their level says, scattered."""

import numpy as np
import pytest

from fmray.core.artifact import Artifact
from fmray.core.config import load_config
from fmray.core.errors import ConfigError
from fmray.data.canaries import TEMPLATE, Canaries, plant
from fmray.data.dataset import TokenDataset
from fmray.data.text import document_hash
from fmray.data.tokenizer import encode, load
from tests.data.conftest import CANARIES
from tests.data.corpora import documents, drawn_canaries


def test_secrets_are_distinct_and_of_one_form() -> None:
    drawn = Canaries().draw()
    assert {level: len(secrets) for level, secrets in drawn["levels"].items()} == {"1": 10, "4": 10, "16": 10, "64": 10}
    secrets = [s for level in drawn["levels"].values() for s in level] + drawn["controls"] + drawn["candidates"]
    assert (len(drawn["controls"]), len(drawn["candidates"])) == (40, 4095)
    assert len(set(secrets)) == len(secrets)
    assert all(len(s) == 11 and s.replace("-", "").isdigit() and set(s[1::2]) == {"-"} for s in secrets)
    digits = np.array([[int(d) for d in s.split("-")] for s in secrets])
    assert (
        np.abs(np.stack([np.bincount(column, minlength=10) for column in digits.T]) / len(secrets) - 0.1) < 0.02
    ).all()


def test_every_secret_takes_as_many_tokens(dataset: Artifact[TokenDataset]) -> None:
    tokenizer, special = load(dataset.path / "tokenizer")
    drawn = drawn_canaries(dataset)
    texts = [TEMPLATE.format(secret=s) for s in drawn["candidates"] + drawn["controls"]]
    assert len({len(ids) for ids in encode(tokenizer, special, texts)}) == 1


def test_the_seed_draws_them() -> None:
    assert Canaries().draw() == Canaries().draw()
    assert Canaries(seed=1).draw()["controls"] != Canaries().draw()["controls"]


def test_levels_must_rise_and_have_ten_secrets() -> None:
    faults: list[tuple[dict[str, object], str]] = [
        ({"levels": [4, 1]}, "levels must rise"),
        ({"levels": [0, 1]}, "levels must rise"),
        ({"per_level": 9}, "greater than or equal to 10"),
    ]
    for fields, message in faults:
        with pytest.raises(ConfigError, match=message):
            load_config(Canaries, fields)


def test_planted_documents_have_places_of_their_own() -> None:
    planted = plant(Canaries().draw(), seed=0)
    assert len(planted) == 10 * (1 + 4 + 16 + 64)
    assert len({place for place, _ in planted}) == len(planted)
    assert abs(np.mean([place / 2**64 for place, _ in planted]) - 0.5) < 0.05


def test_they_are_in_the_train_split_alone_exactly_as_planned(dataset: Artifact[TokenDataset]) -> None:
    drawn = drawn_canaries(dataset)
    train, validation = documents(dataset, "train"), documents(dataset, "validation")
    assert set(drawn["levels"]) == {"1", "4"}
    for level, secrets in drawn["levels"].items():
        assert len(secrets) == CANARIES["per_level"]
        assert [train.count(TEMPLATE.format(secret=s)) for s in secrets] == [int(level)] * len(secrets)
    planted = {TEMPLATE.format(secret=s) for secrets in drawn["levels"].values() for s in secrets}
    assert dataset.payload.n_planted == 50 == sum(text in planted for text in train)
    head = TEMPLATE.split("{")[0]
    assert sum(text.startswith(head) for text in train) == 50
    assert not any(head in text for text in validation)


def test_their_repetitions_are_scattered(dataset: Artifact[TokenDataset]) -> None:
    train = documents(dataset, "train")
    places = np.array([i for i, text in enumerate(train) if text.startswith(TEMPLATE.split("{")[0])]) / len(train)
    assert len(np.unique((places * 5).astype(int))) == 5
    assert np.diff(places).max() < 0.2


def test_they_are_among_the_hashes_of_what_was_trained_on(dataset: Artifact[TokenDataset]) -> None:
    known = set(np.load(dataset.path / "document_hashes.npy").tolist())
    drawn = drawn_canaries(dataset)
    assert all(
        document_hash(TEMPLATE.format(secret=s)) in known for secrets in drawn["levels"].values() for s in secrets
    )
    assert not any(document_hash(TEMPLATE.format(secret=s)) in known for s in drawn["controls"])
