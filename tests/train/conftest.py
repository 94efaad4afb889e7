"""What the tests of fine-tuning start from."""

from pathlib import Path

import pytest

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
