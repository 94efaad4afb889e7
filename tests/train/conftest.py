"""What the tests of fine-tuning start from."""

from pathlib import Path

import pytest

from fmray.core.artifact import Artifact
from fmray.core.report import Decision
from fmray.model.checkpoint import Checkpoint
from tests.train import tiny


@pytest.fixture(scope="package")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny decoder as a Hugging Face directory."""
    folder = tmp_path_factory.mktemp("start")
    tiny.save_decoder(folder)
    return folder


@pytest.fixture(scope="package")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled texts in a CSV file."""
    return tiny.write_csv(tmp_path_factory.mktemp("data") / "t.csv", tiny.labelled(40))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Artifact[Checkpoint]:
    """A tiny decoder that searches begin from."""
    return tiny.base_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def decision(base: Artifact[Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Artifact[Decision]:
    """A gate that admitted it."""
    return tiny.admitting(tmp_path_factory.mktemp("gate"), base)
