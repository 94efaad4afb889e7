"""One dataset with canaries, prepared once for the tests that look at it from different sides."""

from pathlib import Path

import pytest

from fmray.core.artifact import Artifact
from fmray.data.dataset import TokenDataset
from tests.data.corpora import prepare, topics, write_texts

SMALL_SHARDS = 0.1
CANARIES = {"seed": 3, "per_level": 10, "levels": [1, 4], "candidates": 255}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text files: the topics of `help()`."""
    return write_texts(tmp_path_factory.mktemp("corpus") / "topics", topics())


@pytest.fixture(scope="session")
def dataset(ray_session: None, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact[TokenDataset]:
    """That corpus in several shards, with canaries."""
    source = {"type": "text", "path": str(corpus)}
    return prepare(
        tmp_path_factory.mktemp("runs"), source, shard_mb=SMALL_SHARDS, canaries=CANARIES, validation_fraction=0.1
    )
